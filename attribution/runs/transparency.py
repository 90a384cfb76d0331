"""Signatures that outsiders can check: Ed25519 keys, and checkpoints as C2SP signed notes.

A checkpoint is three or more lines of text (origin, tree size, root, extensions), an empty line, and one line of
signature: ``— <name> <base64 of 4 bytes of key hash and the signature>``. See c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519: Final = b"\x01"
_DASH: Final = "\N{EM DASH}"


class CheckpointError(ValueError):
    """A checkpoint that is malformed or not signed by the key."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree at one size, in the name of its origin."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def body(self) -> str:
        """The text that is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions]
        return "".join(f"{line}\n" for line in lines)


class Signer:
    """The operator's private key."""

    def __init__(self, key: Ed25519PrivateKey, name: str) -> None:
        """``name`` identifies the key in signature lines; no spaces."""
        self._key = key
        self.name = name

    @classmethod
    def load_or_create(cls, path: Path, name: str) -> Signer:
        """The key at ``path``, made there on first use, readable by its owner alone."""
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(loaded, Ed25519PrivateKey):
            raise CheckpointError(f"{path} is not an Ed25519 key")
        return cls(loaded, name)

    @property
    def public_key(self) -> str:
        """The public key, 32 bytes in base64: what a verifier needs."""
        return base64.b64encode(self._public_bytes()).decode()

    def sign(self, checkpoint: Checkpoint) -> str:
        """The signed note."""
        body = checkpoint.body()
        signature = _key_hash(self.name, self._public_bytes()) + self._key.sign(body.encode())
        return f"{body}\n{_DASH} {self.name} {base64.b64encode(signature).decode()}\n"

    def _public_bytes(self) -> bytes:
        return self._key.public_key().public_bytes_raw()


def open_note(note: str, public_key: str) -> Checkpoint:
    """The checkpoint in a signed note.

    Raises:
        CheckpointError: malformed, or the signature is not by ``public_key`` (base64).
    """
    body, separator, trailer = note.partition("\n\n")
    parts = trailer.rstrip("\n").split(" ")
    try:
        if not separator or parts[0] != _DASH or len(parts) != 3:  # noqa: PLR2004 # dash, name, signature
            raise ValueError("no signature line")
        raw = base64.b64decode(public_key, validate=True)
        blob = base64.b64decode(parts[2], validate=True)
        lines = body.split("\n")
        checkpoint = Checkpoint(lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True), tuple(lines[3:]))
    except (ValueError, IndexError, binascii.Error) as error:
        raise CheckpointError(f"not a signed checkpoint: {error}") from error
    if blob[:4] != _key_hash(parts[1], raw):
        raise CheckpointError("the checkpoint is signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(blob[4:], checkpoint.body().encode())
    except (InvalidSignature, ValueError) as error:
        raise CheckpointError("the signature of the checkpoint is not valid") from error
    return checkpoint


def encode_proof(path: Sequence[bytes]) -> list[str]:
    """The nodes of a proof in base64."""
    return [base64.b64encode(node).decode() for node in path]


def decode_proof(path: Iterable[str]) -> list[bytes]:
    """The nodes of a proof.

    Raises:
        ValueError: not base64.
    """
    return [base64.b64decode(node, validate=True) for node in path]


def fingerprint(public_key: str) -> str:
    """A short name of a public key that people can compare."""
    return hashlib.sha256(public_key.encode()).hexdigest()[:16]


def _key_hash(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
