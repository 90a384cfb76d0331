"""The chart of accounts: every account has one place, and no two accounts have one name in a journal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import ledger
from metering.chart import ROOTS, place

LEGAL = re.compile(r"(Assets|Liabilities|Equity|Income)(:[A-Z][A-Za-z0-9-]*)+", re.ASCII)
OWNED = {"customer": "Customers", "contributor": "Contributors", "pool": "Pools", "operator": "Operator"}
owners = st.text(min_size=1, max_size=12) | st.text("aA1-_é", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("account", "name"),
    [
        (ledger.BANK, "Assets:Bank"),
        (ledger.IN_TRANSIT, "Liabilities:Payouts"),
        (ledger.RESIDUAL, "Equity:Residual"),
        (ledger.COMPUTE, "Income:Compute"),
        (ledger.PLATFORM, "Income:Platform"),
        (ledger.customer("acme-research"), "Liabilities:Customers:Id-acme-research"),
        (ledger.contributor("mary"), "Liabilities:Contributors:Id-mary"),
        (ledger.pool("2026-11"), "Liabilities:Pools:Id-2026-11"),
        (ledger.customer("a_b"), "Liabilities:Customers:Id-a--5f-b"),
        (ledger.customer("a--b"), "Liabilities:Customers:Id-a--2d---2d-b"),
        (ledger.customer("-é"), "Liabilities:Customers:Id---2d---e9-"),
        ("operator:other", "Income:Operator:Id-other"),
        ("something else", "Equity:Other:Id-something--20-else"),
    ],
)
def test_accounts_have_names_for_journals(account, name):
    assert place(account).journal_name == name


@given(st.sampled_from(sorted(OWNED)), owners)
def test_every_name_is_legal_and_can_be_read_back(kind, owner):
    account = f"{kind}:{owner}"
    if account in (ledger.COMPUTE, ledger.PLATFORM):
        return
    found = place(account)
    assert found.root in ROOTS
    assert LEGAL.fullmatch(found.journal_name)
    head, _, code = found.journal_name.partition(":Id-")
    assert head.endswith(OWNED[kind])
    assert re.sub(r"--([0-9a-f]+)-", lambda hit: chr(int(hit[1], 16)), code) == owner


@given(owners, owners)
def test_different_accounts_have_different_names(one, other):
    accounts = {f"{kind}:{owner}" for kind in OWNED for owner in (one, other)} | {one, other, ledger.BANK}
    assert len({place(account).journal_name for account in accounts}) == len(accounts)
