"""Closing a period: pin its segments, run the attribution, post the credits, issue the statements.

A close that is killed is resumed by calling it again: the period's segments are pinned by the first step, and every
later step gives the same bytes and posts under the same ids.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from attribution.agreement import Ablation
from attribution.run import Divided, InputRoot, Tally, divide
from attribution.statements import Issue, canonical
from metering import ledger, periods
from metering.drain import close_period, first_open
from metering.ledger import Transfer
from metering.money import Currency
from metering.usage_log import UsageLog, records
from retrieval.catalogue import Catalogue
from serving.ablation import ablation_of
from serving.assembly import Books

METADATA = sa.MetaData()

runs = sa.Table(
    "runs",
    METADATA,
    sa.Column("period", sa.String(7), primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False, unique=True),
    sa.Column("manifest", sa.Text, nullable=False),
    sa.Column("checkpoint", sa.Text, nullable=False),
)

statements = sa.Table(
    "statements",
    METADATA,
    sa.Column("period", sa.String(7), primary_key=True),
    sa.Column("contributor", sa.String(200), primary_key=True),
    sa.Column("bundle", sa.Text, nullable=False),
)


class ClosingError(RuntimeError):
    """A period that cannot be closed now."""


class NotOverError(ClosingError):
    """A period that can only be closed early."""


Progress = Callable[[int, int], None]
"""Called with the segments done and their total."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a run computed, before it is signed and posted."""

    issue: Issue
    tally: Tally
    parquet: bytes
    """The credits as a Parquet file, sorted by record."""

    def summary(self, currency: Currency) -> dict[str, Any]:
        """The run as the command line and the operator's interface show it."""
        totals, credited = self.tally.totals, self.tally.credited_to()
        return {
            "run_id": self.issue.run_id,
            "period": self.issue.manifest["period"],
            "input_root": self.issue.manifest["input_root"],
            "policy_version": self.issue.manifest["policy_version"],
            "records": totals.records,
            "charged": currency.amount(totals.charged),
            "cost": currency.amount(totals.cost),
            "platform": currency.amount(totals.platform),
            "pool": currency.amount(totals.credited + totals.residual),
            "credited": currency.amount(totals.credited),
            "residual": currency.amount(totals.residual),
            "ablation": self.issue.manifest["ablation"],
            "statements": [
                {"contributor": name, "credited": currency.amount(credited.get(name, 0))}
                for name in self.issue.contributors
            ],
        }


def segments_of(engine: sa.Engine, period: str) -> list[tuple[str, str]]:
    """Name and SHA-256 of the registered segments of a period."""
    table = ledger.segments
    query = sa.select(table.c.name, table.c.sha256).where(table.c.period == period).order_by(table.c.name)
    with engine.connect() as connection:
        return [(row.name, row.sha256) for row in connection.execute(query)]


def attribute(
    log: UsageLog,
    segments: Sequence[tuple[str, str]],
    period: str,
    catalogue: Catalogue,
    currency: Currency,
    default_policy: int,
    progress: Progress | None = None,
    ablation: Ablation = Ablation(),  # noqa: B008 # immutable
) -> Attribution:
    """Run the attribution over segments, in whatever order they come; ``ablation`` goes onto the statements.

    Raises:
        SegmentError: one is missing or altered.
        RunError: a record cannot be attributed.
    """
    tally, root = Tally(), InputRoot()
    rows: list[tuple[str, str, str, str, int]] = []
    for done, (name, sha256) in enumerate(segments, 1):
        table = log.read(name, sha256)
        root.add(table["id"].to_pylist(), table["leaf"].to_pylist())
        for divided in divide(list(records(table))):
            tally.add(divided)
            rows += _rows(divided)
        if progress:
            progress(done, len(segments))
    parquet = _parquet(rows)
    issue = Issue(
        period=period,
        input_root=root.root(),
        tally=tally,
        credits_sha256=hashlib.sha256(parquet).hexdigest(),
        contributors=catalogue.contributors(),
        currency=currency,
        default_policy=default_policy,
        ablation=ablation,
    )
    return Attribution(issue, tally, parquet)


def preview(books: Books, period: str, progress: Progress | None = None) -> Attribution:
    """What closing the period now would give, without closing it.

    Raises:
        PeriodError: not a period.
        ClosingError: a future one, unless it is open because the ones before it are closed.
    """
    if periods.parse(period) != open_period(books.engine):
        _check(period, early=True)
    return _attribute(books, period, progress)


def close(books: Books, period: str, *, early: bool, progress: Progress | None = None) -> Attribution:
    """Close a period for ever. What was captured must be drained before.

    Raises:
        PeriodError: not a period.
        ClosingError: a future one, one that is not over (without ``early``), or one that is closed.
    """
    _check(period, early=early)
    with books.engine.connect() as connection:
        done = connection.execute(sa.select(runs.c.run_id).where(runs.c.period == period)).scalar_one_or_none()
    if done is not None:
        raise ClosingError(f"period {period} is already closed by {done}; corrections go into the next period")
    with books.engine.begin() as connection:
        close_period(connection, period, _now_ms())
    found = _attribute(books, period, progress)
    checkpoint, bundles = found.issue.bundles(books.signer)
    _write(books.directory.run(period), found, checkpoint, bundles)
    with books.engine.begin() as connection:
        connection.execute(
            sa.insert(runs).values(
                period=period,
                run_id=found.issue.run_id,
                manifest=canonical(found.issue.manifest).decode(),
                checkpoint=checkpoint,
            )
        )
        rows = [
            {"period": period, "contributor": name, "bundle": canonical(bundle).decode()}
            for name, bundle in zip(found.issue.contributors, bundles, strict=True)
        ]
        if rows:
            connection.execute(sa.insert(statements), rows)
        ledger.post(connection, list(_transfers(connection, found, period)))
    return found


def statement(books: Books, contributor: str, period: str) -> dict[str, Any] | None:
    """The statement bundle of a contributor for a closed period, or None."""
    query = sa.select(statements.c.bundle).where(statements.c.period == period, statements.c.contributor == contributor)
    with books.engine.connect() as connection:
        bundle = connection.execute(query).scalar_one_or_none()
    return None if bundle is None else dict(json.loads(bundle))


def statement_periods(books: Books, contributor: str) -> list[str]:
    """The periods for which a contributor has statements, in order."""
    query = sa.select(statements.c.period).where(statements.c.contributor == contributor)
    with books.engine.connect() as connection:
        return list(connection.execute(query.order_by(statements.c.period)).scalars())


def open_period(engine: sa.Engine) -> str:
    """The period that what is captured now belongs to."""
    with engine.connect() as connection:
        return first_open(connection, periods.of(_now_ms()))


def _attribute(books: Books, period: str, progress: Progress | None) -> Attribution:
    return attribute(
        books.log,
        segments_of(books.engine, period),
        period,
        books.catalogue,
        books.currency,
        books.rulebook.policy.version,
        progress,
        ablation_of(books.engine, period),
    )


def _check(period: str, *, early: bool) -> None:
    current = periods.of(_now_ms())
    if periods.parse(period) > current:
        raise ClosingError(f"period {period} is in the future; it is {current} now")
    if period == current and not early:
        raise NotOverError(f"period {period} is not over; it can only be closed early")


def _rows(divided: Divided) -> Iterator[tuple[str, str, str, str, int]]:
    for each in divided.shares:
        yield each.record, each.document, each.contributor, each.role, each.units


def _parquet(rows: list[tuple[str, str, str, str, int]]) -> bytes:
    rows.sort()
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    names = ("record", "document", "contributor", "role", "units")
    types = (pa.string(), pa.string(), pa.string(), pa.string(), pa.int64())
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names=list(names))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _transfers(connection: sa.Connection, found: Attribution, period: str) -> Iterable[Transfer]:
    closed = sa.select(ledger.closed_periods.c.closed_ms).where(ledger.closed_periods.c.period == period)
    at_ms = int(connection.execute(closed).scalar_one())
    amounts = {ledger.contributor(name): units for name, units in found.tally.credited_to().items()}
    amounts[ledger.RESIDUAL] = found.tally.totals.residual
    for account, units in sorted(amounts.items()):
        if units:
            run = found.issue.run_id
            yield Transfer(f"{run}/{account}", at_ms, ledger.pool(period), account, units, ledger.ROYALTY, run)


def _write(folder: Path, found: Attribution, checkpoint: str, bundles: Sequence[dict[str, Any]]) -> None:
    """The run's files: for archives and other programs. The database is what Patronage itself reads."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"manifest.json": canonical(found.issue.manifest), "credits.parquet": found.parquet}
    files["checkpoint.txt"] = checkpoint.encode()
    files["statements.jsonl"] = b"".join(canonical(bundle) + b"\n" for bundle in bundles)
    for name, data in files.items():
        temporary = folder / f".{name}.tmp"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
