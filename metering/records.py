"""The usage record: the immutable fact of one paid query.

Everything that decides who earns is copied into the record at the time of use (contributor, splits, version
hash, price and policy version, coalition values), so later edits never rewrite it. Every number is an
integer, so that its bytes, its leaf hash and everything computed from it are the same on every machine.

A record keeps the format that it was written in: its bytes and its leaf are those of that format for ever. Formats:

1. what the bytes have without ``provenance``;
2. what they have with it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from metering import formats
from metering.merkle import leaf_hash

PPM: Final = 1_000_000
"""Splits and policy shares are parts per million."""

VALUE_ONE: Final = 10**9
"""The integer that stands for a coalition value of 1."""

SCORE_ONE: Final = 10**6
"""The integer that stands for a retrieval score of 1."""

FORMAT: Final = 2
"""The format of new records."""


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


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer came about: what would have to be the same again to get it again. For the operator and the payer.

    Texts are empty where there is no such thing.
    """

    answered: bool
    """Whether the answer says anything: false where the documents did not answer."""
    epoch: int
    """The catalogue's clock that was retrieved at; 0 where nothing was retrieved."""
    snapshot: str
    """The index snapshot that was searched."""
    embedder: str
    """The embedding model, by the name that vectors are stored under."""
    engine: str
    """The version of the program."""
    counted_by: str
    """The model whose tokens were counted."""
    tokenizer: str
    """What split the texts into those tokens."""
    machine: str
    """Stands for the machine that answered: the same for all its answers, and tells nothing else of it."""
    tags: tuple[str, ...]
    """What the payer sorts its queries by."""


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
    provenance: Provenance | None = None
    """None in format 1, which does not say."""

    def __post_init__(self) -> None:
        """Refuse a record that no format has.

        Raises:
            UnknownFormat: the format is a newer version's.
            ValueError: a field is missing, or is one of a later format.
        """
        formats.check("a usage record", self.format, FORMAT)
        for name, since in _SINCE.items():
            if (getattr(self, name) is None) == (since <= self.format):
                raise ValueError(f"a usage record of format {self.format} has {name} if that is {since} or more")

    def encode(self) -> bytes:
        """The canonical bytes: compact JSON, the fields of the record's format in the order of this class."""
        if self.format == FORMAT:
            return _ENCODER.encode(self)
        return _ENCODER.encode({name: getattr(self, name) for name in fields_of(self.format)})

    def leaf(self) -> bytes:
        """The record's leaf hash in a Merkle tree."""
        return leaf_hash(self.encode())


class _Head(msgspec.Struct):
    """What every format has."""

    format: int


_SINCE: Final = {"provenance": 2}
"""The fields that came after format 1, and the format that each came with. None stands for one that is not there."""
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(UsageRecord)
_HEAD = msgspec.json.Decoder(_Head)


def fields_of(number: int) -> tuple[str, ...]:
    """The names of the fields that records of a format have, in order."""
    return tuple(name for name in UsageRecord.__struct_fields__ if _SINCE.get(name, 1) <= number)


class RecordError(ValueError):
    """Bytes that are not a usage record of a format that this version knows."""


def decode_record(data: bytes) -> UsageRecord:
    """The record in canonical bytes.

    Raises:
        RecordError: the bytes are not a usage record, or one of a newer version's.
    """
    try:
        formats.check("a usage record", _HEAD.decode(data).format, FORMAT)
        return _DECODER.decode(data)
    except formats.UnknownFormat as error:
        raise RecordError(str(error)) from error
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
