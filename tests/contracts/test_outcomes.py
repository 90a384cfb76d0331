"""Outcomes, on both databases: kept for ever, the latest counts, and never one more when the period is closed."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from attribution.runs.outcomes import Outcome
from metering import period_gate, usage_index
from serving.closing import outcomes, transparency_log

PERIOD = "2026-01"
GOOD, BAD = Outcome(None, 10**6), Outcome(0, None)


@pytest.fixture
def logged(engine: sa.Engine) -> sa.Engine:
    """A database with three receipts of two customers in the log."""
    with engine.begin() as connection:
        connection.execute(
            sa.insert(usage_index.shards), [{"shard": shard, "last": "0-0", "fence": 0} for shard in range(2)]
        )
        segment = {"name": "s", "shard": 1, "first": "1-0", "last": "3-0", "records": 3, "sha256": "", "charge": 3}
        connection.execute(sa.insert(usage_index.segments).values(**segment, period=PERIOD))
        rows = [("r1", "ann"), ("r2", "ann"), ("r3", "bob")]
        connection.execute(
            sa.insert(usage_index.receipts),
            [{"id": name, "account": account, "segment": "s", "row": row} for row, (name, account) in enumerate(rows)],
        )
    return engine


def close(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        period_gate.close(connection, PERIOD, 1)


def test_the_latest_of_each_receipt_counts(logged: sa.Engine):
    assert [outcomes.report(logged, "ann", "r1", each) for each in (GOOD, BAD, BAD, GOOD)] == [1, 2, 2, 3]
    assert outcomes.report(logged, "bob", "r3", BAD) == 1
    assert outcomes.of_period(logged, PERIOD) == {"ann": {"r1": GOOD}, "bob": {"r3": BAD}}
    assert outcomes.of_period(logged, PERIOD, "bob") == {"bob": {"r3": BAD}}
    assert outcomes.of_period(logged, "2026-02") == {}
    assert outcomes.latest_of(logged, "r1") == GOOD
    assert outcomes.latest_of(logged, "r2") is None


@pytest.mark.parametrize(("account", "receipt"), [("ann", "r3"), ("bob", "r1"), ("ann", "r9"), ("zoe", "r1")])
def test_a_receipt_of_another_is_unknown(logged: sa.Engine, account: str, receipt: str):
    with pytest.raises(outcomes.UnknownReceipt):
        outcomes.report(logged, account, receipt, GOOD)
    assert outcomes.of_period(logged, PERIOD) == {}


def test_after_the_close_nothing_is_added(logged: sa.Engine):
    outcomes.report(logged, "ann", "r1", GOOD)
    close(logged)
    for outcome in (GOOD, BAD):
        with pytest.raises(outcomes.OutcomeRefused, match="2026-01 is closed"):
            outcomes.report(logged, "ann", "r1", outcome)
    assert outcomes.of_period(logged, PERIOD) == {"ann": {"r1": GOOD}}


def test_reports_at_the_same_moment_are_all_kept(logged: sa.Engine):
    said = [Outcome(value, None) for value in range(8)]
    revisions: list[int] = []
    threads = [
        threading.Thread(target=lambda each=each: revisions.append(outcomes.report(logged, "ann", "r1", each)))
        for each in said
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(1, 9))


def test_what_a_close_has_seen_does_not_change_behind_it(logged: sa.Engine):
    """A report that is under way holds the close up; one that comes while it closes is refused."""
    seen: list[dict[str, dict[str, Outcome]]] = []

    def closing() -> None:
        close(logged)
        seen.append(outcomes.of_period(logged, PERIOD))

    accepted: list[str] = []

    def reporting(name: str, account: str) -> None:
        for value in range(20):
            try:
                outcomes.report(logged, account, name, Outcome(value, None))
            except outcomes.OutcomeRefused:
                return
            accepted.append(name)

    threads = [threading.Thread(target=reporting, args=each) for each in (("r1", "ann"), ("r2", "ann"), ("r3", "bob"))]
    threads.append(threading.Thread(target=closing))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [outcomes.of_period(logged, PERIOD)]


def test_the_log_of_runs_is_numbered_from_0_and_takes_no_number_twice(engine: sa.Engine):
    for name in ("run-a", "run-b", "run-c"):
        with engine.begin() as connection:
            transparency_log.append(connection, name, name.encode())
    assert len(transparency_log.tree(engine)) == 3
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.insert(transparency_log.run_log).values(number=2, run_id="run-d", leaf="00"))
