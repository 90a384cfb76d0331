"""The audit: every invariant, recomputed from what is stored.

It reads everything and changes nothing but the drain's progress. Each check says what was compared, so that a
failure names the place.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from attribution.policy import Policy
from attribution.run import RunError
from attribution.statements import canonical, verify
from metering import ledger
from metering.drain import Drain
from metering.pricing import PriceBook, Usage
from metering.records import PPM, UsageRecord
from metering.redis_meter import RedisMeter
from metering.usage_log import SegmentError, records, stream_order
from retrieval import catalogue
from serving import closing, rulebook
from serving.ablation import ablation_of
from serving.assembly import Books, Metering
from serving.samples import DAY_MS

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
    """What the log says, added up on the way."""

    charged: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pools: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    records: int = 0


async def audit(books: Books, metering: Metering, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Every check, in a fixed order.

    Raises:
        MeterUnavailable: Redis does not answer.
    """
    say = progress or (lambda _: None)
    say("draining")
    await metering.drain.settle()
    say("reading the log")
    log, sums = await asyncio.to_thread(_log, books)
    say("comparing the meter")
    meter = await _meter(books, metering.meter, metering.drain)
    say("reading the ledger, the runs and the catalogue")
    rest = await asyncio.to_thread(
        lambda: [
            _ledger(books, sums),
            _receipts(books, sums),
            *_runs(books),
            _catalogue(books),
            _splits(books),
            _texts(books),
        ]
    )
    return [check.to_json() for check in [*log, meter, *rest]]


def _log(books: Books) -> tuple[list[Check], _Sums]:
    intact = Check("segments are intact and in sequence", unit="segments")
    conserved = Check("every record conserves its charge")
    priced = Check("every charge follows its price book and policy")
    withdrawn = Check("no record uses a document after its withdrawal")
    sums = _Sums()
    prices, policies, gone = _prices(books), _policies(books), _withdrawals(books)
    for name, period, found in _segments(books, intact):
        for record in found:
            sums.records += 1
            sums.charged[record.account] += record.charge
            sums.pools[period] += record.royalty
            if (
                record.charge != record.cost + record.platform + record.royalty
                or min(record.cost, record.platform, record.royalty) < 0
            ):
                conserved.fault(f"record {record.id} in {name}")
            if not _follows(record, prices, policies):
                priced.fault(f"record {record.id} in {name}")
            for use in record.uses:
                if record.started_ms > gone.get(use.document, record.started_ms):
                    withdrawn.fault(f"record {record.id} uses {use.document}")
    for check in (conserved, priced, withdrawn):
        check.compared = sums.records
    return [intact, conserved, priced, withdrawn], sums


def _segments(books: Books, intact: Check) -> Iterator[tuple[str, str, list[UsageRecord]]]:
    table = ledger.segments
    with books.engine.connect() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.name)).all()
        marks = {row.shard: row.last for row in connection.execute(sa.select(ledger.shards))}
    for path in books.log.damaged():
        intact.fault(f"{path} was damaged before it was registered")
    last: dict[int, str] = {}
    for row in sorted(rows, key=lambda each: (each.shard, stream_order(each.first))):
        intact.compared += 1
        if row.shard in last and stream_order(row.first) <= stream_order(last[row.shard]):
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
        if marks.get(shard) != mark:
            intact.fault(f"shard {shard} is marked {marks.get(shard)}, its log ends at {mark}")


def _follows(record: UsageRecord, prices: dict[int, PriceBook], policies: dict[int, Policy]) -> bool:
    book, policy = prices.get(record.price_version), policies.get(record.policy_version)
    if book is None or policy is None or record.model not in book.models:
        return False
    price = book.price(record.model)
    usage = Usage(record.input_tokens, record.output_tokens, record.passages)
    charge, cost = price.charge(usage), price.cost(usage)
    return (record.charge, record.cost) == (charge, cost) and (
        record.platform,
        record.royalty,
    ) == policy.divide(charge, cost)


async def _meter(books: Books, meter: RedisMeter, drain: Drain) -> Check:
    """Meter and ledger agree; while queries run, what is captured and not yet drained lies between them."""
    check = Check("the meter agrees with the ledger, and no account is below zero", unit="accounts")
    for customer in books.identities.customers():
        check.compared += 1
        for attempt in range(_STABLE_TRIES):
            balance = await meter.balance(customer)
            view = await asyncio.to_thread(_funding, books, customer)
            if (balance.funded, balance.spent) == (view.funded, view.spent):
                break
            await drain.settle()
            if attempt == _STABLE_TRIES - 1:
                check.fault(
                    f"account {customer}: the meter has funded {balance.funded} and spent {balance.spent}, "
                    f"the ledger {view.funded} and {view.spent}"
                )
        if balance.available < 0 or balance.held < 0 or balance.spent > balance.funded:
            check.fault(f"account {customer} is below zero")
    return check


def _ledger(books: Books, sums: _Sums) -> Check:
    check = Check("the ledger balances, and agrees with the log", unit="accounts")
    with books.engine.connect() as connection:
        balances = ledger.balances(connection)
        closed = set(connection.execute(sa.select(closing.runs.c.period)).scalars())
        spent = {customer: ledger.funding(connection, customer).spent for customer in books.identities.customers()}
    check.compared = len(balances)
    if sum(balances.values()):
        check.fault(f"debits and credits differ by {sum(balances.values())}")
    for account, balance in balances.items():
        if balance < 0 and account != ledger.BANK:
            check.fault(f"{account} is at {balance}")
    for customer, charged in sums.charged.items():
        if spent.get(customer) != charged:
            check.fault(f"customer {customer}: the log charged {charged}, the ledger {spent.get(customer)}")
    for customer, charged in spent.items():
        if charged and customer not in sums.charged:
            check.fault(f"customer {customer}: the ledger charged {charged}, the log nothing")
    for period, royalty in sums.pools.items():
        expected = 0 if period in closed else royalty
        if balances.get(ledger.pool(period), 0) != expected:
            check.fault(f"pool of {period} is at {balances.get(ledger.pool(period), 0)}, not {expected}")
    return check


def _receipts(books: Books, sums: _Sums) -> Check:
    check = Check("every record has one receipt and is counted once", unit="receipts")
    with books.engine.connect() as connection:
        check.compared = int(connection.execute(sa.select(sa.func.count()).select_from(ledger.receipts)).scalar_one())
        table = ledger.usage_daily
        daily = connection.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(table.c.queries), 0),
                sa.func.coalesce(sa.func.sum(table.c.charge), 0),
            )
        ).one()
    if check.compared != sums.records:
        check.fault(f"{check.compared} receipts, {sums.records} records")
    if (int(daily[0]), int(daily[1])) != (sums.records, sum(sums.charged.values())):
        check.fault(f"usage counts {daily[0]} queries for {daily[1]}, the log {sums.records}")
    return check


def _runs(books: Books) -> list[Check]:
    same = Check("every run recomputes to the same bytes", unit="runs")
    proofs = Check("every statement verifies against its signed root", unit="statements")
    paid = Check("the ledger has paid what the runs credited", unit="runs")
    with books.engine.connect() as connection:
        rows = connection.execute(sa.select(closing.runs).order_by(closing.runs.c.period)).all()
    for row in rows:
        manifest = json.loads(row.manifest)
        same.compared += 1
        paid.compared += 1
        try:
            found = closing.attribute(
                books.log,
                closing.segments_of(books.engine, row.period),
                row.period,
                books.catalogue,
                books.currency,
                manifest["policy_version"],
                ablation=ablation_of(books.engine, row.period),
            )
        except (SegmentError, RunError, ValueError) as error:
            same.fault(f"run of {row.period}: {error}")
            continue
        if found.issue.run_id != row.run_id or canonical(found.issue.manifest).decode() != row.manifest:
            same.fault(f"run of {row.period} gives {found.issue.run_id}, stored is {row.run_id}")
        _compare_files(books, row.period, manifest, same)
        _compare_payments(books, row, found, paid)
        _compare_statements(books, row, found, proofs)
    return [same, proofs, paid]


def _compare_files(books: Books, period: str, manifest: dict[str, Any], check: Check) -> None:
    path = books.directory.run(period) / "credits.parquet"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        check.fault(f"{path} cannot be read: {error.strerror}")
        return
    if digest != manifest["credits_sha256"]:
        check.fault(f"{path} was altered")


def _compare_payments(books: Books, row: Any, found: closing.Attribution, check: Check) -> None:
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


def _compare_statements(books: Books, row: Any, found: closing.Attribution, check: Check) -> None:
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


def _catalogue(books: Books) -> Check:
    check = Check("every version has its hash, and every passage is a span of it", unit="documents")
    after = ""
    while page := books.catalogue.page(after=after, limit=200):
        after = page[-1].id
        for document in page:
            check.compared += 1
            text = books.catalogue.text(document.id, document.version)
            if text is None or hashlib.sha256(text.encode()).hexdigest() != document.version:
                check.fault(f"document {document.id}: its text does not have its hash")
                continue
            for passage in books.catalogue.passages_of([document.number]):
                if document.withdrawn_ms is not None:
                    check.fault(f"document {document.id} is withdrawn and has passages")
                elif text[passage.start : passage.start + len(passage.text)] != passage.text:
                    check.fault(f"document {document.id}: passage {passage.id} is not in its text")
    return check


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


def _funding(books: Books, customer: str) -> Any:
    with books.engine.connect() as connection:
        return ledger.funding(connection, customer)
