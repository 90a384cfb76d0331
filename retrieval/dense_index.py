"""The dense index: an immutable FAISS snapshot, a delta, and a mask; a new view is a new object.

Nothing that is being searched is ever changed. FAISS is loaded when the first snapshot is made, which must be after
any fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from retrieval.embedding import Vector, Vectors

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
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
        delta = vectors if self.delta is None else np.concatenate([self.delta, vectors])
        if len(delta) < max(_DELTA_MIN, self._snapshot_rows // 4):
            return DenseIndex(self.dimension, self.snapshot, delta)
        faiss = _faiss()
        merged = faiss.IndexFlatIP(self.dimension)
        if self.snapshot is not None:
            merged.add(self.snapshot.reconstruct_n(0, self._snapshot_rows))
        merged.add(np.ascontiguousarray(delta))
        return DenseIndex(self.dimension, merged, None)

    def search(self, query: Vector, limit: int, allowed: Mask) -> tuple[Rows, Scores]:
        """The best ``limit`` allowed rows and their cosines, best first; ``allowed`` has shape ``[len(self)]``."""
        split = self._snapshot_rows
        rows, scores = [], []
        if self.snapshot is not None and allowed[:split].any():
            faiss = _faiss()
            bits = np.packbits(allowed[:split], bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            found, numbers = self.snapshot.search(query[None], limit, params=faiss.SearchParameters(sel=selector))
            rows.append(numbers[0][numbers[0] >= 0])
            scores.append(found[0][numbers[0] >= 0])
        if self.delta is not None:
            inside = np.flatnonzero(allowed[split:])
            rows.append(inside + split)
            scores.append(self.delta[inside] @ query)
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        every, values = np.concatenate(rows), np.concatenate(scores)
        order = np.lexsort((every, -values))[:limit]
        return every[order], values[order]

    def scores(self, query: Vector, rows: Rows) -> Scores:
        """The cosines of given rows, in their order."""
        split = self._snapshot_rows
        result = np.empty(len(rows), np.float32)
        old = rows < split
        if old.any():
            result[old] = self.snapshot.reconstruct_batch(rows[old]) @ query
        if self.delta is not None and not old.all():
            result[~old] = self.delta[rows[~old] - split] @ query
        return result


def _faiss() -> Any:
    """FAISS, loaded at its first use and so after any fork: searched in a forked child it hangs (faiss#5206)."""
    import faiss  # noqa: PLC0415

    return faiss
