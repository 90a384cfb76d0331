"""Measuring: best of several rounds, ours and the rival's in turn, so that a busy machine hurts both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Result:
    """One comparison. ``ratio`` above 1 says that we are better."""

    what: str
    ours: float
    rival: str
    theirs: float
    unit: str
    more_is_better: bool = True

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.more_is_better else self.theirs / self.ours

    def row(self) -> tuple[str, str, str, str, str]:
        return (
            self.what,
            f"{self.ours:,.1f} {self.unit}",
            self.rival,
            f"{self.theirs:,.1f} {self.unit}",
            f"{self.ratio:.2f}",
        )


def rates(count: int, *contenders: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Things a second of each contender, best of ``rounds``, where one call does ``count`` things."""
    best = [0.0] * len(contenders)
    for _ in range(rounds):
        for place, contender in enumerate(contenders):
            began = time.perf_counter()
            contender()
            best[place] = max(best[place], count / (time.perf_counter() - began))
    return best
