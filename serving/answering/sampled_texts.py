"""The sample of the audit by ablation: the text of the queries that were drawn, sealed, and destroyed in time.

An answer does not wait for the database's lock: its text goes to the disk, synced, into a file of its own, and from
there into the database, in the background and before whatever counts the sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog

from metering import sql
from metering.durable import write_durably
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
_WAITING: Final = ".sample"
_AT_ONCE: Final = 64


class SampleError(RuntimeError):
    """The text of a sampled query cannot be read."""


class SampleNotKept(OSError):
    """The disk does not take the text of a query that is drawn."""


class Samples:
    """What was kept. Thread-safe, and several processes may use it at once."""

    def __init__(self, engine: sa.Engine, encryption: Encryption, dispute_days: int, folder: Path) -> None:
        """Text is kept for ``dispute_days`` after the query.

        ``folder`` has what is not in the database yet, and is made with the first text.
        """
        self._engine = engine
        self._encryption = encryption
        self._kept_ms = dispute_days * DAY_MS
        self._folder = folder

    def keep(self, record: str, at_ms: int, grounded: GroundedAnswer, *, sent: bool) -> None:
        """Keep the text of a query, answered at ``at_ms``, whose record is drawn.

        Called before the capture, so that what is charged and drawn is kept; what is never charged is in no period.
        If the customer has the answer already (``sent``) and the disk refuses, the sample has one query less: what was
        delivered is charged.

        Raises:
            SampleNotKept: the disk refuses, and the answer was not sent.
        """
        sealed = self._encryption.seal(grounded.encode(), _owner(record))
        try:
            write_durably(self._folder / f"{record}.{at_ms}{_WAITING}", sealed)
        except OSError as error:
            if not sent:
                raise SampleNotKept(*error.args) from error
            _log.error("a sampled query was not kept", receipt=record, reason=str(error))

    def store(self) -> int:
        """Move what was kept into the database, and give how many texts. Repeating it is harmless.

        Raises:
            SQLAlchemyError: the database refuses; what it did not take waits.
        """
        stored = 0
        for files in self._waiting():
            rows: list[dict[str, object]] = []
            for path in files:
                record, at_ms, _ = path.name.rsplit(".", 2)
                with suppress(FileNotFoundError):  # another process stored it
                    rows.append({"record": record, "at_ms": int(at_ms), "sealed": path.read_bytes()})
            if rows:
                with self._engine.begin() as connection:
                    stored += len(sql.insert_new(connection, table, rows))
            for path in files:
                path.unlink(missing_ok=True)
        return stored

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

    def _waiting(self) -> Iterator[list[Path]]:
        """What is not in the database yet, oldest first, a transaction's worth at a time."""
        found = sorted(self._folder.glob(f"*{_WAITING}"))
        for first in range(0, len(found), _AT_ONCE):
            yield found[first : first + _AT_ONCE]

    def _expired(self, late_ms: int) -> sa.ColumnElement[bool]:
        before = time.time_ns() // 1_000_000 - self._kept_ms - late_ms
        return sa.and_(table.c.sealed.is_not(None), table.c.at_ms < before)


def _owner(record: str) -> str:
    return f"ablation/{record}"
