"""Many usage records, written as segments without making one of them in Python: for what must be large to be tested."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metering.durable import write_durably
from metering.periods import HOUR_MS
from metering.records import PPM, VALUE_ONE, fields_of
from metering.usage_log import RECORD_SCHEMA, Segment, UsageLog

DOCUMENTS, CONTRIBUTORS, ACCOUNTS, PLAYERS = 20_000, 500, 200, 5
PER_SEGMENT = 5_000
MONTH_HOURS = 31 * 24
JANUARY_MS = 1_767_225_600_000


def write_many(log: UsageLog, records: int, hours: int = MONTH_HOURS, seed: int = 1) -> list[Segment]:
    """Segments of ``records`` queries, spread over the first hours of January 2026."""
    dice = np.random.default_rng(seed)
    step = hours * HOUR_MS // records
    return [
        _write(log, dice, start, min(PER_SEGMENT, records - start), step) for start in range(0, records, PER_SEGMENT)
    ]


def _write(log: UsageLog, dice: np.random.Generator, start: int, count: int, step: int) -> Segment:
    finished = JANUARY_MS + (start + np.arange(count)) * step
    ids = [f"{start + row:028x}" for row in range(count)]
    charge = dice.integers(1_000_000, 9_000_000, count)
    cost, royalty = charge // 10, (charge - charge // 10) // 2
    columns = {
        "format": np.ones(count, np.int64),
        "id": ids,
        "account": [f"account-{number}" for number in dice.integers(0, ACCOUNTS, count)],
        **dict.fromkeys(("key", "model", "purpose", "value_function", "idempotency"), ["counterfactual/1"] * count),
        "started_ms": finished - 5,
        "finished_ms": finished,
        **dict.fromkeys(("price_version", "policy_version"), np.ones(count, np.int64)),
        **dict.fromkeys(("input_tokens", "output_tokens"), np.full(count, 20)),
        "passages": np.full(count, PLAYERS),
        "charge": charge,
        "cost": cost,
        "platform": charge - cost - royalty,
        "royalty": royalty,
        "free": np.zeros(count, np.int64),
        "values": _lists(pa.array(_tables(dice, count).ravel()), 1 << PLAYERS),
        "uses": _lists(_uses(dice, count * PLAYERS), PLAYERS),
    }
    schema = pa.schema([RECORD_SCHEMA.field(name) for name in fields_of(1)])
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema)
    leaves = [hashlib.sha256(each.encode()).digest() for each in ids]
    table = table.append_column("leaf", pa.array(leaves, pa.binary(32)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    hours = tuple(sorted(Counter((finished // HOUR_MS).tolist()).items()))
    sha256 = hashlib.sha256(data).hexdigest()
    segment = Segment(0, f"{start + 1}-0", f"{start + count}-0", count, sha256, hours)
    write_durably(Path(log.path(segment.name)), data)
    return segment


def _tables(dice: np.random.Generator, count: int) -> np.ndarray:
    """Additive games: their solution costs as much as that of any other."""
    worths = dice.integers(0, VALUE_ONE // PLAYERS, (count, PLAYERS))
    members = (np.arange(1 << PLAYERS)[:, None] >> np.arange(PLAYERS)) & 1
    return worths @ members.T


def _uses(dice: np.random.Generator, count: int) -> pa.Array:
    number = np.minimum(dice.zipf(1.2, count), DOCUMENTS)
    contributors = pa.array([f"contributor-{each}" for each in number % CONTRIBUTORS])
    split = pa.StructArray.from_arrays(
        [contributors, pa.array(["author"] * count), pa.array(np.full(count, PPM))], ["contributor", "role", "ppm"]
    )
    return pa.StructArray.from_arrays(
        [
            pa.array([f"documents/{each}.txt" for each in number]),
            pa.array(["0" * 64] * count),
            contributors,
            _lists(split, 1),
            pa.array(np.full(count, 500_000)),
            pa.array(np.arange(count) % PLAYERS == 0),
            pa.array(np.full(count, JANUARY_MS)),
        ],
        ["document", "version", "contributor", "splits", "score", "cited", "registered_ms"],
    )


def _lists(values: pa.Array, length: int) -> pa.Array:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, length, np.int32), values)
