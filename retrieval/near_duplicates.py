"""Near-duplicates: when a later text says what an earlier one said, nearly in its words.

Texts are compared by shingles (Broder 1997, "On the resemblance and containment of documents"): every run of three
stems inside a sentence, so that the order of sentences does not matter. What counts is containment: the part of the
later text's runs that the earlier one has. Between clearly a copy and clearly none, the embeddings decide. Pages
that fill the same form with other facts are not copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from retrieval.analysis import stems, term_ids
from retrieval.chunking import Span, sentences
from retrieval.similarity import cosine

RUN: Final = 3
"""Stems in a shingle."""
CONTAINED: Final = 0.5
"""A text of which the earlier one has this part is a copy. One word in five replaced leaves about half."""
ALIKE: Final = 0.3
"""From here on it is a copy if the embeddings agree."""
ALIKE_COSINE: Final = 0.9
SENTENCE_CONTAINED: Final = 0.6
"""Sentences are short and share more by chance."""
SHORT: Final = 4
"""A text of fewer runs is a copy only of a text with the same runs: it says too little to be nearly another."""
FACTS: Final = 0.05
"""So many of a text's words must be other facts in the same places for it to be a form that was filled anew."""
SKETCH: Final = 32

Runs = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float32]

_WORD: Final = re.compile(r"\w+")
_DIGIT: Final = re.compile(r"\d")
_SENTENCE_END: Final = re.compile(r"[.!?:\n]")
_FACTORS: Final = np.asarray([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


@dataclass(frozen=True, slots=True)
class Wording:
    """What is compared of a text."""

    text: str
    runs: Runs
    """Distinct and sorted."""
    vector: Callable[[], Vector]
    """Gives its embedding: asked for only where words alone do not decide."""


def runs(terms: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int32]) -> tuple[Runs, Indexes]:
    """The shingles of a text, as hashes, and the number of the sentence of each.

    Args:
        terms: the ids of its stems, sentence by sentence.
        lengths: how many of them each sentence has. A sentence shorter than a run is one run.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    padded = np.concatenate([terms.astype(np.uint64) + np.uint64(1), np.zeros(RUN - 1, np.uint64)])
    beyond = np.concatenate([owner, np.full(RUN - 1, -1)])
    mixed = np.zeros(len(terms), np.uint64)
    for place in range(RUN):
        inside = beyond[place : place + len(terms)] == owner
        mixed ^= _scrambled(np.where(inside, padded[place : place + len(terms)], np.uint64(0)) * _FACTORS[place])
    first = np.concatenate([[0], np.cumsum(lengths)])[owner]
    whole = beyond[RUN - 1 : RUN - 1 + len(terms)] == owner
    kept = whole | (np.arange(len(terms)) == first)
    return _scrambled(mixed[kept]), owner[kept]


def runs_of(text: str) -> Runs:
    """The distinct shingles of a whole text, sorted."""
    stemmed = [stems(text[start:end]) for start, end in sentences(text)]
    terms = term_ids([stem for sentence in stemmed for stem in sentence])
    return np.unique(runs(terms, np.asarray([len(each) for each in stemmed], np.int32))[0])


def contained(later: Runs, earlier: Runs) -> float:
    """The part of ``later`` that is in ``earlier``, both sorted and distinct; 0 where there is nothing."""
    if not len(later) or not len(earlier):
        return 0.0
    places = np.searchsorted(earlier, later)  # so that a passage in a whole book costs what the passage does
    return int(np.count_nonzero(earlier.take(places, mode="clip") == later)) / len(later)


def sketch(distinct: Runs) -> list[int]:
    """Up to ``SKETCH`` of a text's runs by which near-duplicates find each other: those of the smallest hashes.

    The same runs are small in every text, so near-duplicates have many of them in common. As signed 64-bit integers.
    """
    found: list[int] = np.sort(distinct)[:SKETCH].view(np.int64).tolist()
    return found


def repeats(later: Wording, earlier: Wording) -> bool:
    """Whether ``later`` is a near-duplicate of a part of ``earlier``, or of all of it."""
    part = contained(later.runs, earlier.runs)
    if part < ALIKE or (len(later.runs) < SHORT and not np.array_equal(later.runs, earlier.runs)):
        return False
    if part < CONTAINED and cosine(later.vector(), earlier.vector()) < ALIKE_COSINE:
        return False
    words = words_of([later.text, earlier.text])
    return not other_facts(words, np.asarray([0]), np.asarray([1])).item()


def relation(texts: Sequence[str], embed: Callable[[str], Vector]) -> Callable[[int, int], bool]:
    """Which of some texts repeats which: ``relation(later, earlier)``, by :func:`repeats`.

    What pairs have in common is counted at once, so that hundreds of texts that have nothing in common cost little.

    Args:
        texts: any number of them.
        embed: the embedding of a text, of length 1; called where words alone do not decide, once for each text.
    """
    vector = cache(embed)
    worded = [Wording(text, runs_of(text), partial(vector, text)) for text in texts]
    common = _in_common([each.runs for each in worded])

    def repeating(later: int, earlier: int) -> bool:
        some = common[later, earlier] >= ALIKE * len(worded[later].runs)
        return bool(some) and repeats(worded[later], worded[earlier])

    return repeating


def _in_common(distinct: Sequence[Runs]) -> Indexes:
    """How many runs each two texts have in common, shape ``[texts, texts]``."""
    texts = len(distinct)
    common = np.zeros((texts, texts), np.int64)
    if not texts:
        return common
    owner = np.repeat(np.arange(texts), [len(each) for each in distinct])
    hashes, run = np.unique(np.concatenate(distinct), return_inverse=True)
    having = owner[np.argsort(run, kind="stable")]
    count = np.bincount(run, minlength=len(hashes))
    first = np.cumsum(count) - count
    for text, own in enumerate(np.split(run, np.cumsum([len(each) for each in distinct])[:-1])):
        at, _ = _ranges(first[own], count[own])
        common[text] = np.bincount(having[at], minlength=texts)
    return common


@dataclass(frozen=True, slots=True)
class Words:
    """The words of some texts in order, with one entry a word, and how many of them each text has."""

    ids: npt.NDArray[np.uint32]
    facts: npt.NDArray[np.bool_]
    """Which are facts: words with a digit and names, that is with a capital inside a sentence."""
    lengths: Indexes


def words_of(texts: Iterable[str]) -> Words:
    """The words of each text, whatever their case."""
    words: list[str] = []
    facts: list[bool] = []
    edges = [0]
    for text in texts:
        end = 0
        for match in _WORD.finditer(text):
            word = match[0]
            inside = end > 0 and not _SENTENCE_END.search(text, end, match.start())
            facts.append((inside and word[0].isupper()) or _DIGIT.search(word) is not None)
            words.append(word.lower())
            end = match.end()
        edges.append(len(words))
    return Words(term_ids(words), np.asarray(facts, np.bool_), np.diff(edges))


def other_facts(words: Words, later: Indexes, earlier: Indexes) -> npt.NDArray[np.bool_]:
    """Which pairs of texts differ by what they say and not by how: most changes put one fact in the place of another.

    What was only inserted or left out does not count, so that footnotes do not make a copy an original. Places are
    told by the words that each text of the pair has once, as in patience diff: two facts are in the same place if as
    many of those words stand before them.

    Args:
        words: of all texts.
        later: for each pair, the number of the later text; shape ``[pairs]``, as the result.
        earlier: and that of the earlier one.
    """
    vocabulary, spelled = np.unique(words.ids, return_inverse=True)
    texts = len(words.lengths)
    cells = np.repeat(np.arange(texts), words.lengths) * len(vocabulary) + spelled
    counts = np.bincount(cells, minlength=texts * len(vocabulary)).reshape(texts, -1)
    places = int(words.lengths.max(initial=0)) + 1

    def compared(mine: Indexes, theirs: Indexes) -> tuple[Indexes, Indexes]:
        """For each pair and place, how many facts only the first text has, and for each pair, how many words."""
        at, pair = _ranges((np.cumsum(words.lengths) - words.lengths)[mine], words.lengths[mine])
        there = counts[theirs[pair], spelled[at]]
        shared = np.cumsum((there == 1) & (counts[mine[pair], spelled[at]] == 1))
        place = shared - np.concatenate([[0], shared])[np.searchsorted(pair, pair)]
        facts = words.facts[at] & (there == 0)
        found = np.bincount(pair[facts] * places + place[facts], minlength=len(mine) * places)
        return found.reshape(-1, places), np.bincount(pair[there == 0], minlength=len(mine))

    mine, changed = compared(later, earlier)
    theirs, _ = compared(earlier, later)
    swapped = np.minimum(mine, theirs).sum(axis=1)
    other: npt.NDArray[np.bool_] = (swapped > 0) & (swapped >= FACTS * words.lengths[later]) & (2 * swapped >= changed)
    return other


def repeated_sentences(worded: Sequence[Words], shingled: Sequence[tuple[Runs, Indexes]]) -> list[Indexes]:
    """For each sentence of each passage, which passage has it earlier.

    Args:
        worded: for each passage, the earliest first, the words of its sentences.
        shingled: for each passage, its :func:`runs`.

    Returns:
        For each passage, shape ``[sentences]``: the index of the passage that holds the original, or -1.
    """
    if not worded:
        return []
    counts = [len(each.lengths) for each in worded]
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    found = np.full(int(edges[-1]), -1, np.int64)
    hashes = np.concatenate([each for each, _ in shingled])
    sentence = np.concatenate([owner + edge for (_, owner), edge in zip(shingled, edges[:-1], strict=True)])
    words = Words(*(np.concatenate([getattr(each, name) for each in worded]) for name in Words.__slots__))
    passage = np.repeat(np.arange(len(worded)), counts)
    # A sentence that is there a thousand times is compared once: what it repeats, its doubles repeat, or else it.
    first = _first_of_same(words, hashes, sentence)
    hashes, sentence = hashes[first[sentence] == sentence], sentence[first[sentence] == sentence]
    order = np.argsort(hashes, kind="stable")  # so the sentences of one run stand in their order
    hashes, sentence = hashes[order], sentence[order]
    again = (hashes[1:] == hashes[:-1]) & (sentence[1:] == sentence[:-1])
    distinct = np.concatenate([[True], ~again]) if len(hashes) else np.empty(0, np.bool_)
    hashes, sentence = hashes[distinct], sentence[distinct]
    later, earlier, common = _pairs(hashes, sentence)
    sizes = np.bincount(sentence, minlength=len(found))
    needed = np.where(sizes < SHORT, sizes, SENTENCE_CONTAINED * sizes)[later]
    alike = (common >= needed) & ((sizes[later] >= SHORT) | (sizes[later] == sizes[earlier]))
    later, earlier = later[alike], earlier[alike]
    if len(later):
        compared, pairs = np.unique(np.concatenate([later, earlier]), return_inverse=True)
        same = ~other_facts(_of_texts(words, compared), *pairs.reshape(2, -1))
        for this, that in zip(later[same].tolist(), earlier[same].tolist(), strict=True):
            if found[this] < 0 and found[that] < 0:
                found[this] = passage[that]
    doubles = np.flatnonzero((first < np.arange(len(first))) & (sizes[first] > 0))
    originals = first[doubles]
    found[doubles] = np.where(found[originals] < 0, passage[originals], found[originals])
    return np.split(found, edges[1:-1])


def _first_of_same(words: Words, hashes: Runs, sentence: Indexes) -> Indexes:
    """For each sentence, the first that is the same in words and runs, which may be itself.

    ``sentence`` says, ascending, which sentence each of the runs is of.
    """
    seen: dict[tuple[bytes, bytes, bytes], int] = {}
    first = np.empty(len(words.lengths), np.int64)
    word, run = 0, 0
    ends = np.searchsorted(sentence, np.arange(len(first)), "right").tolist()
    for number, (length, runs_end) in enumerate(zip(words.lengths.tolist(), ends, strict=True)):
        same = (words.ids[word : word + length], words.facts[word : word + length], hashes[run:runs_end])
        first[number] = seen.setdefault((same[0].tobytes(), same[1].tobytes(), same[2].tobytes()), number)
        word, run = word + length, runs_end
    return first


def _of_texts(words: Words, texts: Indexes) -> Words:
    """The words of some texts, given by their numbers in ascending order."""
    kept = np.repeat(np.isin(np.arange(len(words.lengths)), texts), words.lengths)
    return Words(words.ids[kept], words.facts[kept], words.lengths[texts])


def sentences_of_others(texts: Sequence[str]) -> list[list[tuple[Span, int]]]:
    """For each text, the earliest first, the sentences that an earlier one has, with the index of that one.

    They are told by :func:`repeated_sentences`.
    """
    spans = [sentences(text) for text in texts]
    worded, shingled = [], []
    for text, own in zip(texts, spans, strict=True):
        said = [text[start:end] for start, end in own]
        stemmed = [stems(sentence) for sentence in said]
        terms = term_ids([stem for sentence in stemmed for stem in sentence])
        worded.append(words_of(said))
        shingled.append(runs(terms, np.asarray([len(each) for each in stemmed], np.int32)))
    return [
        [(span, first) for span, first in zip(own, found.tolist(), strict=True) if first >= 0]
        for own, found in zip(spans, repeated_sentences(worded, shingled), strict=True)
    ]


def _pairs(hashes: Runs, sentence: Indexes) -> tuple[Indexes, ...]:
    """Pairs of sentences with a run in common, by the later one: the later, the earlier, and how many runs.

    ``hashes`` are sorted, and the sentences of one hash stand in their order.
    """
    count = int(sentence.max(initial=0)) + 1
    codes = []
    for apart in range(1, len(hashes)):
        same = np.flatnonzero(hashes[apart:] == hashes[:-apart])
        if not len(same):
            break
        codes.append(sentence[same + apart] * count + sentence[same])
    pairs, common = np.unique(np.concatenate(codes or [np.empty(0, np.int64)]), return_counts=True)
    return pairs // count, pairs % count, common


def _scrambled(values: Runs) -> Runs:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _ranges(starts: Indexes, lengths: Indexes) -> tuple[Indexes, Indexes]:
    """The indexes of ranges, one after the other, and which range each is of."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    return np.arange(len(owner)) + (starts - first)[owner], owner
