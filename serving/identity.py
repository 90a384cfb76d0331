"""Identity: customers, operators and API keys. Contributors are in the catalogue.

An API key is shown once. What is stored is its SHA-256: the key has 160 random bits, so a slow hash would add
nothing but latency.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, get_args

import sqlalchemy as sa
from cachetools import TTLCache

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
)

Role = Literal["customer", "contributor", "operator"]
ROLES: Final[tuple[str, ...]] = get_args(Role)
NAME_CHARS_MAX: Final = 500
_PREFIX: Final = "patronage"
_CACHE_SECONDS: Final = 30.0


class IdentityError(ValueError):
    """An identity that cannot be made; the message says why."""


class InvalidName(IdentityError):
    """Not a name."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who an API key speaks for."""

    role: Role
    id: str
    key: str
    """The id of the key."""


class Identities:
    """The register. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        # Keys are never changed, only revoked, and revocation is checked by the meter at every paid query.
        self._known: TTLCache[str, Caller] = TTLCache(10_000, _CACHE_SECONDS)

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

    def issue_key(self, role: Role, owner: str) -> str:
        """Make an API key. This is the only time that it can be seen."""
        identifier = secrets.token_hex(6)
        key = f"{_PREFIX}-{role}-{identifier}-{secrets.token_urlsafe(20)}"
        row = {
            "id": identifier,
            "sha256": _digest(key),
            "role": role,
            "owner": owner,
            "created_ms": _now_ms(),
        }
        with self._engine.begin() as connection:
            connection.execute(sa.insert(api_keys), row)
        return key

    def find(self, key: str) -> Caller | None:
        """Who the key speaks for, or None if it is not one of ours."""
        digest = _digest(key)
        known = self._known.get(digest)
        if known is not None:
            return known
        query = sa.select(api_keys).where(api_keys.c.sha256 == digest)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        caller = Caller(row.role, row.owner, row.id)
        self._known[digest] = caller
        return caller

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


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
