"""Dividing segments: from the log's columns to credits and sums, with no Python object for a record in between."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from attribution.runs.adopted import NEW_RUNS, PAYMENTS, Rules
from attribution.runs.run import Batch, divide
from attribution.runs.tally import CreditKey, Line, LineKey, Tally, Totals
from metering.usage_log import LEAF, RECORD_SCHEMA, parquet_path

_SUMS: Final = ("charge", "cost", "platform", "royalty")
_RECORD: Final = ("id", LEAF.name, "account", "policy_version", "value_function", *_SUMS)

COLUMNS: Final = (
    *_RECORD,
    "finished_ms",
    "values",
    *(parquet_path(f"uses.{name}") for name in ("document", "contributor", "cited")),
    *(parquet_path(f"uses.splits.{name}") for name in ("contributor", "role", "ppm")),
)
"""The columns that are read of a segment."""

CREDIT: Final = pa.schema(
    [
        ("record", RECORD_SCHEMA.field("id").type),
        *((name, pa.string()) for name in ("document", "contributor", "role")),
        ("units", pa.int64()),
    ]
)
"""The columns of credits."""

_CREDIT_KEY: Final = list(CreditKey._fields)
_LINE_KEY: Final = list(LineKey._fields)
_LINE: Final = list(Line.__slots__)
_MERGE_ROWS: Final = 200_000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Divided:
    """Some records divided. All tables are in the order of the records."""

    records: pa.Table
    """A row each: id, leaf, account, policy_version, value_function, charge, cost, platform, royalty, earned."""
    uses: pa.Table
    """A row for each document retrieved: record (its row), and a :class:`attribution.runs.tally.Line` of its own."""
    cells: pa.Table
    """A row for each split of each use: record (its row), :class:`attribution.runs.tally.CreditKey`, units."""

    def part(self, begin: int, end: int) -> Divided:
        """The records from ``begin`` to ``end``."""
        return Divided(
            self.records.slice(begin, end - begin),
            *(_of_records(table, begin, end) for table in (self.uses, self.cells)),
        )

    @property
    def totals(self) -> Totals:
        """The sums over the records."""
        names = ("charge", "cost", "platform", "royalty", "earned")
        charge, cost, platform, royalty, earned = (int(_ints(self.records[name]).sum()) for name in names)
        return Totals(len(self.records), charge, cost, platform, earned, royalty - earned)

    @property
    def policy_version(self) -> int:
        """The newest policy of the records; 0 where there are none."""
        return int(_ints(self.records["policy_version"]).max(initial=0))

    @property
    def value_functions(self) -> dict[str, int]:
        """How many records were valued by each."""
        found = pc.value_counts(self.records["value_function"])
        return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))

    @property
    def credits(self) -> pa.Table:
        """Who was given units for what: record (its row), document, contributor, role, units."""
        return self.cells.filter(pc.not_equal(self.cells["units"], 0)).select(CREDIT.names)

    @property
    def lines(self) -> pa.Table:
        """What each document did, by :class:`attribution.runs.tally.LineKey`."""
        return summed(self.uses, _LINE_KEY, _LINE)

    @property
    def credited(self) -> pa.Table:
        """Each contributor's earnings by :class:`attribution.runs.tally.CreditKey`, zeros included."""
        return summed(self.cells, _CREDIT_KEY, ["units"])


def divided(table: pa.Table, rules: Rules = NEW_RUNS) -> Divided:
    """Divide the records of a table with the ``COLUMNS`` of the log.

    Raises:
        RunError: a record cannot be divided.
    """
    table = table.combine_chunks()
    uses = table["uses"].combine_chunks()
    use = uses.flatten()
    splits = use.field("splits")
    split = splits.flatten()
    values = table["values"].combine_chunks()
    batch = Batch(
        ids=_Texts(table["id"]),
        leaves=table["leaf"].to_pylist(),
        royalties=_ints(table["royalty"]),
        values=_ints(values.flatten()),
        value_offsets=_offsets(values),
        owners=_ints(use.field("contributor").dictionary_encode().indices),
        use_offsets=_offsets(uses),
        ppm=_ints(split.field("ppm")),
        split_offsets=_offsets(splits),
    )
    result = divide(batch, rules)
    record_of_use = np.repeat(np.arange(len(table)), np.diff(batch.use_offsets))
    use_of_split = np.repeat(np.arange(len(use)), np.diff(batch.split_offsets))
    policy = _ints(table["policy_version"])
    return Divided(
        records=table.select(_RECORD).append_column("earned", pa.array(result.earned)),
        uses=pa.table(
            {
                "record": record_of_use,
                "document": use.field("document"),
                "policy_version": policy[record_of_use],
                "retrieved": np.ones(len(use), np.int64),
                "cited": use.field("cited").cast(pa.int64()),
                "pool": batch.royalties[record_of_use],
                "residual": (batch.royalties - result.earned)[record_of_use],
                "platform": _ints(table["platform"])[record_of_use],
            }
        ),
        cells=pa.table(
            {
                "record": record_of_use[use_of_split],
                "document": use.field("document").take(pa.array(use_of_split)),
                "contributor": split.field("contributor"),
                "role": split.field("role"),
                "policy_version": policy[record_of_use[use_of_split]],
                "units": result.units,
            }
        ),
    )


def summed(table: pa.Table, keys: Sequence[str], sums: Sequence[str]) -> pa.Table:
    """The table with one row for each key: the keys, then the sums."""
    found = table.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in sums])
    return found.select([*keys, *(f"{name}_sum" for name in sums)]).rename_columns([*keys, *sums])


class Merge:
    """Sums of tables of the same keys, kept small on the way."""

    def __init__(self, keys: Sequence[str], sums: Sequence[str]) -> None:
        self._keys = keys
        self._sums = sums
        self._tables: list[pa.Table] = []
        self._rows_max = _MERGE_ROWS

    def add(self, table: pa.Table) -> None:
        """Take in another table."""
        self._tables.append(table)
        if sum(map(len, self._tables)) > self._rows_max:
            self._tables = [self._merged()]
            self._rows_max = len(self._tables[0]) + max(len(self._tables[0]), _MERGE_ROWS)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The sums so far, as plain values: the keys, then the sums."""
        if not self._tables:
            return iter(())
        return zip(*(column.to_pylist() for column in self._merged().columns), strict=True)

    def _merged(self) -> pa.Table:
        return summed(pa.concat_tables(self._tables), self._keys, self._sums)


class Summed(Protocol):
    """Records as the columns that sums are computed from."""

    @property
    def totals(self) -> Totals:
        """Of the records."""

    @property
    def policy_version(self) -> int:
        """The newest policy of the records."""

    @property
    def value_functions(self) -> dict[str, int]:
        """As in :class:`Divided`."""

    @property
    def lines(self) -> pa.Table:
        """As in :class:`Divided`."""

    @property
    def credited(self) -> pa.Table:
        """As in :class:`Divided`."""


class Sums:
    """The sums over the parts of a period, in memory bounded by its documents and contributors."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._policy_version = 0
        self._value_functions = Counter[str]()
        self._lines = Merge(_LINE_KEY, _LINE)
        self._credited = Merge(_CREDIT_KEY, ["units"])

    def add(self, part: Summed) -> None:
        """Take in a part."""
        self._policy_version = max(self._policy_version, part.policy_version)
        self._value_functions.update(part.value_functions)
        self._totals.add(part.totals)
        self._lines.add(part.lines)
        self._credited.add(part.credited)

    def tally(self, rules: Rules = NEW_RUNS) -> Tally:
        """The tally of all parts so far, to be paid by ``rules``."""
        tally = Tally(
            policy_version=self._policy_version,
            value_functions=dict(self._value_functions),
            payments=PAYMENTS[rules.payments],
        )
        tally.sums.add(self._totals)
        tally.add_lines((LineKey(*row[:2]), Line(*row[2:])) for row in self._lines.rows())
        tally.add_credits((CreditKey(*row[:4]), row[4]) for row in self._credited.rows())
        return tally


def digest(table: pa.Table) -> str:
    """A SHA-256 over the contents of a table of texts and integers: the same whatever file format it comes from."""
    sha256 = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        sha256.update(f"{name} {len(column)}\n".encode())
        if pa.types.is_integer(column.type):
            sha256.update(_ints(column).astype("<i8").tobytes())
        else:
            sha256.update(_ints(pc.binary_length(column)).astype("<i8").tobytes())
            for text in column.chunks:
                sha256.update(_bytes(text))
    return sha256.hexdigest()


class _Texts(Sequence[str]):
    """A column of text, made into Python strings one by one as they are needed."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].as_py()

    def __len__(self) -> int:
        return len(self._column)


def _of_records(table: pa.Table, begin: int, end: int) -> pa.Table:
    """The rows of some records, whose numbers then count from 0."""
    first, last = np.searchsorted(_ints(table["record"]), [begin, end]).tolist()
    rows = table.slice(first, last - first)
    return rows.set_column(0, "record", pa.array(_ints(rows["record"]) - begin))


def _ints(column: Any) -> Ints:
    found: Ints = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return found.astype(np.int64, copy=False)


def _offsets(lists: Any) -> Ints:
    lengths = _ints(pc.list_value_length(lists))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _bytes(text: Any) -> bytes:
    """All bytes of an array of texts, one after the other."""
    _, offsets, data = text.buffers()
    if not len(text) or data is None:
        return b""
    bounds = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    return bytes(memoryview(data)[int(bounds[0]) : int(bounds[-1])])
