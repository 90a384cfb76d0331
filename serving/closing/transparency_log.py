"""The transparency log: an append-only Merkle tree with a leaf for every run, and what it proves.

A leaf is the manifest of a run, which names the root of the run's input. So whoever has two checkpoints can have it
proved that nothing between them was rewritten, and whoever has a receipt, that it is in a run.
"""

from __future__ import annotations

import base64
from typing import Any

import sqlalchemy as sa

from attribution.runs.transparency import Checkpoint, encode_proof
from metering import merkle
from serving.books import Books

METADATA = sa.MetaData()

run_log = sa.Table(
    "run_log",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.String(64), nullable=False, unique=True),
    sa.Column("leaf", sa.String(64), nullable=False),
)


class LogSizeError(ValueError):
    """The log never had that size."""


def append(connection: sa.Connection, run_id: str, manifest: bytes) -> None:
    """Add a run at the end.

    Raises:
        IntegrityError: another run was added at the same moment.
    """
    number = connection.execute(sa.select(sa.func.count()).select_from(run_log)).scalar_one()
    leaf = merkle.leaf_hash(manifest).hex()
    connection.execute(sa.insert(run_log).values(number=number, run_id=run_id, leaf=leaf))


def tree(engine: sa.Engine) -> merkle.Tree:
    """The log as it is."""
    with engine.connect() as connection:
        leaves = connection.execute(sa.select(run_log.c.leaf).order_by(run_log.c.number)).scalars()
        return merkle.Tree([bytes.fromhex(leaf) for leaf in leaves])


def checkpoint(books: Books) -> dict[str, Any]:
    """The signed root of the log."""
    return _checkpoint(books, tree(books.engine))


def consistency(books: Books, size: int) -> dict[str, Any]:
    """The proof that the log only grew since it had ``size`` runs, with the checkpoint that it leads to.

    Raises:
        LogSizeError: it never had that size.
    """
    found = tree(books.engine)
    try:
        path = found.consistency_proof(size)
    except IndexError as error:
        raise LogSizeError(f"the log has {len(found)} runs, not {size}") from error
    return {"from": size, "to": len(found), "path": encode_proof(path), **_checkpoint(books, found)}


def inclusion(books: Books, run_id: str) -> dict[str, Any] | None:
    """The proof that a run is in the log, with a checkpoint; None if it is not."""
    with books.engine.connect() as connection:
        query = sa.select(run_log.c.number).where(run_log.c.run_id == run_id)
        number = connection.execute(query).scalar_one_or_none()
    if number is None:
        return None
    found = tree(books.engine)
    return {"index": number, "path": encode_proof(found.inclusion_proof(number)), **_checkpoint(books, found)}


def _checkpoint(books: Books, found: merkle.Tree) -> dict[str, Any]:
    signer = books.signer
    return {
        "origin": signer.name,
        "size": len(found),
        "root": base64.b64encode(found.root).decode(),
        "checkpoint": signer.sign(Checkpoint(signer.name, len(found), found.root)),
        "public_key": signer.public_key,
    }
