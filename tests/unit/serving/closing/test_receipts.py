from __future__ import annotations

from types import SimpleNamespace

import pytest

from serving.api import receipts
from serving.closing import lookup
from tests.records import a_record

pytestmark = pytest.mark.anyio


class Moving:
    """A record that is drained between the first look into the log and the look into Redis."""

    def __init__(self) -> None:
        self.record = a_record()
        self.drained = False

    def find(self, _books, receipt, account):
        known = self.drained and (receipt, account) == (self.record.id, self.record.account)
        return lookup.Logged(self.record, "2026-11") if known else None

    async def find_record(self, _account, _receipt):
        self.drained = True


async def test_a_receipt_that_is_drained_while_it_is_looked_for_is_found(monkeypatch):
    moving = Moving()
    monkeypatch.setattr(lookup, "find", moving.find)
    spool = SimpleNamespace(find=lambda _: None)
    service = SimpleNamespace(books=None, metering=SimpleNamespace(spool=spool, meter=moving))

    found = await receipts._find(service, moving.record.id, moving.record.account)
    assert found == moving.record
    assert await receipts._find(service, "another", moving.record.account) is None
