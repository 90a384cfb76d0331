"""The generator: the port through which what was retrieved becomes an answer.

An answer is complete at once (:class:`Delivered`), or comes in pieces (:class:`Generation`) and may be ended after any
of them: the text delivered by then has its own citations and its own grounded answer. Errors::

    GeneratorError
    ├── GeneratorBusy          the model has no room now
    └── AnswerTimeout          the answer was not complete in time
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from retrieval.retriever import Retrieval
from serving.generators.grounded_answer import GroundedAnswer
from serving.generators.query import Query

CHARS_PER_TOKEN_MAX: Final = 16
"""No text counts as fewer tokens than this: a tokenizer may count a long run of anything as one."""
# Python splits at more than these, such as control characters, which tokenizers leave out and join what is around.
_BLANKS: Final = " \t\n\r"


class GeneratorError(RuntimeError):
    """The model gave no answer, or broke off in the middle of it."""


class GeneratorBusy(GeneratorError):
    """The model has no room now."""


class AnswerTimeout(GeneratorError):
    """The answer was not complete in time."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in the answer that a passage stands for. Spans are code points, end exclusive."""

    source: int
    """Index into the retrieved documents."""
    quote: str
    passage: tuple[int, int]
    """Where the quote stands in the text of the document's version."""
    answer_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Delivered:
    """An answer, as far as it was delivered."""

    text: str
    citations: tuple[Citation, ...]
    grounded: GroundedAnswer
    """What it is valued by."""
    finish: str = "stop"
    """Why the text ends: ``stop``, ``length``, or what else the model says."""


class Generation(Protocol):
    """An answer that comes in pieces."""

    @property
    def finish(self) -> str:
        """Why the text ended, once it has."""
        ...

    def pieces(self) -> AsyncGenerator[str]:
        """The text, piece by piece, as the model gives it. Closing it early ends the model's work.

        Raises:
            GeneratorError: the model cannot be reached, refuses, or breaks off.
        """
        ...

    def delivered(self, text: str, finish: str) -> Delivered:
        """What ``text``, the pieces that were delivered, cites and is valued by."""
        ...


class Generator(Protocol):
    """A model that answers."""

    @property
    def generated(self) -> bool:
        """Whether a language model writes the answers: a policy values those by a function of their own."""
        ...

    def reads(self, query: Query) -> str:
        """The part of a query that the model reads, as one text: what input tokens are counted over."""
        ...

    def tokens_max(self, query: Query) -> int:
        """The most tokens that the answer may have: what is held for it, and where it is cut off."""
        ...

    def begin(self, query: Query, retrieval: Retrieval) -> Delivered | Generation:
        """Begin the answer, or give all of it. Computes; call it in a thread."""
        ...


class Transcript:
    """The text of an answer as it grows, never beyond its ceiling."""

    def __init__(self, count: Callable[[str], int], tokens_max: int) -> None:
        """``count`` gives the tokens of a text; what a blank separates must count separately."""
        self._count = count
        self._tokens_max = tokens_max
        self._room = tokens_max * CHARS_PER_TOKEN_MAX
        self._settled = 0
        self._open = ""
        self._pieces: list[str] = []
        self.full = False

    @property
    def text(self) -> str:
        """Everything that was taken."""
        return "".join(self._pieces)

    def take(self, piece: str) -> str:
        """Take what fits of a piece, and give it. After less than all of it the transcript is full."""
        kept = piece[: self._room]
        if not self._fits(kept):
            short, long = 0, len(kept)
            while long - short > 1:
                middle = (short + long) // 2
                short, long = (middle, long) if self._fits(kept[:middle]) else (short, middle)
            kept = kept[:short]
        self.full = len(kept) < len(piece)
        self._room -= len(kept)
        self._pieces.append(kept)
        whole = self._open + kept
        end = 1 + max(map(whole.rfind, _BLANKS))
        self._settled += self._count(whole[:end])
        self._open = whole[end:]
        return kept

    def _fits(self, more: str) -> bool:
        return self._settled + self._count(self._open + more) <= self._tokens_max
