"""A grounded answer: what it says and what it was made from. All that a value function needs, and storable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from retrieval.retriever import Retrieval, RetrievedDocument, RetrievedPassage

DOCUMENTS_READ: Final = 12
"""Only the best documents are read for an answer; the others are retrieved and earn nothing."""


@dataclass(frozen=True, slots=True)
class GroundedAnswer:
    """An answer with its question and its documents."""

    retrieval: Retrieval
    """The retrieved documents. A document that the generator was not given has no passages."""
    answer: str
    """What it says, without its marks of citation; empty where it does not answer."""
    worths: tuple[npt.NDArray[np.float64], ...] = ()
    """Of an extractive answer: for each document read, the probability of each of its sentences to be the answer."""
    slots: int = 0
    """Of an extractive answer: how many sentences it has."""

    @property
    def read(self) -> tuple[RetrievedDocument, ...]:
        """The documents that the answer was made from: the members of the game."""
        return self.retrieval.documents[:DOCUMENTS_READ]

    def encode(self) -> bytes:
        """The answer as bytes."""
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> GroundedAnswer:
        """The answer in bytes of :meth:`encode`.

        Raises:
            ValueError: they are of another version of the program.
        """
        return _DECODER.decode(data)


def own_text(document: RetrievedDocument) -> str:
    """The text with which a document plays: its passages in the order of the text, joined into one.

    Sentences that another document of the retrieval had before are left out: they play there, so a copy adds nothing.
    """
    passages = sorted(document.passages, key=lambda passage: passage.start)
    return "\n".join(text for text in map(_own_text, passages) if text)


def _own_text(passage: RetrievedPassage) -> str:
    parts, position = [], 0
    for (start, end), own in zip(passage.sentences.tolist(), passage.own.tolist(), strict=True):
        if not own:
            parts.append(passage.text[position:start])
            position = end
    return "".join([*parts, passage.text[position:]]).strip()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    raise TypeError(f"{type(value).__name__} is not stored")


def _array(kind: Any, plain: Any) -> Any:
    """An array of the type that the field is declared with, ``NDArray[...]``."""
    (dtype,) = kind.__args__[1].__args__
    shape, data = plain
    return np.frombuffer(data, dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_DECODER = msgspec.msgpack.Decoder(GroundedAnswer, dec_hook=_array)
