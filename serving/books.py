"""The books and their meter, opened: what the use cases are given. :mod:`serving.assembly` opens them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from attribution.runs.transparency import Signer
from metering import periods, withdrawals
from metering.credit import funding_of, positions
from metering.drain import Drain
from metering.meter import Limits, Meter, Position
from metering.money import Currency
from metering.redis.connection import Server
from metering.settling import Settling
from metering.spool import Spool
from metering.usage_log import UsageLog
from retrieval.catalogue import Catalogue
from serving.answering.sampled_texts import Samples
from serving.people.identity import Identities
from serving.rules.rulebook import Rulebook
from serving.settings import Settings
from serving.store.data_dir import DataDir
from serving.store.deployment import Deployment
from serving.store.encryption import Encryption
from serving.store.jobs import Jobs
from serving.store.leases import Lease

_AT_ONCE: Final = 64
_MONTH_MS: Final = 31 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that needs no Redis and no model."""

    settings: Settings
    directory: DataDir
    engine: sa.Engine
    deployment: Deployment
    catalogue: Catalogue
    identities: Identities
    rulebook: Rulebook
    log: UsageLog
    encryption: Encryption
    limits: Limits
    """The limits of API keys that have none of their own."""
    low_balance: int
    """The balance, in units, below which an account is signalled as low, by the settings; 0 is never."""
    samples: Samples
    jobs: Jobs

    @property
    def currency(self) -> Currency:
        """The deployment's currency."""
        return self.deployment.currency

    @property
    def signer(self) -> Signer:
        """The operator's signing key."""
        return self.directory.signer(self.deployment.origin)


@dataclass(frozen=True, slots=True)
class Metering:
    """The meter, its drain and its spool, on one Redis."""

    books: Books
    meter: Meter
    drain: Drain
    servers: tuple[Server, ...]
    """Every Redis master, as it was when the meter was opened."""
    spool: Spool
    settling: Settling
    lease: Lease

    async def catch_up(self) -> None:
        """Bring what the meter does not know of up to the ledger, and settle what was left open.

        So a crash between the two loses no payment or revocation, one between delivery and charge no charge, and what
        a dead process held is free.
        """
        await withdrawals.recover(self.books.engine, self.meter)
        for customer in await self._behind():
            await self.meter.fund(await asyncio.to_thread(funding_of, self.books.engine, customer))
        revoked = await asyncio.to_thread(self.books.identities.revoked_keys)
        for i in range(0, len(revoked), _AT_ONCE):
            await asyncio.gather(*[self.meter.revoke(key.owner, key.id) for key in revoked[i : i + _AT_ONCE]])
        await self.settling.settle()

    async def _behind(self) -> list[str]:
        """The customers of whose accounts the ledger knows more than the meter, and those that the meter lacks."""
        customers = list(await asyncio.to_thread(self.books.identities.customers))
        posted = await asyncio.to_thread(self._positions)
        known = await self.meter.positions(customers)
        nothing = Position(0, 0)
        return [name for name in customers if name not in known or known[name].is_behind(posted.get(name, nothing))]

    def _positions(self) -> dict[str, Position]:
        last_month = periods.of(time.time_ns() // 1_000_000 - _MONTH_MS)
        with self.books.engine.connect() as connection:
            return positions(connection, last_month)
