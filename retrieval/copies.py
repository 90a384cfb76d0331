"""The copies that an index leaves out, and when one is found after all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from retrieval.passage_table import StoredPassage

FOUND_MAX: Final = 8
"""How many copies of one original are found beside it, at most."""

Terms = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Copy:
    """What is kept of a copy."""

    passage: int
    document: int
    """The document's number."""
    terms: Terms
    """Its distinct terms."""


class Copies:
    """The copies of one view of the index, by the number of their original. Never changed."""

    def __init__(self, of: dict[int, list[Copy]] | None = None) -> None:
        self._of = of or {}

    def updated(self, changed: Collection[int], added: Iterable[StoredPassage]) -> Copies:
        """Without those of the documents that changed, and with others."""
        of = {}
        for original, copies in self._of.items():
            left = [each for each in copies if each.document not in changed]
            if left:
                of[original] = left
        for each in added:
            if each.original is not None:
                copy = Copy(each.id, each.document, np.unique(each.terms))
                of.setdefault(each.original, []).append(copy)
        return Copies(of)

    def named(
        self, terms: Terms, originals: Sequence[StoredPassage], refused: Collection[int]
    ) -> list[tuple[int, Copy]]:
        """Copies that name what is asked for where their original, of that index, does not.

        The difference is then what is asked for, so a page that only looks like a copy is found by its own words.
        """
        found = []
        for index, original in enumerate(originals):
            copies = self._of.get(original.id)
            missing = np.setdiff1d(terms, original.terms) if copies else terms[:0]
            if copies and len(missing):
                naming = [
                    each for each in copies if np.isin(missing, each.terms).any() and each.document not in refused
                ]
                found += [(index, each) for each in sorted(naming, key=lambda each: each.passage)[:FOUND_MAX]]
        return found
