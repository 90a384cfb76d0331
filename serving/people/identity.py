"""Identity: customers, operators and API keys. Contributors are in the catalogue.

An API key is shown once. What is stored is its SHA-256: the key has 160 random bits, so a slow hash would add
nothing but latency.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa
from cachetools import TTLCache

from metering.meter import KeyRevoked
from serving.rules import limits
from serving.rules.limits import KeyLimits

METADATA = sa.MetaData()
_ID = sa.String(200)

customers = sa.Table(
    "customers",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.String(500), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

operators = sa.Table(
    "operators",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.String(500), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(20), nullable=False),
    sa.Column("owner", _ID, nullable=False, index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    *[sa.Column(name, sa.BigInteger, nullable=True) for name in limits.NAMES],
    sa.Column("revoked_ms", sa.BigInteger, nullable=True),
)

Role = Literal["customer", "contributor", "operator"]
ROLES: Final[tuple[str, ...]] = get_args(Role)
NAME_CHARS_MAX: Final = 500
_PREFIX: Final = "patronage"
_CACHE_SECONDS: Final = 1.0


class IdentityError(ValueError):
    """An identity that cannot be made; the message says why."""


class InvalidName(IdentityError):
    """Not a name."""


class UnknownKey(IdentityError):
    """There is no API key of that id."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who an API key speaks for."""

    role: Role
    id: str
    key: str
    """The id of the key."""
    limits: KeyLimits = field(default_factory=KeyLimits)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without what makes it secret."""

    id: str
    role: Role
    owner: str
    created_ms: int
    revoked_ms: int | None
    limits: KeyLimits


class Identities:
    """The register. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._known: TTLCache[str, Caller] = TTLCache(10_000, _CACHE_SECONDS)
        self._lock = threading.Lock()

    def add_customer(self, customer: str, name: str) -> None:
        """Register a customer.

        Raises:
            IdentityError: the id is taken.
        """
        self._add(customers, customer, name)

    def add_operator(self, operator: str, name: str) -> None:
        """Register an operator.

        Raises:
            IdentityError: the id is taken.
        """
        self._add(operators, operator, name)

    def customers(self) -> dict[str, str]:
        """Id and name of every customer, by id."""
        return self._names(customers)

    def operators(self) -> dict[str, str]:
        """Id and name of every operator, by id."""
        return self._names(operators)

    def is_customer(self, customer: str) -> bool:
        """Whether a customer of that id is registered."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(customers.c.id).where(customers.c.id == customer)).first() is not None

    def issue_key(self, role: Role, owner: str, own: KeyLimits | None = None) -> str:
        """Make an API key. This is the only time that it can be seen."""
        identifier = secrets.token_hex(6)
        key = f"{_PREFIX}-{role}-{identifier}-{secrets.token_urlsafe(20)}"
        row = {
            "id": identifier,
            "sha256": _digest(key),
            "role": role,
            "owner": owner,
            "created_ms": _now_ms(),
            **asdict(own or KeyLimits()),
        }
        with self._engine.begin() as connection:
            connection.execute(sa.insert(api_keys), row)
        return key

    def keys(self, owner: str | None = None) -> list[ApiKey]:
        """Every key, or those of one owner, revoked ones too, oldest first."""
        query = sa.select(api_keys).order_by(api_keys.c.created_ms, api_keys.c.id)
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(query if owner is None else query.filter_by(owner=owner))]

    def key(self, identifier: str) -> ApiKey:
        """One key.

        Raises:
            UnknownKey: there is none of that id.
        """
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == identifier)).first()
        if row is None:
            raise UnknownKey(f"there is no API key with the id {identifier[:80]}")
        return _key(row)

    def set_limits(self, identifier: str, changes: Mapping[str, int | None]) -> ApiKey:
        """Change limits of a key; they hold for its next request, and in other processes within a second.

        Raises:
            UnknownKey: there is none of that id.
        """
        if changes:
            with self._engine.begin() as connection:
                connection.execute(sa.update(api_keys).where(api_keys.c.id == identifier).values(**changes))
            with self._lock:
                self._known.clear()
        return self.key(identifier)

    def revoke(self, identifier: str) -> ApiKey:
        """Mark a key as revoked, for ever. The meter must hear of it too, see :func:`serving.people.keys.revoke`.

        Raises:
            UnknownKey: there is none of that id.
        """
        revoked = sa.update(api_keys).where(api_keys.c.id == identifier, api_keys.c.revoked_ms.is_(None))
        with self._engine.begin() as connection:
            connection.execute(revoked.values(revoked_ms=_now_ms()))
        return self.key(identifier)

    def revoked_keys(self) -> list[ApiKey]:
        """Every key of a customer that was revoked."""
        query = sa.select(api_keys).where(api_keys.c.role == "customer", api_keys.c.revoked_ms.is_not(None))
        with self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(query)]

    def find(self, key: str) -> Caller | None:
        """Who the key speaks for, or None if it is not one of ours.

        Raises:
            KeyRevoked: it was one of ours.
        """
        query = sa.select(api_keys).where(api_keys.c.sha256 == _digest(key))
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        found = _key(row)
        if found.revoked_ms is not None:
            raise KeyRevoked("the API key was revoked")
        return Caller(found.role, found.owner, found.id, found.limits)

    def find_payer(self, key: str) -> Caller | None:
        """As :meth:`find`, at most a second old: for paid queries, where the meter refuses a revoked key at once."""
        known = self.remembered(key) or self.find(key)
        if known is not None:
            with self._lock:
                self._known[_digest(key)] = known
        return known

    def remembered(self, key: str) -> Caller | None:
        """Whom :meth:`find_payer` has found in the last second; it does not wait for the database."""
        with self._lock:
            return self._known.get(_digest(key))

    def _names(self, table: sa.Table) -> dict[str, str]:
        with self._engine.connect() as connection:
            query = sa.select(table.c.id, table.c.name).order_by(table.c.id)
            return {row.id: row.name for row in connection.execute(query)}

    def _add(self, table: sa.Table, identifier: str, name: str) -> None:
        row = {"id": identifier, "name": check_name(name), "created_ms": _now_ms()}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(table), row)
        except sa.exc.IntegrityError:
            raise IdentityError(f"{table.name[:-1]} id {identifier} is taken: choose another") from None


def check_name(name: str) -> str:
    """``name`` if it can be someone's.

    Raises:
        InvalidName: it is blank, too long, or has characters that cannot be stored.
    """
    if not name.strip() or len(name) > NAME_CHARS_MAX:
        raise InvalidName(f"a name has 1 to {NAME_CHARS_MAX} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise InvalidName("a name has no control characters and no broken Unicode")
    return name


def new_id(name: str) -> str:
    """An id made from a name, unlikely to be taken: ``ada-lovelace-3f9c``."""
    slug = "-".join("".join(char if char.isalnum() else " " for char in name.lower()).split())[:40]
    return f"{slug or 'id'}-{secrets.token_hex(3)}"


def _key(row: sa.Row[Any]) -> ApiKey:
    own = KeyLimits(*(getattr(row, name) for name in limits.NAMES))
    return ApiKey(row.id, row.role, row.owner, row.created_ms, row.revoked_ms, own)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
