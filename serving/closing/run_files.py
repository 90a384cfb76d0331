"""The files of a closed period's run: what was used, what it gave, and the proofs of both.

| file | holds |
|---|---|
| ``manifest.json`` | what the run was computed from, and its totals; the run's id is its hash |
| ``hours.json`` | the hours of the input tree, and the digest of each hour's credits |
| ``records.parquet`` | the leaves of the input tree, a row group for each hour |
| ``credits.parquet`` | the credits, as prices and values gave them, a row group for each hour that has any |
| ``outcomes.parquet`` | what customers' outcomes moved |
| ``checkpoint.txt``, ``statements.jsonl`` | the signed root of the statements, and these with their proofs |
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from attribution.runs.adopted import Inputs
from attribution.runs.inputs import Hour
from attribution.runs.statements import canonical
from attribution.runs.tally import CreditKey
from attribution.runs.transparency import encode_proof
from metering import merkle
from metering.periods import hour_name
from metering.usage_log import LEAF, RECORD_SCHEMA, SegmentError
from serving.closing.crediting import CREDIT, digest
from serving.closing.hourly_parts import Rows, load

_LEAVES: Final = pa.schema([RECORD_SCHEMA.field("id"), LEAF])
_POLICY: Final = "policy_version"
_MOVED: Final = pa.schema(
    [
        RECORD_SCHEMA.field("account"),
        *(RECORD_SCHEMA.field(name) if name == _POLICY else CREDIT.field(name) for name in CreditKey._fields),
        CREDIT.field("units"),
    ]
)


class HourDigest(NamedTuple):
    """One hour of a run, as ``hours.json`` names it."""

    hour: Hour
    credits: str
    """The digest of its credits."""


def write(
    folder: Path,
    parts: Sequence[Path],
    hours: Sequence[HourDigest],
    moved: Iterable[tuple[str, CreditKey, int]],
    texts: Mapping[str, bytes],
) -> None:
    """Write the files of a run; each exists whole or not at all.

    Args:
        folder: made if it is missing.
        parts: the stored parts of the hours, in order.
        hours: in order.
        moved: what outcomes moved.
        texts: further files, by name.

    Raises:
        OSError: the disk refuses; the run can be written again.
        SegmentError: a part is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(folder / "records.parquet", _LEAVES, (each.records.select(_LEAVES.names) for each in _rows(parts)))
    _write_tables(folder / "credits.parquet", CREDIT, (each.named_credits for each in _rows(parts)))
    rows = [(account, *key, units) for account, key, units in moved]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_MOVED)
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, _MOVED.types, strict=True)], _MOVED)
    _write_tables(folder / "outcomes.parquet", _MOVED, [table])
    listing = [{**_named(each.hour), "credits": each.credits} for each in hours]
    for name, data in {**texts, "hours.json": canonical(listing)}.items():
        with _durably(folder / name) as file:
            file.write(data)


def faults(folder: Path, hours: Sequence[HourDigest], moved: Sequence[tuple[str, CreditKey, int]]) -> Iterator[str]:
    """The files of a run that are not what the run gives."""
    rows = [{"account": account, **key._asdict(), "units": units} for account, key, units in moved]
    checks: dict[str, Callable[[Path], bool]] = {
        "records.parquet": lambda path: _roots(path) == [each.hour.root for each in hours],
        "credits.parquet": lambda path: _digests(path) == [each.credits for each in hours],
        "outcomes.parquet": lambda path: pq.read_table(path).to_pylist() == rows,
        "hours.json": lambda path: read_hours(path.parent) == [each.hour for each in hours],
    }
    for name, holds in checks.items():
        path = folder / name
        try:
            if not holds(path):
                yield f"{path} was altered"
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror or error}"
        except (pa.ArrowException, ValueError, KeyError) as error:
            yield f"{path} was altered: {error}"


def read_hours(folder: Path) -> list[Hour]:
    """The hours of a run, in order."""
    listed = json.loads((folder / "hours.json").read_bytes())
    return [Hour(each["number"], each["records"], bytes.fromhex(each["root"])) for each in listed]


def inclusion(folder: Path, hour: int, record: str, input_tree: Inputs) -> dict[str, Any]:
    """The proof that a record is in a run: in its hour, and its hour in the run's input, which ``input_tree`` makes.

    Raises:
        OSError: the run's files cannot be read.
        ValueError: they do not have the record.
    """
    hours = read_hours(folder)
    place = [each.hour for each in hours].index(hour)
    table = pq.ParquetFile(folder / "records.parquet").read_row_group(place)
    index = table["id"].to_pylist().index(record)
    tree, run = merkle.Tree(table["leaf"].to_pylist()), input_tree(hours)
    return {
        "record": {"index": index, "path": encode_proof(tree.inclusion_proof(index))},
        "hour": {
            **_named(hours[place]),
            "index": place,
            "size": len(run),
            "path": encode_proof(run.inclusion_proof(place)),
        },
    }


def _named(hour: Hour) -> dict[str, Any]:
    return {"hour": hour_name(hour.hour), "number": hour.hour, "records": hour.records, "root": hour.root.hex()}


def _roots(path: Path) -> list[bytes]:
    file = pq.ParquetFile(path)
    groups = (file.read_row_group(group, ["leaf"]) for group in range(file.num_row_groups))
    return [merkle.Tree(table["leaf"].to_pylist()).root for table in groups]


def _digests(path: Path) -> list[str]:
    file = pq.ParquetFile(path)
    return [digest(file.read_row_group(group)) for group in range(file.num_row_groups)]


def _rows(paths: Sequence[Path]) -> Iterator[Rows]:
    for path in paths:
        part = load(path, rows=True)
        if part is None or part.rows is None:
            raise SegmentError(f"{path} is gone: close the period again")
        yield part.rows


def _write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with _durably(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema).combine_chunks(), row_group_size=max(len(table), 1))


@contextmanager
def _durably(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
