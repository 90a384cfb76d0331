"""The dense index: an immutable FAISS snapshot, a delta, and a mask; a new view is a new object.

Which rows are found, and in which order, is decided by :mod:`retrieval.similarity`, the same on every processor. What
reads all vectors only proposes rows: it adds in float32, in an order of its own.

Nothing that is being searched is ever changed. FAISS is loaded when the first snapshot is made, which must be after
any fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from retrieval.embedding import Vector, Vectors
from retrieval.similarity import Floats, cosines, stepped

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_DELTA_MIN: Final = 1_024


@dataclass(frozen=True, slots=True)
class DenseIndex:
    """Vectors by row number, searched exactly by inner product.

    Rows ``0 .. len(snapshot)`` are in the FAISS index, the rest in ``delta``.
    """

    dimension: int
    snapshot: Any = None
    delta: Vectors | None = None

    def __len__(self) -> int:
        """The number of rows, masked ones included."""
        return self._snapshot_rows + (0 if self.delta is None else len(self.delta))

    @property
    def _snapshot_rows(self) -> int:
        return 0 if self.snapshot is None else int(self.snapshot.ntotal)

    def extended(self, vectors: Vectors) -> DenseIndex:
        """An index with further rows. The delta is merged into a new snapshot when it has grown by a quarter."""
        exact = stepped(vectors)
        delta = exact if self.delta is None else np.concatenate([self.delta, exact])
        if len(delta) < max(_DELTA_MIN, self._snapshot_rows // 4):
            return DenseIndex(self.dimension, self.snapshot, delta)
        faiss = _faiss()
        merged = faiss.IndexFlatIP(self.dimension)
        if self.snapshot is not None:
            merged.add(self.snapshot.reconstruct_n(0, self._snapshot_rows))
        merged.add(np.ascontiguousarray(delta))
        return DenseIndex(self.dimension, merged, None)

    def search(self, query: Vector, limit: int, allowed: Mask) -> tuple[Rows, Floats]:
        """The best ``limit`` allowed rows and their cosines, best first, ties by row.

        Args:
            query: of length 1.
            limit: at least 1.
            allowed: shape ``[len(self)]``.
        """
        # A sum of n products in float32 errs by n * 2**-24 (Higham 2002, section 3.1); twice that has the steps in it.
        error = 2 * self.dimension * 2.0**-24
        count = limit + limit // 4 + 1
        while True:
            rows, proposed = self._proposed(query, count, allowed)
            scores = self.scores(query, rows)
            order = np.lexsort((rows, -scores))[:limit]
            if len(rows) < count or float(proposed.min()) + error < scores[order[-1]]:
                return rows[order], scores[order]
            count *= 2  # what was left out may be as good as what is kept

    def scores(self, query: Vector, rows: Rows) -> Floats:
        """The cosines of given rows, in their order."""
        split = self._snapshot_rows
        old = rows < split
        vectors = np.empty((len(rows), self.dimension), np.float32)
        if old.any():
            vectors[old] = self.snapshot.reconstruct_batch(rows[old])
        if self.delta is not None and not old.all():
            vectors[~old] = self.delta[rows[~old] - split]
        return cosines(vectors, query)

    def _proposed(self, query: Vector, count: int, allowed: Mask) -> tuple[Rows, npt.NDArray[np.float32]]:
        """About the best ``count`` allowed rows and about their cosines: all that may be better than the worst."""
        split = self._snapshot_rows
        rows, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        if self.snapshot is not None and allowed[:split].any():
            faiss = _faiss()
            bits = np.packbits(allowed[:split], bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            found, numbers = self.snapshot.search(query[None], count, params=faiss.SearchParameters(sel=selector))
            rows.append(numbers[0][numbers[0] >= 0])
            scores.append(found[0][numbers[0] >= 0])
        if self.delta is not None:
            inside = np.flatnonzero(allowed[split:])
            rows.append(inside + split)
            scores.append((self.delta @ query)[inside])  # to score a row takes less than to copy it
        every, values = np.concatenate(rows), np.concatenate(scores)
        best = np.argsort(-values, kind="stable")[:count]
        return every[best], values[best]


def _faiss() -> Any:
    """FAISS, loaded at its first use and so after any fork: searched in a forked child it hangs (faiss#5206)."""
    import faiss  # noqa: PLC0415

    return faiss
