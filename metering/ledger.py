"""The ledger: double entry, append-only, in SQL.

A transfer moves an amount from one account (debit) to another (credit). Transfers are never changed or deleted,
the database itself refuses that, and a transfer id is posted at most once, for ever. Balances are credit minus
debit: money that is owed to customers, contributors or the operator is positive.

Beside the transfers stand their sums, by account and by account and day, moved on in the same transaction: no
balance costs more when there are more transfers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa

from metering.money import MAX_UNITS
from metering.sql import add_to_sums, insert_new

METADATA = sa.MetaData()

TRANSFER_ID_CHARS_MAX: Final = 700
_ACCOUNT = sa.String(220)
_CUSTOMER: Final = "customer:"

transfers = sa.Table(
    "transfers",
    METADATA,
    sa.Column("id", sa.String(TRANSFER_ID_CHARS_MAX), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("debit", _ACCOUNT, nullable=False),
    sa.Column("credit", _ACCOUNT, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("reference", sa.String(400), nullable=False),
    sa.Column("reason", sa.String(500), nullable=True),
    sa.Column("corrects", sa.String(TRANSFER_ID_CHARS_MAX), nullable=True),
    sa.CheckConstraint("amount > 0", name="transfers_amount_positive"),
    sa.CheckConstraint("debit <> credit", name="transfers_two_accounts"),
    sa.Index("transfers_at", "at_ms", "id"),
    sa.Index("transfers_debit_at", "debit", "at_ms"),
    sa.Index("transfers_credit_at", "credit", "at_ms"),
    sa.Index(
        "transfers_corrects",
        "corrects",
        sqlite_where=sa.text("corrects IS NOT NULL"),
        postgresql_where=sa.text("corrects IS NOT NULL"),
    ),
)

balances_table = sa.Table(
    "balances",
    METADATA,
    sa.Column("account", _ACCOUNT, primary_key=True),
    sa.Column("debits", sa.BigInteger, nullable=False),
    sa.Column("credits", sa.BigInteger, nullable=False),
    sa.Column("charged", sa.BigInteger, nullable=False),
    sa.Column("moves", sa.BigInteger, nullable=False),
)
"""The sums of an account's transfers. ``charged`` is the part of the debits that are charges, ``moves`` counts the
transfers that are not: between charges, a customer's funds have changed so many times."""

turnover = sa.Table(
    "turnover",
    METADATA,
    sa.Column("account", _ACCOUNT, primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("debits", sa.BigInteger, nullable=False),
    sa.Column("credits", sa.BigInteger, nullable=False),
)
"""The sums of an account's transfers of one day, counted since 1970-01-01 UTC."""

BANK: Final = "bank"
COMPUTE: Final = "operator:compute"
PLATFORM: Final = "operator:platform"
PROMOTIONS: Final = "operator:promotions"
RESIDUAL: Final = "residual"
IN_TRANSIT: Final = "payouts"

FUNDING: Final = "funding"
CHARGE: Final = "charge"
ROYALTY: Final = "royalty"
REFUND: Final = "refund"
CORRECTION: Final = "correction"
PAYOUT: Final = "payout"
SETTLEMENT: Final = "settlement"
CANCELLATION: Final = "cancellation"
_DIVIDE: Final = {CHARGE, ROYALTY}
"""Transfers that move on what was counted when it came in."""

MAX_MOVED: Final = 2**62
"""The most, in units, that one side of an account may sum up: half of SQL's integers, so that a sum which is refused
is itself exact."""

DAY_MS: Final = 86_400_000
_ROWS: Final = 1_000


def customer(account: str) -> str:
    """The ledger account of a customer's prepayment."""
    return f"{_CUSTOMER}{account}"


def contributor(name: str) -> str:
    """The ledger account of what a contributor is owed."""
    return f"contributor:{name}"


def pool(period: str) -> str:
    """The ledger account of a period's royalties that are not yet attributed."""
    return f"pool:{period}"


def may_be_negative(account: str) -> bool:
    """Whether the balance of an account may be below zero: what came in from outside, or was given away, is a debit."""
    return account in (BANK, PROMOTIONS)


class LedgerError(Exception):
    """The ledger refused a transfer."""


class Overdrawn(LedgerError):
    """A transfer takes more than there is. Its transaction has to be rolled back."""

    def __init__(self, account: str, short: int) -> None:
        """``short`` is how far below zero the account would be, in units."""
        super().__init__(f"{account} would be {short} units below zero")
        self.account = account
        self.short = short


class Overcorrected(LedgerError):
    """Corrections would take back more than a transfer has moved. Their transaction has to be rolled back."""

    def __init__(self, transfer: str, left: int) -> None:
        """``left`` is what earlier corrections have left of it, in units."""
        super().__init__(f"corrections have left {left} units of transfer {transfer}")
        self.transfer = transfer
        self.left = left


class Uncountable(LedgerError):
    """A transfer moves more than can be counted exactly. Its transaction has to be rolled back."""

    def __init__(self, sum_of: str, limit: int) -> None:
        """``sum_of`` is what would be above ``limit``, in units."""
        super().__init__(f"{sum_of} would be above {limit} units")
        self.sum_of = sum_of
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Transfer:
    """One movement of money, in units. ``at_ms`` is when it happened, not when it was posted."""

    id: str
    at_ms: int
    debit: str
    credit: str
    amount: int
    kind: str
    reference: str
    reason: str | None = None
    """Why a person moved it."""
    corrects: str | None = None
    """The id of the transfer that this one takes back, in whole or in part: between the same accounts."""

    def same_as(self, other: Transfer) -> bool:
        """Whether the other is the same movement, said again."""
        mine, others = ((each.debit, each.credit, each.amount, each.kind, each.corrects) for each in (self, other))
        return mine == others


def post(connection: sa.Connection, batch: Sequence[Transfer], *, covered: Collection[str] = ()) -> int:
    """Post transfers that are not posted yet, and move the balances on.

    Accounts are locked in the order of their names, so that two transactions wait for each other and never both.
    ``covered`` names the accounts that may not end below zero.

    Returns:
        How many were new.

    Raises:
        Overdrawn: an account of ``covered`` would end below zero.
        Overcorrected: more of a transfer would be taken back than it moved.
        Uncountable: a customer would have paid in more than ``MAX_UNITS``, or an account moved more than ``MAX_MOVED``.
        LedgerError: an id is already posted with other contents.
    """
    if not batch:
        return 0
    posted = {row.id for row in insert_new(connection, transfers, [asdict(transfer) for transfer in batch])}
    if len(posted) < len(batch):
        _check_same(connection, batch)
    new = [transfer for transfer in {each.id: each for each in batch}.values() if transfer.id in posted]
    _add_to_balances(connection, new)
    for transfer in new:
        if transfer.kind not in _DIVIDE:
            _check_countable(connection, transfer)
    for account in covered if new else ():
        left = balance(connection, account)
        if left < 0:
            raise Overdrawn(account, -left)
    for transfer in new:
        if transfer.corrects is not None:
            _check_correction(connection, transfer.corrects, transfer.amount)
    return len(new)


def find(connection: sa.Connection, transfer: str) -> Transfer | None:
    """The transfer of an id, or None."""
    row = connection.execute(sa.select(transfers).where(transfers.c.id == transfer)).mappings().one_or_none()
    return None if row is None else Transfer(**row)


def paid_in(sums: sa.Row[Any]) -> int:
    """What came to a customer's account and was not given back, ever, in units, by its row of the balances."""
    return int(sums.credits - sums.debits + sums.charged)


def balance(connection: sa.Connection, account: str, at_ms: int | None = None) -> int:
    """Credit minus debit of one account, in units: now, or of all that had happened by a moment."""
    return balances(connection, at_ms, account).get(account, 0)


def balances(connection: sa.Connection, at_ms: int | None = None, account: str | None = None) -> dict[str, int]:
    """Credit minus debit of every account that ever moved, or of one: now, or of all that had happened by a moment."""
    if at_ms is None:
        now = sa.select(balances_table.c.account, balances_table.c.credits - balances_table.c.debits)
        if account is not None:
            now = now.where(balances_table.c.account == account)
        return {row[0]: int(row[1]) for row in connection.execute(now)}
    day = at_ms // DAY_MS
    net = sa.func.sum(turnover.c.credits - turnover.c.debits)
    days = sa.select(turnover.c.account, net).where(turnover.c.day < day).group_by(turnover.c.account)
    if account is not None:
        days = days.where(turnover.c.account == account)
    found = {row[0]: int(row[1]) for row in connection.execute(days)}
    for column, sign in ((transfers.c.credit, 1), (transfers.c.debit, -1)):
        rest = sa.select(column, sa.func.sum(transfers.c.amount)).group_by(column)
        rest = rest.where(transfers.c.at_ms.between(day * DAY_MS, at_ms))
        if account is not None:
            rest = rest.where(column == account)
        for name, amount in connection.execute(rest):
            found[name] = found.get(name, 0) + sign * int(amount)
    return found


def history(connection: sa.Connection, account: str, start_ms: int, end_ms: int, limit: int) -> list[Transfer]:
    """The last ``limit`` transfers of an account between two moments, both included, in the order of their moments."""
    newest = (transfers.c.at_ms.desc(), transfers.c.id.desc())
    sides = [
        sa.select(transfers)
        .where(column == account, transfers.c.at_ms.between(start_ms, end_ms))
        .order_by(*newest)
        .limit(limit)
        .subquery()
        for column in (transfers.c.debit, transfers.c.credit)
    ]
    both = sa.union_all(*(sa.select(side) for side in sides)).subquery()
    query = sa.select(both).order_by(both.c.at_ms.desc(), both.c.id.desc()).limit(limit)
    return [Transfer(**row) for row in reversed(connection.execute(query).mappings().all())]


def between(connection: sa.Connection, start_ms: int, end_ms: int) -> Iterator[Transfer]:
    """Every transfer between two moments, both included, in the order of their moments, a few at a time."""
    query = sa.select(transfers).where(transfers.c.at_ms.between(start_ms, end_ms))
    query = query.order_by(transfers.c.at_ms, transfers.c.id).execution_options(yield_per=_ROWS)
    for row in connection.execute(query).mappings():
        yield Transfer(**row)


def drifted(connection: sa.Connection) -> list[str]:
    """The accounts whose stored sums are not those of their transfers: none, if nobody wrote them by hand."""
    entries = _entries()
    total = [sa.cast(sa.func.sum(entries.c[name]), sa.BigInteger) for name in ("debits", "credits", "charged", "moves")]
    found: set[str] = set()
    for keys, sums, stored in (
        ([entries.c.account], total, sa.select(balances_table)),
        ([entries.c.account, entries.c.day], total[:2], sa.select(turnover)),
    ):
        counted = sa.select(*keys, *sums).group_by(*keys)
        for one, other in ((counted, stored), (stored, counted)):
            found |= {row[0] for row in connection.execute(sa.except_(one, other))}
    return sorted(found)


def _add_to_balances(connection: sa.Connection, posted: Iterable[Transfer]) -> None:
    accounts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    days: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for transfer in posted:
        charge = transfer.kind == CHARGE
        for side, account in enumerate((transfer.debit, transfer.credit)):
            accounts[account][side] += transfer.amount
            accounts[account][3] += not charge
            days[account, transfer.at_ms // DAY_MS][side] += transfer.amount
        if charge:
            accounts[transfer.debit][2] += transfer.amount
    add_to_sums(connection, balances_table, [(account, *sums) for account, sums in sorted(accounts.items())])
    add_to_sums(connection, turnover, [(*key, *sums) for key, sums in sorted(days.items())])


def _entries() -> sa.Subquery:
    """Both sides of every transfer."""
    charge, nothing = transfers.c.kind == CHARGE, sa.literal(0)
    moves = sa.case((charge, 0), else_=1).label("moves")
    day = (transfers.c.at_ms // DAY_MS).label("day")
    debit = sa.select(
        transfers.c.debit.label("account"),
        day,
        transfers.c.amount.label("debits"),
        nothing.label("credits"),
        sa.case((charge, transfers.c.amount), else_=0).label("charged"),
        moves,
    )
    credit = sa.select(transfers.c.credit, day, nothing, transfers.c.amount, nothing, moves)
    return sa.union_all(debit, credit).subquery()


def _check_same(connection: sa.Connection, batch: Iterable[Transfer]) -> None:
    for transfer in batch:
        stored = find(connection, transfer.id)
        if stored is None or not stored.same_as(transfer):
            raise LedgerError(f"transfer {transfer.id} is already posted with other contents")


def _check_countable(connection: sa.Connection, transfer: Transfer) -> None:
    """The two accounts are locked by now, so their sums are those with every transfer that was posted at once."""
    table = balances_table
    both = sa.select(table).where(table.c.account.in_((transfer.debit, transfer.credit)))
    for sums in connection.execute(both):
        if max(sums.debits, sums.credits) > MAX_MOVED:
            raise Uncountable(f"what {sums.account} moved", MAX_MOVED)
        if sums.account == transfer.credit and sums.account.startswith(_CUSTOMER) and paid_in(sums) > MAX_UNITS:
            raise Uncountable(f"what was paid into {sums.account} and not given back", MAX_UNITS)


def _check_correction(connection: sa.Connection, corrected: str, amount: int) -> None:
    """The two accounts are locked by now, so no other correction of the transfer is under way."""
    moved = sa.select(transfers.c.amount).where(transfers.c.id == corrected)
    taken = sa.select(sa.func.sum(transfers.c.amount)).where(transfers.c.corrects == corrected)
    left = int(connection.execute(moved).scalar_one()) - int(connection.execute(taken).scalar_one())
    if left < 0:
        raise Overcorrected(corrected, left + amount)
