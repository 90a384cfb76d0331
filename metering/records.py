"""The usage record: the immutable fact of one paid query.

Everything that decides who earns is copied into the record at the time of use (contributor, splits, version
hash, price and policy version, coalition values), so later edits never rewrite it. Every number is an
integer, so that its bytes, its leaf hash and everything computed from it are the same on every machine.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from metering.merkle import leaf_hash

PPM: Final = 1_000_000
"""Splits and policy shares are parts per million."""

VALUE_ONE: Final = 10**9
"""The integer that stands for a coalition value of 1."""

SCORE_ONE: Final = 10**6
"""The integer that stands for a retrieval score of 1."""

FORMAT: Final = 1


class Split(msgspec.Struct, frozen=True):
    """The share of a document's credit, in parts per million, that goes to a contributor."""

    contributor: str
    role: str
    ppm: int


class Use(msgspec.Struct, frozen=True):
    """One document that was retrieved for one query, and that stands for its copies.

    What a copy would have earned is in it: of near-duplicates, the one that was registered first is retrieved.
    """

    document: str
    version: str
    """SHA-256 of the version's text, in hex."""
    contributor: str
    """Who brought the document."""
    splits: tuple[Split, ...]
    score: int
    """Retrieval score times ``SCORE_ONE``."""
    cited: bool
    registered_ms: int = 0
    """Since when its contributor has registered what was retrieved of it: the evidence that it is the original."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One query: who paid what, what was retrieved, and what each coalition was worth.

    ``charge == cost + platform + royalty`` always, in units of the deployment's currency; the account pays
    ``charge - free``. Bit ``i`` of an
    index into ``values`` stands for ``uses[i]``; ``values`` has ``2 ** n`` entries for the first ``n`` uses,
    and uses beyond ``n`` are null players. Values are between 0 and ``VALUE_ONE``.
    """

    format: int = FORMAT
    id: str
    account: str
    """The customer that paid."""
    key: str
    """The id of the API key that asked."""
    model: str
    purpose: str
    started_ms: int
    """When the query was admitted, in milliseconds since the epoch."""
    finished_ms: int
    """When the answer was complete: the time that decides the period."""
    price_version: int
    policy_version: int
    input_tokens: int
    output_tokens: int
    passages: int
    charge: int
    cost: int
    platform: int
    royalty: int
    free: int = 0
    """The part of the charge that the operator pays, because the price book gives the account a free amount."""
    value_function: str
    values: tuple[int, ...]
    uses: tuple[Use, ...]
    idempotency: str = ""
    """Fingerprint of the Idempotency-Key, empty where none was sent: dedup outlives Redis in SQL."""

    def encode(self) -> bytes:
        """The canonical bytes: compact JSON, fields in the order of this class."""
        return _ENCODER.encode(self)

    def leaf(self) -> bytes:
        """The record's leaf hash in a Merkle tree."""
        return leaf_hash(self.encode())


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(UsageRecord)


class RecordError(ValueError):
    """Bytes that are not a usage record of this format."""


def decode_record(data: bytes) -> UsageRecord:
    """The record in canonical bytes.

    Raises:
        RecordError: the bytes are not a usage record.
    """
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise RecordError(f"not a usage record: {error}") from error


def fingerprint(*parts: str | bytes) -> str:
    """A hex SHA-256 over length-prefixed parts, so that no two lists of parts collide by concatenation."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
