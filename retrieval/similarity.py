"""Similarity: the cosine of vectors of length 1, the same whatever is computed beside it, and on every processor.

A sum of floats depends on its order, and linear algebra libraries choose the order by the processor, by the number of
threads and by what else is computed in the same call. Here no sum is rounded, so it has no order: components are
multiples of ``STEP``, so products are multiples of its square, ``2 ** -48``, and float64 adds those exactly up to 32,
which vectors of length 1 do not come near to. The cosine is rounded once, to a multiple of ``STEP``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]

STEP: Final = 2.0**-24
"""The grid: components and cosines are multiples of it, as is every float16 of at most 1."""


def stepped(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors with their components rounded to multiples of ``STEP``; any shape."""
    steps = np.float32(STEP)
    rounded: npt.NDArray[np.float32] = np.rint(vectors / steps) * steps
    return rounded


def cosines(vectors: Vectors, vector: npt.NDArray[np.float32]) -> Floats:
    """The cosines of some vectors and one other, multiples of ``STEP``.

    Args:
        vectors: shape ``[n, dimension]``, ``stepped``, of length 1.
        vector: shape ``[dimension]``, of length 1.
    """
    exact = np.einsum("ij,j->i", vectors.astype(np.float64), stepped(vector).astype(np.float64))
    rounded: Floats = np.rint(exact / STEP) * STEP
    return rounded


def cosine(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """The cosine of two vectors of length 1, a multiple of ``STEP``."""
    return float(cosines(stepped(first)[None], second)[0])
