"""The versions of documents, in SQL, and since when a document has each of its passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from retrieval import passage_table
from retrieval.documents import Document
from retrieval.near_duplicates import Runs, contained, runs_of
from retrieval.passage_table import METADATA, PreparedPassage

versions = sa.Table(
    "versions",
    METADATA,
    sa.Column("document", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("added_ms", sa.BigInteger, nullable=False),
)

_SENIOR: Final = 0.8
"""A passage of which an older version has this part is as old as that version."""


@dataclass(frozen=True, slots=True)
class Ages:
    """Since when a document has passages that it is to be given."""

    dates: list[int]
    """Those of the passages that it has, as long as which this holds."""
    since: list[int | None]
    """Milliseconds, by passage; None for what the version has that they belong to, and no older one."""


def text(connection: sa.Connection, document: str, version: str) -> str | None:
    """The text of a version, or None."""
    query = sa.select(versions.c.text).where(versions.c.document == document, versions.c.sha256 == version)
    return connection.execute(query).scalar_one_or_none()


def store(connection: sa.Connection, document: Document, now: int) -> None:
    """Store the version of a document, unless the document had it before."""
    if connection.execute(_added_ms(document.id, document.version)).first() is None:
        row = {"document": document.id, "sha256": document.version, "text": document.text, "added_ms": now}
        connection.execute(sa.insert(versions).values(row))


def ages(
    connection: sa.Connection, number: int, document: str, version: str, prepared: Sequence[PreparedPassage]
) -> Ages:
    """Since when a document has the passages of a version; it need not be stored. Reads all text that is older."""
    dates = passage_table.dates(connection, number)
    own = connection.execute(_added_ms(document, version)).scalar_one_or_none()
    table = versions.c
    older = sa.select(table.added_ms, table.text).where(table.document == document, table.added_ms.in_(dates))
    if own is not None:
        older = older.where(table.added_ms < own)
    rows = connection.execute(older.order_by(table.added_ms))
    return Ages(dates, first_registered(((row.added_ms, runs_of(row.text)) for row in rows), prepared))


def registered(
    connection: sa.Connection,
    number: int,
    document: str,
    version: str,
    prepared: Sequence[PreparedPassage],
    known: Ages | None,
) -> list[int]:
    """When a document first had the passages of a stored version (ms); ``known`` is what :func:`ages` said before."""
    if known is None or known.dates != passage_table.dates(connection, number):
        known = ages(connection, number, document, version, prepared)
    own = connection.execute(_added_ms(document, version)).scalar_one()
    return [own if since is None else since for since in known.since]


def first_registered(dated: Iterable[tuple[int, Runs]], prepared: Sequence[PreparedPassage]) -> list[int | None]:
    """When a document first had each of its new passages, in milliseconds; None where no older version has it.

    Args:
        dated: older versions, the oldest first: when they were registered, and the runs of their text. A passage
            is compared with what was registered then, and not with what it became since, so that no one can turn
            an old date into one of a new text step by step.
        prepared: the passages of the new version.
    """
    found: list[int | None] = [None] * len(prepared)
    for since, runs in dated:
        for i, passage in enumerate(prepared):
            if found[i] is None and contained(passage.wording.runs, runs) >= _SENIOR:
                found[i] = since
    return found


def _added_ms(document: str, version: str) -> sa.Select[int]:
    return sa.select(versions.c.added_ms).where(versions.c.document == document, versions.c.sha256 == version)
