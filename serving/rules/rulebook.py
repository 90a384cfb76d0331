"""The rulebook: price books and policies by version, as the operator has set them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from attribution.policy import Policy, PolicyError
from metering.money import Currency
from metering.pricing import ModelPrice, PriceBook, PriceError, in_force

METADATA = sa.MetaData()

price_books = sa.Table(
    "price_books",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

policies = sa.Table(
    "policies",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

EXTRACTIVE: Final = "patronage-extractive"
NOTICE_MS: Final = 5_000
"""A price book takes effect this long after it is set, at the earliest: every server has read it by then."""
_CACHE_SECONDS: Final = 1.0
_KEPT_SECONDS: Final = 4.0
"""Less than the notice of a price book."""

# What a new deployment begins with, in ten-thousandths of the currency: 0.002 and some a query, half of what is left
# after the computing for the documents.
_STARTING_PRICE: Final = {
    "request": "0.0020",
    "input_per_1k": "0.0010",
    "output_per_1k": "0.0020",
    "passage": "0.0001",
    "cost_request": "0.0002",
    "cost_input_per_1k": "0.0005",
    "cost_output_per_1k": "0.0005",
}
# Embeddings are sold at cost: no document is used, so there is nothing to share.
_STARTING_EMBEDDING_PRICE: Final = {"request": "0", "input_per_1k": "0.0001", "cost_input_per_1k": "0.0001"}
_STARTING_DATA_SHARE_PPM: Final = 500_000


@dataclass(frozen=True, slots=True)
class _Rules:
    books: list[PriceBook]
    policy: Policy
    read_at: float


class Rulebook:
    """The price books and the newest policy, re-read every second. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._rules: _Rules | None = None
        self._lasts = _CACHE_SECONDS
        self._reading = threading.Lock()

    def begin(self, connection: sa.Connection, currency: Currency, embedding_model: str) -> None:
        """Give a new deployment its first price book and policy, in the transaction that makes it."""
        starting = {EXTRACTIVE: _STARTING_PRICE, embedding_model: _STARTING_EMBEDDING_PRICE}
        models = {
            model: ModelPrice(**{name: currency.parse(amount) for name, amount in prices.items()})
            for model, prices in starting.items()
        }
        first = {price_books: PriceBook(1, models).to_json(), policies: Policy(1, _STARTING_DATA_SHARE_PPM).to_json()}
        for table, body in first.items():
            row = {"version": 1, "body": json.dumps(body), "created_ms": _now_ms()}
            connection.execute(sa.insert(table), row)

    def keep_current(self) -> None:
        """Read the rules anew. Whoever does so every half second, beside an event loop, spares that all reading."""
        self._rules = self._read()
        self._lasts = _KEPT_SECONDS

    @property
    def prices(self) -> PriceBook:
        """The price book in force now."""
        return self.prices_at(_now_ms())

    def prices_at(self, at_ms: int) -> PriceBook:
        """The price book in force at a moment, in milliseconds since the epoch."""
        return in_force(self._current().books, at_ms)

    def price_books(self) -> list[PriceBook]:
        """Every price book, by version."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(price_books.c.body).order_by(price_books.c.version)).scalars()
            return [PriceBook.from_json(json.loads(body)) for body in rows]

    def set_prices(
        self, models: dict[str, ModelPrice], free_per_month: int, effective_ms: int | None = None
    ) -> PriceBook:
        """Add a price book, for queries that begin at ``effective_ms`` or later; without it, as soon as can be.

        Raises:
            PriceError: it sells nothing, takes effect too soon, or another book was set at the same moment.
        """
        now = _now_ms()
        if effective_ms is not None and effective_ms < now + NOTICE_MS:
            raise PriceError(
                f"a price book takes effect {NOTICE_MS // 1000} s from now at the earliest: queries before that "
                "are sold by the books there are"
            )
        newest = self.price_books()[-1].version
        book = PriceBook(newest + 1, models, effective_ms or now + NOTICE_MS, free_per_month)
        row = {"version": book.version, "body": json.dumps(book.to_json()), "created_ms": now}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(price_books), row)
        except sa.exc.IntegrityError:
            raise PriceError("another price book was set at the same moment: look at it, and set yours again") from None
        return book

    def price_book(self, version: int) -> PriceBook:
        """The price book of a version.

        Raises:
            NoResultFound: there never was one.
        """
        with self._engine.connect() as connection:
            body = connection.execute(sa.select(price_books.c.body).where(price_books.c.version == version))
            return PriceBook.from_json(json.loads(body.scalar_one()))

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._current().policy

    def policy_of(self, version: int) -> Policy:
        """A version of the policy, in force or not."""
        current = self.policy
        if current.version == version:
            return current
        query = sa.select(policies.c.body).where(policies.c.version == version)
        with self._engine.connect() as connection:
            return Policy.from_json(json.loads(connection.execute(query).scalar_one()))

    def adopt_policy(self, changes: Mapping[str, int | str | None], validate: Callable[[Policy], None]) -> Policy:
        """Put a new policy in force, for queries from now on.

        Args:
            changes: fields of :class:`Policy`; what is missing or None stays as it is in the newest.
            validate: raises ``PolicyError`` for a policy that this deployment cannot compute.

        Raises:
            PolicyError: a field is wrong, ``validate`` refuses, or another policy was adopted at the same moment.
        """
        current = self._newest(policies)
        chosen = {name: value for name, value in changes.items() if value is not None}
        policy = Policy.from_json({**current, **chosen, "version": current["version"] + 1})
        validate(policy)
        row = {"version": policy.version, "body": json.dumps(policy.to_json()), "created_ms": _now_ms()}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(policies), row)
        except sa.exc.IntegrityError:
            raise PolicyError("another policy was adopted at the same moment: look at it, and adopt yours") from None
        return policy

    def _current(self) -> _Rules:
        rules = self._rules
        if rules is not None and time.monotonic() - rules.read_at < self._lasts:
            return rules
        with self._reading:
            if self._rules is rules:  # nobody has read them meanwhile
                self._rules = self._read()
            assert self._rules is not None  # noqa: S101 # read just now
            return self._rules

    def _read(self) -> _Rules:
        began = time.monotonic()
        return _Rules(self.price_books(), Policy.from_json(self._newest(policies)), began)

    def _newest(self, table: sa.Table) -> dict[str, Any]:
        with self._engine.connect() as connection:
            body = connection.execute(sa.select(table.c.body).order_by(table.c.version.desc()).limit(1))
            found: dict[str, Any] = json.loads(body.scalar_one())
            return found


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
