"""Where documents were read from: the file of each that came from one, in SQL.

A file's document keeps the id that it had, however its path is written the next time; and a file elsewhere, whose
path would give the same id, is not taken for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

METADATA = sa.MetaData()

document_sources = sa.Table(
    "document_sources",
    METADATA,
    sa.Column("document", sa.String(200), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("path_sha256", sa.String(64), nullable=False, index=True),
)


def of(connection: sa.Connection, documents: Iterable[str]) -> dict[str, str]:
    """The path of each of these documents that came from a file."""
    table = document_sources.c
    query = sa.select(table.document, table.path).where(table.document.in_(list(documents)))
    return {row.document: row.path for row in connection.execute(query)}


def at(connection: sa.Connection, paths: Iterable[str]) -> dict[str, list[str]]:
    """By path, the documents that came from there, in the order of their ids."""
    table = document_sources.c
    query = sa.select(table.document, table.path).where(table.path_sha256.in_([_digest(path) for path in paths]))
    found: dict[str, list[str]] = {}
    for row in connection.execute(query.order_by(table.document)):
        found.setdefault(row.path, []).append(row.document)
    return found


def record(connection: sa.Connection, paths: Mapping[str, str]) -> None:
    """Note the path that each of these documents was read from last."""
    known = of(connection, paths)
    new = {document: path for document, path in paths.items() if known.get(document) != path}
    if new:
        connection.execute(sa.delete(document_sources).where(document_sources.c.document.in_(list(new))))
        rows = [{"document": each, "path": path, "path_sha256": _digest(path)} for each, path in new.items()]
        connection.execute(sa.insert(document_sources), rows)


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
