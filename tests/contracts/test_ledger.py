"""The ledger on both databases: sums that are those of the transfers, balances of any moment, limits that hold."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from metering import ledger, sql
from metering.credit import funding_view, set_limit
from metering.ledger import DAY_MS, MAX_MOVED, LedgerError, Overcorrected, Overdrawn, Transfer, Uncountable
from metering.money import MAX_UNITS
from serving.store.database import open_database
from tests.records import MOMENT_MS


def moved(name: str, debit: str, credit: str, amount: int, at_ms: int = MOMENT_MS, **more) -> Transfer:
    return Transfer(name, at_ms, debit, credit, amount, more.pop("kind", ledger.FUNDING), name, **more)


def post(engine: sa.Engine, *transfers: Transfer, covered: tuple[str, ...] = ()) -> int:
    with engine.begin() as connection:
        return ledger.post(connection, transfers, covered=covered)


def balances(engine: sa.Engine, at_ms: int | None = None) -> dict[str, int]:
    with engine.connect() as connection:
        return ledger.balances(connection, at_ms)


def drifted(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return ledger.drifted(connection)


@contextmanager
def statements(engine: sa.Engine):
    """The SQL that runs meanwhile."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_: object) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", note)


class TestBalances:
    def test_balances_of_a_moment_are_those_of_what_had_happened(self, engine):
        """Days before, the same day before and after, the moment itself, and what is posted late."""
        day = MOMENT_MS // DAY_MS * DAY_MS
        moments = [day - 3 * DAY_MS, day - 1, day, day + 1, MOMENT_MS, MOMENT_MS + 1, day + DAY_MS - 1, day + DAY_MS]
        late_first = [moments[i] for i in (4, 7, 0, 6, 2, 1, 5, 3)]
        for i, at_ms in enumerate(late_first):
            post(engine, moved(f"t{i}", "bank", "customer:a", 1 << i, at_ms))
        for at_ms in [moment + step for moment in moments for step in (-1, 0, 1)]:
            expected = sum(1 << i for i, moment in enumerate(late_first) if moment <= at_ms)
            found = balances(engine, at_ms)
            assert (found.get("customer:a", 0), found.get("bank", 0)) == (expected, -expected), at_ms
            with engine.connect() as connection:
                assert ledger.balance(connection, "customer:a", at_ms) == expected
        assert balances(engine) == balances(engine, moments[-1]) == {"bank": -255, "customer:a": 255}

    def test_a_transfer_that_is_refused_moves_no_balance(self, engine):
        post(engine, moved("a", "bank", "customer:a", 5))
        for wrong in (moved("a", "bank", "customer:a", 6), moved("a", "bank", "customer:b", 5)):
            with pytest.raises(LedgerError, match="other contents"):
                post(engine, moved("b", "bank", "customer:c", 1), wrong)
        with pytest.raises(sa.exc.IntegrityError):
            post(engine, moved("c", "bank", "customer:a", 0))
        assert post(engine, moved("a", "bank", "customer:a", 5)) == 0
        assert balances(engine) == {"bank": -5, "customer:a": 5}
        assert drifted(engine) == []

    def test_the_same_transfer_twice_in_a_batch_counts_once(self, engine):
        assert post(engine, *[moved("a", "bank", "customer:a", 5)] * 2) == 1
        assert balances(engine) == {"bank": -5, "customer:a": 5}

    def test_no_balance_reads_the_transfers(self, engine):
        """So none costs more when there are more of them; only the day of a moment is read again."""
        post(engine, moved("a", "bank", "customer:a", 5))
        with statements(engine) as seen, engine.connect() as connection:
            funding_view(connection, "a")
            ledger.balance(connection, "customer:a")
            ledger.balances(connection)
        assert sum("FROM balances" in each for each in seen) == 3
        assert not any("transfers" in each for each in seen)
        with statements(engine) as seen:
            balances(engine, MOMENT_MS)
        read = [each for each in seen if "transfers" in each]
        assert len(read) == 2
        assert all("at_ms BETWEEN" in each for each in read)

    @pytest.mark.parametrize("table", [ledger.balances_table, ledger.turnover])
    def test_sums_that_someone_wrote_are_found(self, engine, table):
        post(engine, moved("a", "bank", "customer:a", 5), moved("b", "bank", "customer:b", 5))
        assert drifted(engine) == []
        one = table.c.account == "customer:b"
        for column in [each for each in table.columns if not each.primary_key]:
            for step, expected in ((1, ["customer:b"]), (-1, [])):
                with engine.begin() as connection:
                    connection.execute(sa.update(table).where(one).values({column: column + step}))
                assert drifted(engine) == expected, column
        with engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.account == "customer:a"))
        assert drifted(engine) == ["customer:a"]

    def test_many_posts_at_once_neither_lose_nor_deadlock(self, engine):
        """Accounts are taken in one order, whatever the order of the transfers."""
        threads, rounds, names = 4, 30, [f"customer:{i}" for i in range(8)]
        barrier = threading.Barrier(threads)

        def work(number: int) -> None:
            barrier.wait()
            for i in range(rounds):
                pairs = list(itertools.pairwise(names))
                order = pairs if (number + i) % 2 else pairs[::-1]
                post(engine, *[moved(f"{number}/{i}/{debit}", debit, credit, 1) for debit, credit in order])

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, number) for number in range(threads)]:
                done.result()
        through = {names[0]: -threads * rounds, names[-1]: threads * rounds}
        assert balances(engine) == dict.fromkeys(names, 0) | through
        assert drifted(engine) == []


class TestLimits:
    def test_a_covered_account_never_ends_below_zero(self, engine):
        post(engine, moved("a", "bank", "contributor:m", 5))
        with pytest.raises(Overdrawn) as caught:
            post(engine, moved("b", "contributor:m", "payouts", 6), covered=("contributor:m",))
        assert (caught.value.account, caught.value.short) == ("contributor:m", 1)
        assert balances(engine) == {"bank": -5, "contributor:m": 5}
        post(engine, moved("b", "contributor:m", "payouts", 5), covered=("contributor:m",))
        assert post(engine, moved("b", "contributor:m", "payouts", 5), covered=("contributor:m",)) == 0

    def test_many_takers_at_once_take_what_there_is(self, engine):
        post(engine, moved("a", "bank", "contributor:m", 10))
        barrier = threading.Barrier(6)

        def take(number: int) -> int:
            barrier.wait()
            try:
                return post(engine, moved(f"p{number}", "contributor:m", "payouts", 3), covered=("contributor:m",))
            except Overdrawn:
                return 0

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(take, range(6))) == 3
        assert balances(engine)["contributor:m"] == 1
        assert drifted(engine) == []

    def test_corrections_take_back_no_more_than_was_moved(self, engine):
        post(engine, moved("a", "bank", "customer:a", 10), moved("b", "bank", "customer:a", 90))
        back = [moved(f"c{i}", "customer:a", "bank", 4, corrects="a", kind=ledger.CORRECTION) for i in range(3)]
        post(engine, back[0])
        post(engine, back[1])
        with pytest.raises(Overcorrected) as caught:
            post(engine, back[2])
        assert (caught.value.transfer, caught.value.left) == ("a", 2)
        assert post(engine, back[1]) == 0

    def test_corrections_at_once_take_back_no_more_than_was_moved(self, engine):
        post(engine, moved("a", "bank", "customer:a", 10), moved("b", "bank", "customer:a", 90))
        barrier = threading.Barrier(5)

        def take_back(number: int) -> int:
            barrier.wait()
            try:
                return post(engine, moved(f"c{number}", "customer:a", "bank", 4, corrects="a", kind=ledger.CORRECTION))
            except Overcorrected:
                return 0

        with ThreadPoolExecutor(5) as pool:
            assert sum(pool.map(take_back, range(5))) == 2
        assert balances(engine)["customer:a"] == 92


class TestWhatCanBeCounted:
    def test_a_customer_pays_in_as_much_as_the_meter_counts_and_no_unit_more(self, engine):
        """Whatever was spent of it; what was given back is room again."""
        post(engine, moved("a", "bank", "customer:a", MAX_UNITS - 1))
        post(engine, moved("b", "customer:a", "operator:compute", 10**9, kind=ledger.CHARGE))
        for wrong in (moved("c", "bank", "customer:a", 2), moved("c", "operator:compute", "customer:a", 2)):
            with pytest.raises(Uncountable, match="customer:a"):
                post(engine, wrong)
        post(engine, moved("d", "bank", "customer:a", 1))
        assert post(engine, moved("d", "bank", "customer:a", 1)) == 0
        with pytest.raises(Uncountable):
            post(engine, moved("e", "bank", "customer:a", 1))
        post(engine, moved("f", "customer:a", "bank", 5, kind=ledger.REFUND))
        post(engine, moved("g", "bank", "customer:a", 5))
        with engine.connect() as connection:
            assert funding_view(connection, "a").funded == MAX_UNITS
        assert drifted(engine) == []

    def test_of_payments_at_once_as_many_count_as_can_be_counted(self, engine):
        barrier = threading.Barrier(6)

        def pay(number: int) -> int:
            barrier.wait()
            try:
                return post(engine, moved(f"p{number}", "bank", "customer:a", MAX_UNITS // 3))
            except Uncountable:
                return 0

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(pay, range(6))) == 3
        assert balances(engine)["customer:a"] == MAX_UNITS // 3 * 3
        assert drifted(engine) == []

    @pytest.mark.parametrize("into", ["debit", "credit"])
    def test_no_account_moves_more_than_sql_counts(self, engine, into):
        """512 customers with the most that each may have are nearly as much as the bank may move."""

        def through_bank(name: str, amount: int) -> Transfer:
            return moved(name, *(("bank", f"payee:{name}") if into == "debit" else (f"payee:{name}", "bank")), amount)

        post(engine, *[through_bank(f"{i}", MAX_UNITS) for i in range(512)])
        left = MAX_MOVED - 512 * MAX_UNITS
        for amount in (MAX_UNITS, left + 1):
            with pytest.raises(Uncountable, match="bank"):
                post(engine, through_bank("last", amount))
        post(engine, through_bank("last", left))
        with pytest.raises(Uncountable, match="bank"):
            post(engine, through_bank("more", 1))
        assert abs(balances(engine)["bank"]) == abs(balances(engine, MOMENT_MS)["bank"]) == MAX_MOVED
        assert drifted(engine) == []

    def test_credit_and_payments_together_are_what_the_meter_counts(self, engine):
        set_limit(engine, "a", MAX_UNITS, MOMENT_MS)
        for paid, lent in ((0, MAX_UNITS), (MAX_UNITS - 5, 5), (MAX_UNITS, 0)):
            with engine.connect() as connection:
                before = funding_view(connection, "a").funded
            if paid:
                post(engine, moved(f"to {paid}", "bank", "customer:a", paid - before))
            with engine.connect() as connection:
                view = funding_view(connection, "a")
            assert (view.funded, view.credit_limit) == (paid, lent)


def test_funding_is_everything_but_charges(engine):
    post(
        engine,
        moved("a", "bank", "customer:a", 100),
        moved("b", "customer:a", "operator:compute", 30, kind=ledger.CHARGE),
        moved("c", "customer:a", "bank", 20, kind=ledger.REFUND),
        moved("d", "operator:compute", "customer:a", 5, kind=ledger.CORRECTION, corrects="b"),
    )
    with engine.connect() as connection:
        view = funding_view(connection, "a")
        assert (view.version, view.funded, view.spent) == (3, 85, 30)
        assert ledger.balance(connection, "customer:a") == 55
        assert funding_view(connection, "nobody").version == 0


def test_the_history_of_an_account_is_its_last_transfers_in_order(engine):
    found = [moved(f"t{i}", *(("bank", "customer:a") if i % 3 else ("customer:a", "bank")), 1, i) for i in range(20)]
    post(engine, *reversed(found), moved("other", "bank", "customer:b", 1, 7))
    with engine.connect() as connection:
        assert ledger.history(connection, "customer:a", 0, 100, 50) == found
        assert ledger.history(connection, "customer:a", 5, 11, 3) == found[9:12]
        assert ledger.history(connection, "nobody", 0, 100, 50) == []
        assert [each.id for each in ledger.between(connection, 7, 8)] == ["other", "t7", "t8"]


def test_a_snapshot_sees_nothing_of_what_is_posted_meanwhile(engine):
    post(engine, moved("a", "bank", "customer:a", 5))
    with sql.snapshot(engine) as connection:
        before = ledger.balances(connection)
        post(engine, moved("b", "bank", "customer:a", 5))
        assert ledger.balances(connection) == before
        assert [each.id for each in ledger.between(connection, 0, MOMENT_MS)] == ["a"]


@pytest.fixture(params=["sqlite", "postgresql"])
def old_database(request, tmp_path) -> str:
    """The URL of a database with the first schema and transfers in it."""
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("empty_postgres")
    from importlib.resources import files  # noqa: PLC0415 # beside its only use

    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(files("serving.store.migrations")))
    engine = sa.create_engine(url)
    columns = "id, at_ms, debit, credit, amount, kind, reference"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for row in (
            f"'a', {MOMENT_MS}, 'bank', 'customer:a', 100, 'funding', 'r'",
            f"'b', {MOMENT_MS + DAY_MS}, 'customer:a', 'operator:platform', 30, 'charge', 's'",
            f"'c', {MOMENT_MS + DAY_MS}, 'customer:a', 'pool:2026-01', 20, 'charge', 's'",
        ):
            connection.execute(sa.text(f"INSERT INTO transfers ({columns}) VALUES ({row})"))
    engine.dispose()
    return url


def test_an_older_database_gets_the_sums_of_its_transfers(old_database):
    engine = open_database(old_database)
    try:
        assert drifted(engine) == []
        assert balances(engine) == {"bank": -100, "customer:a": 50, "operator:platform": 30, "pool:2026-01": 20}
        assert balances(engine, MOMENT_MS) == {"bank": -100, "customer:a": 100}
        with engine.connect() as connection:
            view = funding_view(connection, "a")
        assert (view.version, view.funded, view.spent) == (1, 100, 50)
    finally:
        engine.dispose()
