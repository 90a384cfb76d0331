"""The trial balance: every account of the ledger with its balance at one moment, and the transfers of one of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from metering import ledger, periods, sql
from metering.chart import ROOTS, place
from metering.ledger import Transfer
from metering.money import Currency
from serving.money.booking import Unknown, now_ms

FOREVER_MS: Final = 2**53
"""A moment behind every transfer."""


@dataclass(frozen=True, slots=True)
class Group:
    """The accounts that stand at one place of the chart, by name, with their balances in units."""

    root: str
    name: str
    accounts: dict[str, int]

    @property
    def balance(self) -> int:
        """The sum of the accounts."""
        return sum(self.accounts.values())

    @property
    def members(self) -> dict[str, int]:
        """The accounts, if they are somebody's each; a group that is one account has none."""
        return {account: units for account, units in self.accounts.items() if place(account).owner is not None}


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """What every account held at a moment."""

    at_ms: int
    groups: list[Group]

    def to_json(self, currency: Currency, *, after: str = "", limit: int | None = None) -> dict[str, Any]:
        """The sums of the groups, and the accounts by name: those after ``after``, at most ``limit``."""
        accounts = sorted(
            (account, group, units)
            for group in self.groups
            for account, units in group.accounts.items()
            if account > after
        )
        shown = accounts[:limit]
        return {
            "at": periods.timestamp(self.at_ms),
            "groups": [
                {
                    "root": each.root,
                    "group": each.name,
                    "accounts": len(each.accounts),
                    "balance": currency.amount(each.balance),
                }
                for each in self.groups
            ],
            "total": currency.amount(sum(each.balance for each in self.groups)),
            "accounts": [
                {"account": account, "root": group.root, "group": group.name, "balance": currency.amount(units)}
                for account, group, units in shown
            ],
            "next": shown[-1][0] if len(shown) < len(accounts) else None,
        }


def trial_balance(engine: sa.Engine, at_ms: int | None = None) -> TrialBalance:
    """Every account now, or with all that had happened by a moment."""
    with sql.snapshot(engine) as connection:
        balances = ledger.balances(connection, at_ms)
    placed = sorted((ROOTS.index(place(each).root), place(each).group, each) for each in balances)
    groups = [
        Group(ROOTS[root], name, {account: balances[account] for _, _, account in members})
        for (root, name), members in itertools.groupby(placed, key=lambda each: each[:2])
    ]
    return TrialBalance(now_ms() if at_ms is None else at_ms, groups)


def history(
    engine: sa.Engine, currency: Currency, account: str, start_ms: int, end_ms: int, limit: int
) -> dict[str, Any]:
    """The last ``limit`` transfers of an account between two moments, both included, with the balance after each.

    Raises:
        Unknown: no transfer ever moved the account.
    """
    with sql.snapshot(engine) as connection:
        if account not in ledger.balances(connection, account=account):
            raise Unknown(f"there is no account {account[:200]} in the ledger; `patronage ledger balances` lists them")
        found = ledger.history(connection, account, start_ms, end_ms, limit + 1)
        closing = ledger.balance(connection, account, end_ms)
    shown = found[-limit:]
    opening = closing - sum(_effect(each, account) for each in shown)
    balance, lines = opening, []
    for each in shown:
        balance += _effect(each, account)
        lines.append(_line(each, account, balance, currency))
    return {
        "account": account,
        "opening": currency.amount(opening),
        "closing": currency.amount(closing),
        "transfers": lines,
        "more": len(found) > limit,
    }


def _effect(transfer: Transfer, account: str) -> int:
    return transfer.amount if transfer.credit == account else -transfer.amount


def _line(transfer: Transfer, account: str, balance: int, currency: Currency) -> dict[str, Any]:
    return {
        "id": transfer.id,
        "at": periods.timestamp(transfer.at_ms),
        "kind": transfer.kind,
        "other": transfer.debit if transfer.credit == account else transfer.credit,
        "amount": currency.amount(_effect(transfer, account)),
        "balance": currency.amount(balance),
        "reference": transfer.reference,
        "reason": transfer.reason,
        "corrects": transfer.corrects,
    }
