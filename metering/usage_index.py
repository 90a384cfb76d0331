"""The usage index: in SQL, which segments are registered, where each record is, and what was used by day.

The drain alone writes it, in the transaction that posts a segment's transfers: a record is in the index if and only if
its charge is in the ledger.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

_ID = sa.String(200)

shards = sa.Table(
    "shards",
    METADATA,
    sa.Column("shard", sa.Integer, primary_key=True),
    sa.Column("last", sa.String(40), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
)
"""How far each shard is registered: ``last`` is the stream id of its last registered record, its mark, and ``fence``
the fencing token of the drainer that registered it."""

segments = sa.Table(
    "segments",
    METADATA,
    sa.Column("name", _ID, primary_key=True),
    sa.Column("shard", sa.Integer, nullable=False),
    sa.Column("first", sa.String(40), nullable=False),
    sa.Column("last", sa.String(40), nullable=False),
    sa.Column("records", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("period", sa.String(7), nullable=False, index=True),
    sa.Column("charge", sa.BigInteger, nullable=False),
)
"""The registered segments, see :class:`metering.usage_log.Segment`, each in one period; ``charge`` is their sum."""

segment_hours = sa.Table(
    "segment_hours",
    METADATA,
    sa.Column("segment", _ID, primary_key=True),
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("records", sa.Integer, nullable=False),
)
"""How many of a segment's records were answered in each hour since the epoch."""

receipts = sa.Table(
    "receipts",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("account", _ID, nullable=False, index=True),
    sa.Column("segment", _ID, nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
)
"""Where each record is: the row of a segment."""

idempotency = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("account", _ID, primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("record", _ID, nullable=False),
)
"""The record of each Idempotency-Key that a client sent, by its fingerprint: never charged a second time."""

usage_daily = sa.Table(
    "usage_daily",
    METADATA,
    sa.Column("account", _ID, primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("model", _ID, primary_key=True),
    sa.Column("key", _ID, primary_key=True),
    sa.Column("queries", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("charge", sa.BigInteger, nullable=False),
    sa.Column("free", sa.BigInteger, nullable=False, server_default="0"),
)
"""The sums of the records of a day (UTC), in units and tokens."""
