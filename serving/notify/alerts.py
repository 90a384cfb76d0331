"""Low-balance alerts: when an account runs low, that is counted, and its webhook is told once.

An account is low from the moment when what is left of it (its balance, and its credit limit where it is invoiced) is
below its threshold, until it is not. Becoming low puts one event into the outbox, in the same transaction, so that the
webhook hears of it whatever dies in between; :mod:`serving.notify.dispatcher` delivers it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from metering import periods, sql
from metering.meter import Meter
from serving.books import Books
from serving.notify import outbox
from serving.notify.outbox import Event
from serving.notify.webhooks import URL_CHARS_MAX, check_url, new_secret
from serving.rules.limits import parse_amount, show_amount

METADATA = sa.MetaData()

alerts = sa.Table(
    "alerts",
    METADATA,
    sa.Column("account", sa.String(200), primary_key=True),
    sa.Column("threshold", sa.BigInteger, nullable=True),
    sa.Column("url", sa.String(URL_CHARS_MAX), nullable=True),
    sa.Column("secret", sa.LargeBinary, nullable=True),
    sa.Column("low_ms", sa.BigInteger, nullable=True, index=True),
)

EVENT: Final = "account.balance_low"


@dataclass(frozen=True, slots=True)
class Alert:
    """What is chosen for one account, and whether it is low."""

    threshold: int | None = None
    """Units; None is what the settings say, 0 is no alert."""
    url: str | None = None
    low_ms: int | None = None


def of(books: Books, account: str) -> Alert:
    """The alert of an account."""
    query = sa.select(alerts.c.threshold, alerts.c.url, alerts.c.low_ms).where(alerts.c.account == account)
    with books.engine.connect() as connection:
        row = connection.execute(query).first()
    return Alert() if row is None else Alert(*row)


def render(alert: Alert, books: Books) -> dict[str, Any]:
    """An alert for the outside; ``threshold`` is what holds, ``below`` what was chosen."""
    threshold = _threshold(alert, books)
    return {
        "below": show_amount(alert.threshold, books.currency),
        "threshold": books.currency.amount(threshold) if threshold else None,
        "webhook": alert.url,
        "low_since": None if alert.low_ms is None else periods.timestamp(alert.low_ms),
    }


async def change(books: Books, meter: Meter, account: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Choose ``below`` (an amount, ``none`` or ``default``) or ``webhook`` (a URL, or None or ``none``), or both.

    Returns:
        The alert as :func:`render` gives it, with the ``secret`` of a new webhook: the only time that it can be seen.

    Raises:
        LimitError, WebhookError: not an amount, not a URL that may be called; nothing was changed.
    """
    values: dict[str, Any] = {}
    secret: str | None = None
    if "below" in changes:
        values["threshold"] = parse_amount("below", changes["below"], books.currency)
    if "webhook" in changes and changes["webhook"] in (None, "none"):
        values |= {"url": None, "secret": None}
    elif "webhook" in changes:
        url = check_url(changes["webhook"], private=books.settings.webhook_private_hosts)
        secret = new_secret()
        values |= {"url": url, "secret": books.encryption.seal(secret.encode(), _owner(account))}
    if values:
        await asyncio.to_thread(_store, books, account, values)
        await check(books, meter, [account])
    found = render(await asyncio.to_thread(of, books, account), books)
    return found if secret is None else {**found, "secret": secret}


def webhook_of(books: Books, account: str) -> tuple[str | None, bytes | None]:
    """The URL of an account's webhook and its sealed secret; None for both if it has none."""
    query = sa.select(alerts.c.url, alerts.c.secret).where(alerts.c.account == account)
    with books.engine.connect() as connection:
        row = connection.execute(query).first()
    return (None, None) if row is None else (row.url, row.secret)


def secret_of(books: Books, account: str, sealed: bytes) -> str:
    """The secret that an account's webhook is signed with."""
    return books.encryption.open(sealed, _owner(account)).decode()


async def check(books: Books, meter: Meter, accounts: Iterable[str]) -> None:
    """See whether accounts have become low, or are so no more.

    Raises:
        MeterUnavailable: the meter does not answer.
    """
    for account in accounts:
        try:
            found = await meter.balance(account)
        except KeyError:  # registered, and not opened yet
            continue
        left = found.funded + found.credit_limit - found.spent
        await asyncio.to_thread(_mark, books, account, left)


def low_accounts(books: Books) -> list[str]:
    """Every account that is low."""
    with books.engine.connect() as connection:
        return list(connection.execute(sa.select(alerts.c.account).where(alerts.c.low_ms.is_not(None))).scalars())


def _owner(account: str) -> str:
    return f"webhook:{account}"


def _threshold(alert: Alert, books: Books) -> int:
    return books.low_balance if alert.threshold is None else alert.threshold


def _store(books: Books, account: str, values: dict[str, Any]) -> None:
    with books.engine.begin() as connection:
        sql.insert_new(connection, alerts, [{"account": account}])
        connection.execute(sa.update(alerts).where(alerts.c.account == account).values(**values))
        if "url" in values:
            outbox.reset(connection, account)


def _mark(books: Books, account: str, left: int) -> None:
    """Of all who see an account become low, one marks it, and that one writes the event."""
    alert = of(books, account)
    threshold = _threshold(alert, books)
    low = left < threshold
    if low == (alert.low_ms is not None):
        return
    now = time.time_ns() // 1_000_000
    with books.engine.begin() as connection:
        sql.insert_new(connection, alerts, [{"account": account}])
        if not low:
            connection.execute(sa.update(alerts).where(alerts.c.account == account).values(low_ms=None))
            return
        mine = sa.update(alerts).where(alerts.c.account == account, alerts.c.low_ms.is_(None)).values(low_ms=now)
        if connection.execute(mine).rowcount == 1 and alert.url is not None:
            amounts = {"left": left, "threshold": threshold}
            data = {name: books.currency.amount(units) for name, units in amounts.items()}
            body = {"type": EVENT, "timestamp": periods.timestamp(now), "data": {"account": account, **data}}
            text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
            outbox.add(connection, Event(f"msg_{uuid.uuid4().hex}", account, text))
