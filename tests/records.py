"""Usage records for tests: whole and valid, with what a test cares about set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from metering.records import FORMAT, PPM, VALUE_ONE, Provenance, Split, UsageRecord, Use
from metering.usage_log import RECORD_SCHEMA

MOMENT_MS = 1_768_478_400_000
"""2026-01-15T12:00:00Z: in a period that is over whenever the tests run."""


def a_use(document: str, contributor: str, *, splits: tuple[Split, ...] | None = None, cited: bool = False) -> Use:
    """One retrieved document."""
    return Use(
        document=document,
        version="0" * 64,
        contributor=contributor,
        splits=splits or (Split(contributor, "author", PPM),),
        score=500_000,
        cited=cited,
    )


def a_provenance(**given: Any) -> Provenance:
    """How an answer came about."""
    defaults = {
        "answered": True,
        "epoch": 7,
        "snapshot": "",
        "embedder": "all-MiniLM-L6-v2/int8-1",
        "engine": "0.1.0",
        "counted_by": "all-MiniLM-L6-v2/int8-1",
        "tokenizer": "sha256:0123456789abcdef",
        "machine": "0123456789ab",
        "tags": (),
    }
    return Provenance(**{**defaults, **given})


def a_record(**given: Any) -> UsageRecord:
    """A record of a query with two documents of two contributors.

    ``charge`` is divided if its parts are not given. It is of the newest format, or of the one that is given.
    """
    charge = given.setdefault("charge", 2_000_000)
    given.setdefault("cost", charge // 10)
    given.setdefault("royalty", (charge - given["cost"]) // 2)
    given.setdefault("platform", charge - given["cost"] - given["royalty"])
    given.setdefault("id", "record-1")
    given.setdefault("account", "acme")
    given.setdefault("uses", (a_use("doc-a", "ada", cited=True), a_use("doc-b", "ben")))
    given.setdefault("values", (0, VALUE_ONE // 2, VALUE_ONE // 4, VALUE_ONE * 3 // 4))
    given.setdefault("provenance", a_provenance() if given.get("format", FORMAT) > 1 else None)
    defaults: dict[str, Any] = {
        "key": "key-1",
        "model": "patronage-extractive",
        "purpose": "answer",
        "started_ms": MOMENT_MS,
        "finished_ms": MOMENT_MS + 7,
        "price_version": 1,
        "policy_version": 1,
        "input_tokens": 9,
        "output_tokens": 40,
        "passages": len(given["uses"]),
        "value_function": "counterfactual/1",
    }
    return UsageRecord(**{**defaults, **given})


def a_table(records: Sequence[UsageRecord]) -> pa.Table:
    """Records as the log's columns."""
    table = pa.Table.from_pylist([msgspec.to_builtins(record) for record in records], RECORD_SCHEMA)
    return table.append_column("leaf", pa.array([record.leaf() for record in records], pa.binary(32)))
