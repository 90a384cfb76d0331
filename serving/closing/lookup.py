"""Where a receipt is in the log."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from metering import usage_index
from metering.records import UsageRecord
from serving.books import Books


class Logged(NamedTuple):
    """A record in the log, and the period it belongs to."""

    record: UsageRecord
    period: str


def find(books: Books, receipt: str, account: str | None = None) -> Logged | None:
    """The record of a receipt, if it is in the log and, where an account is named, of that account.

    Raises:
        SegmentError: its segment is missing or altered.
    """
    receipts, segments = usage_index.receipts, usage_index.segments
    query = (
        sa.select(receipts.c.segment, receipts.c.row, segments.c.sha256, segments.c.period)
        .join_from(receipts, segments, receipts.c.segment == segments.c.name)
        .where(receipts.c.id == receipt)
    )
    if account is not None:
        query = query.where(receipts.c.account == account)
    with books.engine.connect() as connection:
        row = connection.execute(query).first()
    return None if row is None else Logged(books.log.find(row.segment, row.sha256, row.row), row.period)
