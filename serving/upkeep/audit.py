"""The audit: every invariant, recomputed from what is stored.

It reads everything and changes nothing but the drain's progress. Each check says what was compared, so that a
failure names the place.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from attribution.games.values import UNVALUED
from attribution.policy import Policy
from attribution.runs.adopted import Rules
from attribution.runs.run import RunError
from attribution.runs.statements import FORMAT, canonical, verify
from metering import formats, ledger, merkle, periods, sql, stream_ids, usage_index
from metering.credit import funding_of, funding_view, limit_max
from metering.drain import Drain
from metering.meter import Meter
from metering.pricing import PriceBook, Usage, in_force
from metering.records import PPM, UsageRecord
from metering.spool import Spool
from metering.usage_log import SegmentError, records
from retrieval import catalogue
from serving.answering.embeddings import NO_GAME
from serving.answering.sampled_texts import DAY_MS
from serving.books import Books, Metering
from serving.closing import closing, run_files, transparency_log
from serving.money import payouts
from serving.money.funding import balance_of
from serving.rules import rulebook

_EXAMPLES: Final = 3
_STABLE_TRIES: Final = 20

Progress = Callable[[str], None]


@dataclass(slots=True)
class Check:
    """One invariant and what was found."""

    name: str
    compared: int = 0
    unit: str = "records"
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Something that does not hold."""
        self.faults.append(text)

    def to_json(self) -> dict[str, Any]:
        """The check for the outside: the first few faults, and how many there are."""
        detail = f"{self.compared} {self.unit}"
        if self.faults:
            more = len(self.faults) - _EXAMPLES
            detail = "; ".join(self.faults[:_EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
        return {"name": self.name, "ok": not self.faults, "detail": detail}


@dataclass(slots=True)
class _Sums:
    """Sums over the records of the log."""

    charged: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What each account paid: its charges less what was free."""
    pools: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    records: int = 0


@dataclass(frozen=True, slots=True)
class _View:
    """What the database says of the log, at one moment: a server may register more while the log is read."""

    segments: list[sa.Row[Any]]
    marks: dict[int, str]
    balances: dict[str, int]
    drifted: list[str]
    in_transit: int
    closed: set[str]
    spent: dict[str, int]
    lent: dict[str, int]
    receipts: int
    counted: tuple[int, int]
    """Queries, and what they were charged less what was free."""


async def audit(books: Books, metering: Metering, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Every check, in a fixed order.

    Raises:
        MeterUnavailable: Redis does not answer.
    """
    say = progress or (lambda _: None)
    say("draining")
    await metering.spool.resend(metering.meter)
    await metering.drain.flush()
    say("reading the log")
    view = await asyncio.to_thread(_view, books)
    log, sums = await asyncio.to_thread(_log, books, view)
    say("comparing the meter")
    meter = await _meter(books, metering.meter, metering.drain)
    say("reading the ledger, the runs and the catalogue")
    rest = await asyncio.to_thread(
        lambda: [
            _ledger(view, sums),
            _receipts(view, sums),
            *_runs(books),
            _spool(metering.spool),
            _catalogue(books),
            _splits(books),
            _texts(books),
        ]
    )
    return [check.to_json() for check in [*log, meter, *rest]]


def _view(books: Books) -> _View:
    daily = usage_index.usage_daily
    counted = sa.select(
        sa.func.coalesce(sa.func.sum(daily.c.queries), 0),
        sa.func.coalesce(sa.func.sum(daily.c.charge - daily.c.free), 0),
    )
    with sql.snapshot(books.engine) as connection:
        segments = list(connection.execute(sa.select(usage_index.segments).order_by(usage_index.segments.c.name)))
        customers = books.identities.customers()
        queries, charged = connection.execute(counted).one()
        receipts = sa.select(sa.func.count()).select_from(usage_index.receipts)
        return _View(
            segments=segments,
            marks={shard: mark.last for shard, mark in usage_index.marks(connection).items()},
            balances=ledger.balances(connection),
            drifted=list(ledger.drifted(connection)),
            in_transit=payouts.in_transit(connection),
            closed=set(connection.execute(sa.select(closing.runs.c.period)).scalars()),
            spent={customer: funding_view(connection, customer).spent for customer in customers},
            lent={ledger.customer(each): limit_max(connection, each) for each in customers},
            receipts=int(connection.execute(receipts).scalar_one()),
            counted=(int(queries), int(charged)),
        )


def _log(books: Books, view: _View) -> tuple[list[Check], _Sums]:
    intact = Check("segments are intact and in sequence", unit="segments")
    conserved = Check("every record conserves its charge")
    priced = Check("every charge follows its price book and policy")
    withdrawn = Check("no record uses a document after its withdrawal")
    given = _Free(Check("no account was given more than its free amount"))
    sums = _Sums()
    prices, policies, gone = _prices(books), _policies(books), _withdrawals(books)
    for name, period, found in _segments(books, view, intact):
        for record in found:
            sums.records += 1
            sums.charged[record.account] += record.charge - record.free
            sums.pools[period] += record.royalty
            if (
                record.charge != record.cost + record.platform + record.royalty
                or min(record.cost, record.platform, record.royalty, record.free, record.charge - record.free) < 0
            ):
                conserved.fault(f"record {record.id} in {name}")
            if not _follows(record, prices, policies):
                priced.fault(f"record {record.id} in {name}")
            for use in record.uses:
                if record.started_ms > gone.get(use.document, record.started_ms):
                    withdrawn.fault(f"record {record.id} uses {use.document}")
            given.add(record, prices)
    for check in (conserved, priced, withdrawn, given.check):
        check.compared = sums.records
    given.compare()
    return [intact, conserved, priced, withdrawn, given.check], sums


@dataclass(slots=True)
class _Free:
    """What was free, by account and month, and the most that a price book of its records allows."""

    check: Check
    months: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def add(self, record: UsageRecord, prices: dict[int, PriceBook]) -> None:
        if record.free and record.price_version in prices:
            month = record.account, periods.of(record.finished_ms)
            used, allowed = self.months.get(month, (0, 0))
            self.months[month] = used + record.free, max(allowed, prices[record.price_version].free_per_month)

    def compare(self) -> None:
        for (account, month), (used, allowed) in self.months.items():
            if used > allowed:
                self.check.fault(f"account {account} used {used} of {allowed} free units in {month}")


def _segments(books: Books, view: _View, intact: Check) -> Iterator[tuple[str, str, list[UsageRecord]]]:
    for path in books.log.damaged():
        intact.fault(f"{path} was damaged before it was registered")
    last: dict[int, str] = {}
    for row in sorted(view.segments, key=lambda each: (each.shard, stream_ids.order(each.first))):
        intact.compared += 1
        if row.shard in last and stream_ids.order(row.first) <= stream_ids.order(last[row.shard]):
            intact.fault(f"segment {row.name} overlaps the one before it")
        last[row.shard] = row.last
        try:
            stored = books.log.read(row.name, row.sha256)
            found = list(records(stored))
        except (SegmentError, ValueError) as error:
            intact.fault(str(error))
            continue
        if [record.leaf() for record in found] != stored["leaf"].to_pylist():
            intact.fault(f"segment {row.name}: a record does not have its leaf hash")
        if len(found) != row.records or sum(record.charge for record in found) != row.charge:
            intact.fault(f"segment {row.name}: its records are not those that were registered")
        yield row.name, row.period, found
    for shard, mark in last.items():
        if view.marks.get(shard) != mark:
            intact.fault(f"shard {shard} is marked {view.marks.get(shard)}, its log ends at {mark}")


def _follows(record: UsageRecord, prices: dict[int, PriceBook], policies: dict[int, Policy]) -> bool:
    book, policy = prices.get(record.price_version), policies.get(record.policy_version)
    if book is None or policy is None or record.model not in book.models:
        return False
    if in_force(prices.values(), record.started_ms) != book:
        return False
    price = book.price(record.model)
    usage = Usage(record.input_tokens, record.output_tokens, record.passages)
    charge, cost = price.charge(usage), price.cost(usage)
    values_by = policy.values_by(generated=record.model != rulebook.EXTRACTIVE)
    if record.value_function not in (values_by, UNVALUED) and (record.uses or record.value_function != NO_GAME):
        return False
    return (record.charge, record.cost) == (charge, cost) and (
        record.platform,
        record.royalty,
    ) == policy.divide(charge, cost)


async def _meter(books: Books, meter: Meter, drain: Drain) -> Check:
    """Meter and ledger agree; while queries run, what is captured and not yet drained lies between them."""
    check = Check("the meter agrees with the ledger, and no account is below zero", unit="accounts")
    for customer in books.identities.customers():
        check.compared += 1
        for attempt in range(_STABLE_TRIES):
            view = await asyncio.to_thread(funding_of, books.engine, customer)
            balance = await balance_of(books, meter, customer)
            seen, told = [(each.funded, each.credit_limit, each.spent) for each in (balance, view)]
            lent = await asyncio.to_thread(_credit_limit_max, books, customer)
            # While money is withdrawn it counts twice for a moment, as less funded and as held.
            left = balance.funded + lent - balance.spent - balance.held
            if seen == told and left >= 0:
                break
            await drain.flush()
            if attempt == _STABLE_TRIES - 1 and seen != told:
                after = await asyncio.to_thread(funding_of, books.engine, customer)
                same = seen[:2] == told[:2] == (after.funded, after.credit_limit)
                if same and view.spent <= balance.spent <= after.spent:
                    continue  # queries run: what was captured when the meter was asked is drained by now
                check.fault(f"account {customer}: the meter has funded, lent and spent {seen}, the ledger {told}")
                if balance.spent > view.spent and not (await drain.lag()).records:
                    check.fault(
                        f"records of {customer} over {balance.spent - view.spent} units were taken from Redis before "
                        "they were drained"
                    )
        if min(balance.held, left) < 0:
            check.fault(f"account {customer} is below zero, or below its credit limit")
    return check


def _ledger(view: _View, sums: _Sums) -> Check:
    check = Check("the ledger balances, and agrees with the log", unit="accounts")
    balances, spent = view.balances, view.spent
    for account in view.drifted:
        check.fault(f"{account}: its balance is not the sum of its transfers")
    check.compared = len(balances)
    if sum(balances.values()):
        check.fault(f"debits and credits differ by {sum(balances.values())}")
    for account, balance in balances.items():
        if balance + view.lent.get(account, 0) < 0 and not ledger.may_be_negative(account):
            check.fault(f"{account} is at {balance}")
    in_transit = balances.get(ledger.IN_TRANSIT, 0)
    if in_transit != view.in_transit:
        check.fault(f"{in_transit} is in transit, the payouts under way are of {view.in_transit}")
    for customer, charged in sums.charged.items():
        if spent.get(customer) != charged:
            check.fault(f"customer {customer}: the log charged {charged}, the ledger {spent.get(customer)}")
    for customer, charged in spent.items():
        if charged and customer not in sums.charged:
            check.fault(f"customer {customer}: the ledger charged {charged}, the log nothing")
    for period, royalty in sums.pools.items():
        expected = 0 if period in view.closed else royalty
        if balances.get(ledger.pool(period), 0) != expected:
            check.fault(f"pool of {period} is at {balances.get(ledger.pool(period), 0)}, not {expected}")
    return check


def _receipts(view: _View, sums: _Sums) -> Check:
    check = Check("every record has one receipt and is counted once", unit="receipts", compared=view.receipts)
    if view.receipts != sums.records:
        check.fault(f"{view.receipts} receipts, {sums.records} records")
    queries, charged = view.counted
    if (queries, charged) != (sums.records, sum(sums.charged.values())):
        check.fault(f"usage counts {queries} queries for {charged}, the log {sums.records}")
    return check


def _runs(books: Books) -> list[Check]:
    same = Check("every run recomputes to the same bytes", unit="runs")
    proofs = Check("every statement verifies against its signed root", unit="statements")
    paid = Check("the ledger has paid what the runs credited", unit="runs")
    logged = transparency_log.run_log
    with sql.snapshot(books.engine) as connection:
        rows = connection.execute(sa.select(closing.runs).order_by(closing.runs.c.period)).all()
        leaves = connection.execute(sa.select(logged).order_by(logged.c.number)).all()
    for row in rows:
        manifest = json.loads(row.manifest)
        same.compared += 1
        paid.compared += 1
        try:
            found = _recomputed(books, row.period, manifest)
        except (SegmentError, RunError, ValueError) as error:
            same.fault(f"run of {row.period}: {error}")
            continue
        if found.issue.run_id != row.run_id or canonical(found.issue.manifest).decode() != row.manifest:
            same.fault(f"run of {row.period} gives {found.issue.run_id}, stored is {row.run_id}")
        for fault in run_files.faults(books.directory.run(row.period), found.hours, found.moved):
            same.fault(fault)
        _compare_payments(books, row, found, paid)
        _compare_statements(books, row, found, proofs)
    return [same, proofs, paid, _run_log(leaves, {row.run_id: row.manifest for row in rows})]


def _recomputed(books: Books, period: str, manifest: dict[str, Any]) -> closing.Run:
    """The run again, by the rules that it names, from the segments alone, without the parts of an earlier run.

    Raises:
        UnknownFormat, UnknownRule: a newer version computed it.
        SegmentError, RunError: as :func:`serving.closing.closing.compute_run`.
    """
    formats.check("its manifest", manifest["format"], FORMAT)
    rules, policy = Rules.of(manifest["algorithms"]), manifest["policy_version"]
    with tempfile.TemporaryDirectory(dir=books.directory.path, prefix="audit-") as folder:
        segments = closing.segments_of(books.engine, period)
        return closing.compute_run(books, books.log, segments, period, policy, Path(folder), rules=rules)


def _run_log(rows: Sequence[sa.Row[Any]], manifests: dict[str, str]) -> Check:
    check = Check("the transparency log has every run once, and in order", unit="runs")
    for place, row in enumerate(rows):
        check.compared += 1
        if row.number != place:
            check.fault(f"number {place} is missing")
        if merkle.leaf_hash(manifests.get(row.run_id, "").encode()).hex() != row.leaf:
            check.fault(f"number {row.number} is not the manifest of {row.run_id}")
    for run_id in manifests.keys() - {row.run_id for row in rows}:
        check.fault(f"{run_id} is not in it")
    return check


def _compare_payments(books: Books, row: Any, found: closing.Run, check: Check) -> None:
    table = ledger.transfers
    query = sa.select(table.c.credit, table.c.amount).where(
        table.c.debit == ledger.pool(row.period), table.c.kind == ledger.ROYALTY
    )
    with books.engine.connect() as connection:
        posted = {each.credit: each.amount for each in connection.execute(query)}
    expected = {ledger.contributor(name): units for name, units in found.tally.credited_to().items() if units}
    if found.tally.totals.residual:
        expected[ledger.RESIDUAL] = found.tally.totals.residual
    if posted != expected:
        check.fault(f"run of {row.period}: the ledger's payments are not its credits")


def _compare_statements(books: Books, row: Any, found: closing.Run, check: Check) -> None:
    key = books.signer.public_key
    # Who joined after the close has no statement of that period.
    with books.engine.connect() as connection:
        table = closing.statements
        query = sa.select(table.c.contributor, table.c.bundle).where(table.c.period == row.period)
        stored = {each.contributor: json.loads(each.bundle) for each in connection.execute(query)}
    expected = {each["contributor"]: each for each in found.issue.statements}
    for contributor, bundle in stored.items():
        check.compared += 1
        failed = [each["name"] for each in verify(bundle, key) if not each["ok"]]
        if failed:
            check.fault(f"statement of {contributor} for {row.period}: {', '.join(failed)}")
        if bundle["statement"] != expected.get(contributor):
            check.fault(f"statement of {contributor} for {row.period} is not what the run gives")
    for contributor, units in found.tally.credited_to().items():
        if units and contributor not in stored:
            check.fault(f"{contributor} earned in {row.period} and has no statement")


def _spool(spool: Spool) -> Check:
    check = Check("every spooled charge is charged", unit="files")
    state = spool.state()
    check.compared = sum(map(len, (state.waiting, state.damaged, state.refused)))
    for names, what in ((state.waiting, "waits"), (state.damaged, "is damaged"), (state.refused, "was refused")):
        for name in names:
            check.fault(f"spool/{name} {what}")
    return check


def _catalogue(books: Books) -> Check:
    check = Check("every version has its hash, and every passage is a span of it", unit="documents")
    after = ""
    while page := books.catalogue.page(after=after, limit=200):
        after = page[-1].id
        for document in page:
            check.compared += 1
            faults = _faults_of(books, document)
            if faults and (now := books.catalogue.get([document.id])[document.id]) != document:
                faults = _faults_of(books, now)  # it was changed while it was read
            for fault in faults:
                check.fault(f"document {document.id}: {fault}")
    return check


def _faults_of(books: Books, document: catalogue.StoredDocument) -> list[str]:
    text = books.catalogue.text(document.id, document.version)
    if text is None or hashlib.sha256(text.encode()).hexdigest() != document.version:
        return ["its text does not have its hash"]
    passages = list(books.catalogue.passages_of([document.number]))
    if document.withdrawn_ms is not None:
        return ["it is withdrawn and has passages"] if passages else []
    return [
        f"passage {each.id} is not in its text"
        for each in passages
        if text[each.start : each.start + len(each.text)] != each.text
    ]


def _splits(books: Books) -> Check:
    check = Check("every document's splits sum to one", unit="documents")
    with books.engine.connect() as connection:
        for row in connection.execute(sa.select(catalogue.documents.c.id, catalogue.documents.c.splits)):
            check.compared += 1
            if sum(ppm for _, _, ppm in json.loads(row.splits)) != PPM:
                check.fault(f"document {row.id}")
    return check


def _texts(books: Books) -> Check:
    """A server destroys them every hour; whoever runs none has a day."""
    check = Check("no sampled text is kept for longer than the dispute window", unit="texts overdue")
    books.samples.store()
    check.compared = books.samples.overdue(DAY_MS)
    if check.compared:
        check.fault(f"{check.compared} texts should be destroyed")
    return check


def _prices(books: Books) -> dict[int, PriceBook]:
    with books.engine.connect() as connection:
        rows = connection.execute(sa.select(rulebook.price_books))
        return {row.version: PriceBook.from_json(json.loads(row.body)) for row in rows}


def _policies(books: Books) -> dict[int, Policy]:
    with books.engine.connect() as connection:
        rows = connection.execute(sa.select(rulebook.policies))
        return {row.version: Policy.from_json(json.loads(row.body)) for row in rows}


def _withdrawals(books: Books) -> dict[str, int]:
    table = catalogue.documents
    query = sa.select(table.c.id, table.c.withdrawn_ms).where(table.c.withdrawn_ms.is_not(None))
    with books.engine.connect() as connection:
        return {row.id: row.withdrawn_ms for row in connection.execute(query)}


def _credit_limit_max(books: Books, customer: str) -> int:
    with books.engine.connect() as connection:
        return limit_max(connection, customer)
