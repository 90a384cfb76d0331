"""Outcomes as customers report them: kept for ever, the latest of each receipt counts, until its period is closed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import groupby
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from attribution.runs.adopted import OUTCOMES, Rules
from attribution.runs.outcomes import WEIGHT_ONE, Outcome
from attribution.runs.tally import CreditKey
from metering import period_gate, usage_index
from serving.closing.crediting import Merge, summed
from serving.closing.hourly_parts import Rows

METADATA = sa.MetaData()

_ID = sa.String(200)

outcomes = sa.Table(
    "outcomes",
    METADATA,
    sa.Column("receipt", _ID, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", _ID, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("value", sa.BigInteger, nullable=True),
    sa.Column("rating_ppm", sa.Integer, nullable=True),
)

REVISIONS_MAX: Final = 100
"""How often the outcome of one receipt can be reported."""
_KEY: Final = ["account", *CreditKey._fields, "weight"]


class OutcomeRefused(RuntimeError):
    """An outcome that comes too late, or too often."""


class UnknownReceipt(LookupError):
    """The customer has no such receipt in the log."""


def report(engine: sa.Engine, account: str, receipt: str, outcome: Outcome) -> int:
    """Store what a customer says of an answer, and give its revision, from 1. Repeating a report is harmless.

    Raises:
        OutcomeError: it cannot be.
        UnknownReceipt: the customer has no such receipt in the log.
        OutcomeRefused: its period is closed, or it was revised too often.
    """
    outcome.checked()
    with engine.begin() as connection:
        period_gate.lock(connection)
        period = connection.execute(_period_of(account, receipt)).scalar_one_or_none()
        if period is None:
            raise UnknownReceipt(receipt)
        if period_gate.is_closed(connection, period):
            raise OutcomeRefused(f"period {period} is closed, and its outcomes with it")
        latest = sa.select(outcomes).where(outcomes.c.receipt == receipt).order_by(outcomes.c.revision.desc()).limit(1)
        before = connection.execute(latest).first()
        if before is not None and Outcome(before.value, before.rating_ppm) == outcome:
            return int(before.revision)
        revision = 1 if before is None else int(before.revision) + 1
        if revision > REVISIONS_MAX:
            raise OutcomeRefused(f"the outcome of a receipt can be reported {REVISIONS_MAX} times")
        row = {"receipt": receipt, "revision": revision, "account": account, "at_ms": time.time_ns() // 1_000_000}
        connection.execute(sa.insert(outcomes).values(**row, **outcome._asdict()))
        return revision


def latest_of(engine: sa.Engine, receipt: str) -> Outcome | None:
    """The outcome of a receipt that counts."""
    query = sa.select(outcomes).where(outcomes.c.receipt == receipt).order_by(outcomes.c.revision.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).first()
    return None if row is None else Outcome(row.value, row.rating_ppm)


def of_period(engine: sa.Engine, period: str, account: str | None = None) -> dict[str, dict[str, Outcome]]:
    """The outcomes that count in a period, by account and receipt; of one account, where it is named."""
    receipts, segments = usage_index.receipts, usage_index.segments
    query = (
        sa.select(outcomes)
        .join_from(outcomes, receipts, outcomes.c.receipt == receipts.c.id)
        .join(segments, receipts.c.segment == segments.c.name)
        .where(segments.c.period == period)
        .order_by(outcomes.c.account, outcomes.c.receipt, outcomes.c.revision)
    )
    if account is not None:
        query = query.where(outcomes.c.account == account)
    found: dict[str, dict[str, Outcome]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query):
            found.setdefault(row.account, {})[row.receipt] = Outcome(row.value, row.rating_ppm)
    return found


class Moves:
    """What the outcomes of a period move between documents, gathered part by part."""

    def __init__(self, period: str, reported: dict[str, dict[str, Outcome]], rules: Rules) -> None:
        self._rule = OUTCOMES[rules.outcomes]
        self._period = period
        self._reported = reported
        self._accounts = pa.array(sorted(reported), pa.string())
        self._cells = Merge(_KEY, ["units"])

    def add(self, rows: Rows) -> None:
        """Take in an hour."""
        records = rows.records
        concerned = pc.and_(pc.is_in(records["account"], self._accounts), pc.greater(records["earned"], 0))
        places = np.flatnonzero(concerned.to_numpy())
        if not len(places):
            return
        some = records.take(pa.array(places))
        weights = np.zeros(len(records), np.int64)
        columns = (some[name].to_pylist() for name in ("account", "id", "charge"))
        weights[places] = [self._weight(*row) for row in zip(*columns, strict=True)]
        of_credit = rows.credits["record"]
        credits_ = rows.credits.append_column("weight", pa.array(weights[of_credit.to_numpy()]))
        for name in ("account", "policy_version"):
            credits_ = credits_.append_column(name, records[name].take(of_credit))
        self._cells.add(summed(credits_.filter(pc.greater(credits_["weight"], 0)), _KEY, ["units"]))

    def found(self) -> Iterable[tuple[str, dict[CreditKey, int]]]:
        """For each customer who reported something, what it moved; in the order of the accounts."""
        rows = sorted(self._cells.rows())
        for account, cells in groupby(rows, key=lambda row: str(row[0])):
            seed = f"{self._period}\n{account}".encode()
            yield account, self._rule.moved(((CreditKey(*row[1:5]), row[5], row[6]) for row in cells), seed)

    def _weight(self, account: str, receipt: str, charge: int) -> int:
        outcome = self._reported[account].get(receipt)
        return WEIGHT_ONE if outcome is None else self._rule.weight(outcome, charge)


def _period_of(account: str, receipt: str) -> sa.Select[str]:
    receipts, segments = usage_index.receipts, usage_index.segments
    return (
        sa.select(segments.c.period)
        .join_from(receipts, segments, receipts.c.segment == segments.c.name)
        .where(receipts.c.id == receipt, receipts.c.account == account)
    )
