"""Registration: a segment enters the books, whole: index, period, transfers and mark in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from metering import ledger, period_gate, periods, usage_index
from metering.ledger import Transfer
from metering.usage_index import Mark, sums_by
from metering.usage_log import Segment

Owns = Callable[[sa.Connection], bool]
"""Whether the books are still the caller's, as a transaction sees it after it has locked a shard."""


def register(
    engine: sa.Engine, segment: Segment, table: pa.Table, before: str, token: int, owns: Owns | None = None
) -> bool:
    """Register a segment that follows the mark ``before`` of its shard, and post its transfers.

    Args:
        engine: of the books.
        segment: as it is stored.
        table: its records.
        before: the shard's mark, as the drainer knows it.
        token: the fencing token of the drainer's lease.
        owns: is asked in the transaction, where given.

    Returns:
        False, and nothing is registered, if another drainer has moved the mark, or has a later token, or the books
        are no longer the caller's.
    """
    with engine.begin() as connection:
        if not usage_index.move_mark(connection, segment.shard, before, Mark(segment.last, token)):
            return False
        if owns is not None and not owns(connection):
            connection.rollback()
            return False
        period = period_gate.first_open(connection, periods.of(table["finished_ms"][0].as_py()))
        usage_index.add(connection, segment, period, table)
        ledger.post(connection, _transfers(segment, period, table))
    return True


def _transfers(segment: Segment, period: str, table: pa.Table) -> list[Transfer]:
    """One transfer per payer and destination for the whole segment; the log has the detail.

    What is free is paid by the operator: first its own part, then the computing, then the documents.
    """
    destinations = {"platform": ledger.PLATFORM, "cost": ledger.COMPUTE, "royalty": ledger.pool(period)}
    free, parts = table["free"], {"account": table["account"]}
    for part in destinations:
        parts[f"given {part}"] = pc.min_element_wise(free, table[part])
        parts[f"paid {part}"] = pc.subtract(table[part], parts[f"given {part}"])
        free = pc.subtract(free, parts[f"given {part}"])
    amounts: dict[tuple[str, str], int] = defaultdict(int)
    for row in sums_by(pa.table(parts), ("account",), [name for name in parts if name != "account"]):
        for part, destination in destinations.items():
            amounts[ledger.customer(row["account"]), destination] += row[f"paid {part}"]
            amounts[ledger.PROMOTIONS, destination] += row[f"given {part}"]
    at_ms = table["finished_ms"][-1].as_py()
    return [
        Transfer(
            id=f"{segment.name}/{payer}/{destination}",
            at_ms=at_ms,
            debit=payer,
            credit=destination,
            amount=amount,
            kind=ledger.CHARGE,
            reference=segment.name,
        )
        for (payer, destination), amount in amounts.items()
        if amount
    ]
