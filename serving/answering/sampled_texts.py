"""The sample of the audit by ablation: the text of the queries that were drawn, sealed, and destroyed in time."""

from __future__ import annotations

import time
from typing import Final

import sqlalchemy as sa
import structlog

from metering.records import UsageRecord
from serving.generators.grounded_answer import GroundedAnswer
from serving.store.encryption import DecryptionError, Encryption

_log = structlog.get_logger()
METADATA = sa.MetaData()

table = sa.Table(
    "ablation_samples",
    METADATA,
    sa.Column("record", sa.String(200), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("sealed", sa.LargeBinary, nullable=True),
)
"""``sealed`` is null once the text is destroyed; that the record was drawn is kept."""

DAY_MS: Final = 86_400_000


class SampleError(RuntimeError):
    """The text of a sampled query cannot be read."""


class Samples:
    """What was kept. Thread-safe."""

    def __init__(self, engine: sa.Engine, encryption: Encryption, dispute_days: int) -> None:
        """Text is kept for ``dispute_days`` after the query."""
        self._engine = engine
        self._encryption = encryption
        self._kept_ms = dispute_days * DAY_MS

    def keep(self, record: UsageRecord, grounded: GroundedAnswer, *, sent: bool) -> None:
        """Keep the text of a query whose record is drawn; it may wait for the database's lock.

        Called before the capture, so that what is charged and drawn is kept; what is never charged is in no period.
        If the customer has the answer already (``sent``) and the database refuses, the sample has one query less:
        what was delivered is charged.

        Raises:
            SQLAlchemyError: the database refuses, and the answer was not sent.
        """
        sealed = self._encryption.seal(grounded.encode(), _owner(record.id))
        row = {"record": record.id, "at_ms": record.finished_ms, "sealed": sealed}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(table), row)
        except sa.exc.SQLAlchemyError as error:
            if not sent:
                raise
            _log.error("a sampled query was not kept", receipt=record.id, reason=str(error.__cause__ or error))

    def open(self, record: str) -> GroundedAnswer | None:
        """The grounded answer of a sampled record, or None if its text is destroyed.

        Raises:
            SampleError: it is sealed with another key, or written by another version.
        """
        with self._engine.connect() as connection:
            sealed = connection.execute(sa.select(table.c.sealed).where(table.c.record == record)).scalar_one()
        if sealed is None:
            return None
        try:
            return GroundedAnswer.decode(self._encryption.open(sealed, _owner(record)))
        except (DecryptionError, ValueError) as error:
            raise SampleError(f"the text of sampled query {record} cannot be read: {error}") from error

    def destroy(self) -> int:
        """Destroy the text that was kept for long enough; answers of how many queries."""
        with self._engine.begin() as connection:
            over = sa.update(table).where(self._expired(0)).values(sealed=None)
            return connection.execute(over).rowcount

    def overdue(self, late_ms: int) -> int:
        """How many texts should have been destroyed ``late_ms`` ago."""
        with self._engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(table).where(self._expired(late_ms))
            return int(connection.execute(query).scalar_one())

    def _expired(self, late_ms: int) -> sa.ColumnElement[bool]:
        before = time.time_ns() // 1_000_000 - self._kept_ms - late_ms
        return sa.and_(table.c.sealed.is_not(None), table.c.at_ms < before)


def _owner(record: str) -> str:
    return f"ablation/{record}"
