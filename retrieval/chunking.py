"""Sentence-aware passages with exact spans.

All spans are offsets in code points, end exclusive, into the text that is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import sentencex

Span = tuple[int, int]

PASSAGE_CHARS_MAX: Final = 1_000
"""About 230 word pieces of English: inside what the embedding model was trained on."""

SENTENCE_CHARS_MAX: Final = 600
"""A longer run without a sentence end (a table, a listing) is cut at white space."""

SEGMENTED_CHARS_MAX: Final = 4_096
"""What is cut into sentences at a time. It takes the square of its length where quotes are not closed, in one call that
keeps Python's lock: 40,000 opening quotes stopped all threads for 3 s, a document of them for days."""

_PARAGRAPH = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True, slots=True)
class PassageSpan:
    """A span of the text and the spans of its sentences, in order, without surrounding white space."""

    start: int
    end: int
    sentences: tuple[Span, ...]


def sentences(text: str) -> list[Span]:
    """The sentences of ``text``; no sentence crosses a blank line."""
    found: list[Span] = []
    start = 0
    for gap in [*_PARAGRAPH.finditer(text), None]:
        end = gap.start() if gap else len(text)
        found += _paragraph_sentences(text, start, end)
        start = gap.end() if gap else end
    return found


def passages(text: str) -> list[PassageSpan]:
    """``text`` as passages of whole sentences, at most ``PASSAGE_CHARS_MAX`` characters each.

    A stretch that must be cut is cut into pieces of about equal length, preferably at a blank line, so that no
    passage is a lonely last sentence.
    """
    spans = sentences(text)
    result: list[PassageSpan] = []
    first = 0
    while first < len(spans):
        last = _fill(text, spans, first)
        result.append(PassageSpan(spans[first][0], spans[last - 1][1], tuple(spans[first:last])))
        first = last
    return result


def _fill(text: str, spans: list[Span], first: int) -> int:
    """The index after the last sentence of the passage that begins with sentence ``first``."""
    begin = spans[first][0]
    remaining = spans[-1][1] - begin
    pieces = -(-remaining // PASSAGE_CHARS_MAX)
    target = begin + remaining / pieces if pieces <= _BALANCED_PIECES else begin + PASSAGE_CHARS_MAX * 0.8
    last = first + 1
    best = last
    while last < len(spans) and spans[last][1] - begin <= PASSAGE_CHARS_MAX:
        ended = spans[last - 1][1]
        if ended >= target:
            break
        last += 1
        best = last
        # A paragraph that ends in the second half of the piece is a better place to cut than the target.
        if (
            last < len(spans)
            and spans[last - 1][1] - begin >= (target - begin) / 2
            and _PARAGRAPH.search(text, spans[last - 1][1], spans[last][0])
            and remaining > PASSAGE_CHARS_MAX
        ):
            break
    return best


_BALANCED_PIECES: Final = 3


def _paragraph_sentences(text: str, start: int, end: int) -> list[Span]:
    found: list[Span] = []
    while start < end:
        stop = min(end, start + SEGMENTED_CHARS_MAX)
        spans = _segmented(text, start, stop)
        if stop < end and spans and spans[-1][0] > start:
            stop, _ = spans.pop()  # it may go on behind what was read
        found += spans
        start = stop
    return found


def _segmented(text: str, start: int, end: int) -> list[Span]:
    found: list[Span] = []
    position = start
    for piece in sentencex.segment("en", text[start:end]):
        begin = text.index(piece, position, end) if piece else position
        position = begin + len(piece)
        found += _bounded(text, begin, position)
    return found


def _bounded(text: str, start: int, end: int) -> list[Span]:
    """The span without surrounding white space, cut where it is longer than a sentence may be."""
    found: list[Span] = []
    while True:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if end - start <= SENTENCE_CHARS_MAX:
            break
        window = text[start : start + SENTENCE_CHARS_MAX]
        cut = max(window.rfind("\n"), window.rfind(" "))
        cut = start + (cut if cut > 0 else SENTENCE_CHARS_MAX)
        stop = cut
        while stop > start and text[stop - 1].isspace():
            stop -= 1
        found.append((start, stop))
        start = cut
    if end > start:
        found.append((start, end))
    return found
