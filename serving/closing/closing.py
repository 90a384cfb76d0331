"""Closing a period: pin its segments, run the attribution, post the credits, issue the statements.

A close that is killed is resumed by calling it again: the period's segments are pinned by the first step, and every
later step gives the same bytes and posts under the same ids.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from attribution.runs.adopted import INPUTS, NEW_RUNS, Rules
from attribution.runs.statements import Issue, canonical
from attribution.runs.tally import CreditKey, Tally
from metering import ledger, period_gate, periods, usage_index
from metering.ledger import Transfer
from metering.money import Currency
from metering.records import UsageRecord
from metering.usage_log import Segment, UsageLog
from serving.books import Books
from serving.closing import run_files, transparency_log
from serving.closing.ablation import ablation_of
from serving.closing.crediting import Sums
from serving.closing.hourly_parts import Job, Progress, jobs_of, parts_of, prune
from serving.closing.outcomes import Moves, of_period
from serving.closing.run_files import HourDigest

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


@dataclass(frozen=True, slots=True)
class Run:
    """What a run computed, before it is signed and posted."""

    issue: Issue
    tally: Tally
    jobs: list[Job]
    """Its hours, whose parts are on disk."""
    hours: list[HourDigest]
    moved: list[tuple[str, CreditKey, int]]
    """What customers' outcomes moved: whose, to whom, units."""

    def summary(self, currency: Currency) -> dict[str, Any]:
        """The run as the command line and the operator's interface show it."""
        totals, credited = self.tally.totals, self.tally.credited_to()
        return {
            "run_id": self.issue.run_id,
            "period": self.issue.manifest["period"],
            "input_root": self.issue.manifest["input_root"],
            "policy_version": self.issue.manifest["policy_version"],
            "value_functions": self.issue.manifest["value_functions"],
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


Posted = Callable[[sa.Connection, Run], None]
"""Is told of a close in its last transaction, and may raise."""


def segments_of(engine: sa.Engine, period: str) -> list[Segment]:
    """The registered segments of a period."""
    table, hours = usage_index.segments, usage_index.segment_hours
    found: dict[str, list[tuple[int, int]]] = {}
    with engine.connect() as connection:
        rows = connection.execute(sa.select(table).where(table.c.period == period).order_by(table.c.name)).all()
        query = sa.select(hours).join_from(hours, table, hours.c.segment == table.c.name)
        for row in connection.execute(query.where(table.c.period == period).order_by(hours.c.hour)):
            found.setdefault(row.segment, []).append((row.hour, row.records))
    return [
        Segment(row.shard, row.first, row.last, row.records, row.sha256, tuple(found.get(row.name, ()))) for row in rows
    ]


def compute_run(
    books: Books,
    log: UsageLog,
    segments: Sequence[Segment],
    period: str,
    default_policy: int,
    folder: Path,
    progress: Progress | None = None,
    *,
    rules: Rules = NEW_RUNS,
    rows: bool = True,
) -> Run:
    """Run the attribution over segments, in whatever order they come.

    Args:
        books: the outcomes, the agreements of the audit by ablation, the contributors and the currency.
        log: where the segments are.
        segments: of the period.
        period: which one.
        default_policy: the version that an empty run names.
        folder: where the hours' parts are kept, so that what is there already is not computed again.
        progress: is told how far it is.
        rules: what it is computed by.
        rows: whether the parts must have their rows, as what is archived must; sums alone make a preview.

    Raises:
        SegmentError: one is missing or altered.
        RunError: a record cannot be attributed.
    """
    reported = of_period(books.engine, period)
    books.samples.store()  # of all that is in the segments: each text was on disk before its record was captured
    sums, moves, hours = Sums(), Moves(period, reported, rules), list[HourDigest]()
    jobs = jobs_of(log, segments, folder, rules)
    for part in parts_of(jobs, progress, rows=rows or bool(reported)):
        sums.add(part)
        if reported and part.rows is not None:
            moves.add(part.rows)
        hours.append(HourDigest(part.hour, part.credits_digest))
    prune(jobs, folder)
    hours.sort()
    tally, moved = sums.tally(rules), list[tuple[str, CreditKey, int]]()
    for account, each in moves.found():
        tally.move(each)
        moved += [(account, key, units) for key, units in each.items()]
    issue = Issue(
        period=period,
        input_root=INPUTS[rules.input](each.hour for each in hours).root.hex(),
        tally=tally,
        credits_sha256=hashlib.sha256(canonical([[each.credits for each in hours], moved])).hexdigest(),
        outcomes=sum(map(len, reported.values())),
        contributors=books.catalogue.contributors(),
        currency=books.currency,
        default_policy=default_policy,
        rules=rules,
        ablation=ablation_of(books.engine, period),
    )
    return Run(issue, tally, jobs, hours, moved)


def preview(books: Books, period: str, progress: Progress | None = None) -> Run:
    """What closing the period now would give, without closing it.

    Raises:
        PeriodError: not a period.
        ClosingError: a future one, unless it is open because the ones before it are closed.
    """
    if periods.parse(period) != open_period(books.engine):
        _check(period, early=True)
    return _compute_run(books, period, progress, rows=False)


def close(
    books: Books, period: str, *, early: bool, progress: Progress | None = None, posted: Posted | None = None
) -> Run:
    """Close a period for ever. Captured records must be drained before.

    Raises:
        PeriodError: not a period.
        ClosingError: a future one, one that is not over (without ``early``), one that is closed, or any while another
            caller is closing one.
    """
    # Two would write the same files. The lock goes with its process, so what a killed close left can be resumed.
    with books.directory.closing() as alone:
        if not alone:
            raise ClosingError(
                f"a period is being closed at this moment: look whether {period} is closed when it is done"
            )
        return _close(books, period, early=early, progress=progress, posted=posted)


def ensure_closable(books: Books, period: str, *, early: bool) -> None:
    """Refuse a period that cannot be closed now.

    Raises:
        PeriodError: not a period.
        ClosingError: as :func:`close`.
    """
    done = _closed_by(books, periods.parse(period))
    if done is not None:
        raise ClosingError(f"period {period} is already closed by {done}; corrections go into the next period")
    _check(period, early=early)


def _close(books: Books, period: str, *, early: bool, progress: Progress | None, posted: Posted | None) -> Run:
    ensure_closable(books, period, early=early)
    with books.engine.begin() as connection:
        closed_ms = period_gate.close(connection, period, _now_ms())
    found = _compute_run(books, period, progress, rows=True)
    checkpoint, bundles = found.issue.bundles(books.signer)
    _write(books.directory.run(period), found, checkpoint, bundles)
    manifest = canonical(found.issue.manifest)
    with books.engine.begin() as connection:
        connection.execute(
            sa.insert(runs).values(
                period=period,
                run_id=found.issue.run_id,
                manifest=manifest.decode(),
                checkpoint=checkpoint,
            )
        )
        transparency_log.append(connection, found.issue.run_id, manifest)
        rows = [
            {"period": period, "contributor": name, "bundle": canonical(bundle).decode()}
            for name, bundle in zip(found.issue.contributors, bundles, strict=True)
        ]
        if rows:
            connection.execute(sa.insert(statements), rows)
        ledger.post(connection, list(_transfers(found, period, closed_ms)))
        if posted is not None:
            posted(connection, found)
    shutil.rmtree(books.directory.parts(period), ignore_errors=True)
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


def inclusion(books: Books, record: UsageRecord) -> dict[str, Any] | None:
    """The proof that a record is in the run of its period, and that run in the log.

    None if there is no run yet, or its files are not what was written: the audit says which.
    """
    receipts, segments = usage_index.receipts, usage_index.segments
    query = (
        sa.select(runs.c.run_id, runs.c.period, runs.c.manifest)
        .join_from(runs, segments, runs.c.period == segments.c.period)
        .join(receipts, receipts.c.segment == segments.c.name)
        .where(receipts.c.id == record.id)
    )
    with books.engine.connect() as connection:
        run = connection.execute(query).first()
    if run is None:
        return None
    try:
        rules = Rules.of(json.loads(run.manifest)["algorithms"])
        folder, hour = books.directory.run(run.period), periods.hour_of(record.finished_ms)
        found = run_files.inclusion(folder, hour, record.id, INPUTS[rules.input])
    except (OSError, ValueError, KeyError):
        return None
    found["record"]["content"] = record.encode().decode()
    return {**found, "run": json.loads(run.manifest), "log": transparency_log.inclusion(books, run.run_id)}


def open_period(engine: sa.Engine) -> str:
    """The period that what is captured now belongs to."""
    with engine.connect() as connection:
        return period_gate.first_open(connection, periods.of(_now_ms()))


def _compute_run(books: Books, period: str, progress: Progress | None, *, rows: bool) -> Run:
    return compute_run(
        books,
        books.log,
        segments_of(books.engine, period),
        period,
        books.rulebook.policy.version,
        books.directory.parts(period),
        progress,
        rows=rows,
    )


def _closed_by(books: Books, period: str) -> str | None:
    """The id of the run that closed a period."""
    with books.engine.connect() as connection:
        return connection.execute(sa.select(runs.c.run_id).where(runs.c.period == period)).scalar_one_or_none()


def _check(period: str, *, early: bool) -> None:
    current = periods.of(_now_ms())
    if periods.parse(period) > current:
        raise ClosingError(f"period {period} is in the future; it is {current} now")
    if period == current and not early:
        raise NotOverError(f"period {period} is not over; it can only be closed early")


def _transfers(found: Run, period: str, at_ms: int) -> Iterable[Transfer]:
    amounts = {ledger.contributor(name): units for name, units in found.tally.credited_to().items()}
    amounts[ledger.RESIDUAL] = found.tally.totals.residual
    for account, units in sorted(amounts.items()):
        if units:
            run = found.issue.run_id
            yield Transfer(f"{run}/{account}", at_ms, ledger.pool(period), account, units, ledger.ROYALTY, run)


def _write(folder: Path, found: Run, checkpoint: str, bundles: Sequence[dict[str, Any]]) -> None:
    """The run's files: for archives, proofs and other programs."""
    texts = {
        "manifest.json": canonical(found.issue.manifest),
        "checkpoint.txt": checkpoint.encode(),
        "statements.jsonl": b"".join(canonical(bundle) + b"\n" for bundle in bundles),
    }
    run_files.write(folder, [job.path for job in found.jobs], found.hours, found.moved, texts)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
