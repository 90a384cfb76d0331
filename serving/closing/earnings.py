"""Earnings of the open period: what the records so far would give, kept up to date segment by segment.

What customers report of answers counts when the period is closed, and not before.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import sqlalchemy as sa

from attribution.runs.tally import LineKey, Tally
from metering import period_gate, periods, usage_index
from metering.money import Currency
from metering.usage_log import UsageLog
from serving.closing.crediting import COLUMNS, Sums, divided


class Earnings:
    """An estimate for contributors, seconds old. Costs each segment once. Thread-safe."""

    def __init__(self, engine: sa.Engine, log: UsageLog) -> None:
        self._engine = engine
        self._log = log
        self._lock = threading.Lock()
        self._period = ""
        self._seen: set[str] = set()
        self._sums, self._tally = Sums(), Tally()
        self._paid: dict[str, int] = {}

    def of(self, contributor: str, currency: Currency) -> dict[str, Any]:
        """The open period of one contributor.

        Raises:
            SegmentError: a segment is missing or altered.
        """
        with self._lock:
            self._refresh()
            tally, period, paid = self._tally, self._period, self._paid.get(contributor, 0)
            earned: dict[tuple[str, int], int] = {}
            for (name, document, _, version), units in tally.credited.items():
                if name == contributor:
                    earned[document, version] = earned.get((document, version), 0) + units
            documents: dict[str, dict[str, int]] = {}
            for (document, version), units in earned.items():
                line = tally.lines[LineKey(document, version)]
                entry = documents.setdefault(document, {"retrieved": 0, "cited": 0, "units": 0})
                entry["retrieved"] += line.retrieved
                entry["cited"] += line.cited
                entry["units"] += units
        return {
            "period": period,
            "estimated": currency.amount(paid),
            "documents": [
                {
                    "document": document,
                    "retrieved": entry["retrieved"],
                    "cited": entry["cited"],
                    "estimated": currency.amount(entry["units"]),
                }
                for document, entry in sorted(documents.items())
            ],
        }

    def _refresh(self) -> None:
        with self._engine.connect() as connection:
            period = period_gate.first_open(connection, periods.of(time.time_ns() // 1_000_000))
            table = usage_index.segments
            found = connection.execute(sa.select(table.c.name, table.c.sha256).where(table.c.period == period)).all()
        if period != self._period:
            self._period, self._seen, self._sums, self._tally, self._paid = period, set(), Sums(), Tally(), {}
        if self._seen.issuperset(name for name, _ in found):
            return
        for name, sha256 in found:
            if name not in self._seen:
                self._sums.add(divided(self._log.read(name, sha256, COLUMNS)))
                self._seen.add(name)
        self._tally = self._sums.tally()
        self._paid = self._tally.credited_to()
