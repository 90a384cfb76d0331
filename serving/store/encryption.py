"""Encryption at rest of questions, answers and secrets, and pseudonyms."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES: Final = 12
_PSEUDONYM_HEX: Final = 12


class DecryptionError(RuntimeError):
    """Ciphertext that this deployment's key does not open for this owner."""


class Encryption:
    """AES-256-GCM, bound to the owner of what is encrypted."""

    def __init__(self, key: bytes) -> None:
        """``key`` has 32 bytes."""
        self._key = key
        self._cipher = AESGCM(key)

    def pseudonym(self, name: str) -> str:
        """The pseudonym of a name: always the same, and not to be guessed or tried without the key."""
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:_PSEUDONYM_HEX]

    def seal(self, plain: bytes, owner: str) -> bytes:
        """The ciphertext, readable only for ``owner``."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """The plain text.

        Raises:
            DecryptionError: another key, another owner, or an altered text.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError) as error:
            raise DecryptionError("a stored response cannot be decrypted") from error
