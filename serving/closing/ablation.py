"""The audit by ablation: a costlier value function recomputes the period's sample; how far it agrees is kept.

Each query's agreement is stored as soon as it is computed, so a run that is killed goes on where it stopped. Agreements
are added to open periods only: a close puts them on its statements, which never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from attribution.agreement import Ablation, Agreement, agreement
from attribution.runs.run import owen_shares
from attribution.value_functions.likelihood import Unscorable
from metering import period_gate, periods, sql, usage_index
from metering.records import UsageRecord
from metering.usage_log import records
from serving.answering import sampled_texts
from serving.books import Books
from serving.valuing.functions import ValueFunction

METADATA = sa.MetaData()

table = sa.Table(
    "ablations",
    METADATA,
    sa.Column("record", sa.String(200), primary_key=True),
    sa.Column("period", sa.String(7), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
)


class AblationError(RuntimeError):
    """An audit that cannot be run; the message says why."""


Progress = Callable[[int, int], None]
"""Called with the queries done and their total."""


@dataclass(frozen=True, slots=True)
class AblationRun:
    """What a run of the audit did."""

    period: str
    ablation: Ablation
    """The whole period, with what earlier runs recomputed."""
    new: int
    destroyed: int
    """Sampled queries that were never recomputed and whose text is destroyed."""
    unscorable: tuple[str, ...]
    """Why queries could not be recomputed with this function; they wait for another."""

    def to_json(self) -> dict[str, Any]:
        """The run as the command prints it."""
        return {
            "period": self.period,
            **self.ablation.summary(),
            "new": self.new,
            "destroyed": self.destroyed,
            "unscorable": list(self.unscorable),
            "queries": [each.to_json() for each in self.ablation.agreements],
        }


def run(books: Books, period: str, function: ValueFunction, progress: Progress | None = None) -> AblationRun:
    """Recompute the part of a period's sample that is not recomputed yet. Captured records must be drained before.

    Raises:
        PeriodError: not a period.
        AblationError: the period is closed.
        SampleError: a text cannot be read.
        SegmentError: a segment is missing or altered.
        LikelihoodError: the function does not work.
    """
    periods.parse(period)
    _refuse_closed(books.engine, period)
    books.samples.store()
    books.samples.destroy()
    waiting = _waiting(books.engine, period)
    new = destroyed = 0
    unscorable: list[str] = []
    for done, record in enumerate(_records(books, waiting), 1):
        grounded = books.samples.open(record.id)
        if grounded is None:
            destroyed += 1
        else:
            try:
                found = agreement(
                    record, owen_shares(record)[0], function.table(grounded), function.name, function.model
                )
            except Unscorable as error:
                unscorable.append(f"{record.id}: {error}")
            else:
                _store(books.engine, period, record.id, found)
                new += 1
        if progress:
            progress(done, len(waiting))
    return AblationRun(period, ablation_of(books.engine, period), new, destroyed, tuple(unscorable))


def ablation_of(engine: sa.Engine, period: str) -> Ablation:
    """The audit of a period so far, in the order of the records' ids."""
    query = sa.select(table.c.body).where(table.c.period == period).order_by(table.c.record)
    with engine.connect() as connection:
        sampled = len(connection.execute(_sampled(period)).all())
        return Ablation(sampled, tuple(map(_DECODER.decode, connection.execute(query).scalars())))


def _sampled(period: str) -> sa.Select[tuple[str, str, int]]:
    """The sampled records that were charged in a period, and where each is in the log."""
    receipts, segments = usage_index.receipts, usage_index.segments
    return (
        sa.select(receipts.c.id, receipts.c.segment, receipts.c.row)
        .join(sampled_texts.table, sampled_texts.table.c.record == receipts.c.id)
        .join(segments, segments.c.name == receipts.c.segment)
        .where(segments.c.period == period)
        .order_by(receipts.c.segment, receipts.c.row)
    )


def _waiting(engine: sa.Engine, period: str) -> list[tuple[str, int]]:
    """Segment and row of the sampled records that are not recomputed."""
    known = sa.select(table.c.record).where(table.c.period == period)
    with engine.connect() as connection:
        done = set(connection.execute(known).scalars())
        return [(row.segment, row.row) for row in connection.execute(_sampled(period)) if row.id not in done]


def _records(books: Books, places: list[tuple[str, int]]) -> Iterator[UsageRecord]:
    """The records at those places; a segment is read once."""
    wanted: dict[str, list[int]] = {}
    for segment, row in places:
        wanted.setdefault(segment, []).append(row)
    query = sa.select(usage_index.segments.c.name, usage_index.segments.c.sha256)
    with books.engine.connect() as connection:
        hashes = {row.name: row.sha256 for row in connection.execute(query)}
    for segment, rows in wanted.items():
        stored = books.log.read(segment, hashes[segment])
        for row in rows:
            yield from records(stored.slice(row, 1))


def _store(engine: sa.Engine, period: str, record: str, found: Agreement) -> None:
    row: dict[str, object] = {"record": record, "period": period, "body": _ENCODER.encode(found).decode()}
    with engine.begin() as connection:
        period_gate.lock(connection)
        if period_gate.is_closed(connection, period):
            raise AblationError(
                f"period {period} was closed meanwhile: what was recomputed before is on its statements"
            )
        sql.insert_new(connection, table, [row])


def _refuse_closed(engine: sa.Engine, period: str) -> None:
    with engine.connect() as connection:
        if period_gate.is_closed(connection, period):
            raise AblationError(f"period {period} is closed: its audit is on its statements, and never changes")


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Agreement)
