"""The usage log: immutable Parquet segments of usage records.

A segment holds consecutive records of one shard's stream and is named by the first and last stream id it holds.
It is written to a temporary name, synced and renamed, so a segment either exists whole or not at all; writing the
same records again gives the same name and the same bytes.

A segment's format is the newest of its records', which may be of several: a stream holds what two versions wrote. In
memory all segments have the same columns.
"""

from __future__ import annotations

import hashlib
import io
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from metering import formats, stream_ids
from metering.durable import sync_folder, write_durably
from metering.merkle import leaf_hash
from metering.periods import HOUR_MS
from metering.records import FORMAT, RecordError, UsageRecord, decode_record, fields_of

_FORMAT: Final = b"patronage.format"
"""Says in a file's metadata which format its records have at most. A file without it has format 1."""
_PLAIN: Final[dict[Any, pa.DataType]] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}


def _type_of(hint: Any) -> pa.DataType:
    """The column type of a field: of a text, number or truth value, of a tuple, of a struct, or of one or None."""
    match typing.get_origin(hint):
        case None if hint in _PLAIN:
            return _PLAIN[hint]
        case None:
            return pa.struct(_fields_of(hint))
        case kind if kind is tuple:
            return pa.list_(_type_of(typing.get_args(hint)[0]))
        case _:
            return _type_of(typing.get_args(hint)[0])


def _fields_of(struct: type[msgspec.Struct]) -> list[tuple[str, pa.DataType]]:
    return [(name, _type_of(hint)) for name, hint in typing.get_type_hints(struct).items()]


RECORD_SCHEMA: Final = pa.schema(_fields_of(UsageRecord))
"""A record's columns, in the order of :class:`metering.records.UsageRecord`; null is what its format does not have."""

DAMAGED: Final = ".damaged"

LEAF: Final = pa.field("leaf", pa.binary(32))
_STREAM_ID: Final = pa.field("stream_id", pa.string())
_SCHEMA: Final = pa.schema([*RECORD_SCHEMA, _STREAM_ID, LEAF])


class SegmentError(Exception):
    """A segment that is missing, altered or not readable; the message names the file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stored segment, as the ledger registers it."""

    shard: int
    first: str
    last: str
    records: int
    sha256: str
    hours: tuple[tuple[int, int], ...]
    """The hours, since the epoch, in which its queries were answered, and how many in each."""

    @classmethod
    def of(cls, shard: int, table: pa.Table, data: bytes) -> Segment:
        """The segment with the records of ``table``, stored as ``data``."""
        ids = table["stream_id"]
        hours = pc.value_counts(pc.divide(table["finished_ms"], HOUR_MS)).to_pylist()
        return cls(
            shard=shard,
            first=ids[0].as_py(),
            last=ids[-1].as_py(),
            records=table.num_rows,
            sha256=hashlib.sha256(data).hexdigest(),
            hours=tuple(sorted((each["values"], each["counts"]) for each in hours)),
        )

    @property
    def name(self) -> str:
        """Unique and the same for the same records: ``s03/1700000000000-0_1700000000005-2``."""
        return f"s{self.shard:02d}/{self.first}_{self.last}"


class UsageLog:
    """The folder of segments."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made when the first segment is written."""
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the segment of that name is stored."""
        return self.folder / f"{name}.parquet"

    def write(self, shard: int, table: pa.Table) -> Segment:
        """Store consecutive entries of a stream, from :func:`parse`, as one segment.

        Raises:
            OSError: the disk refuses; no file of the segment's name is left behind half-written.
        """
        buffer = io.BytesIO()
        pq.write_table(_as_stored(table), buffer, compression="zstd")
        data = buffer.getvalue()
        segment = Segment.of(shard, table, data)
        write_durably(self.path(segment.name), data)
        return segment

    def read(self, name: str, sha256: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The segment's columns, or those of them named: ``RECORD_SCHEMA``, ``stream_id`` and ``leaf``.

        Args:
            name: of the segment.
            sha256: as it was registered.
            columns: as :func:`parquet_path` names them.

        Raises:
            SegmentError: it is missing, is not byte for byte what was registered, or a newer version wrote it.
        """
        try:
            data = self.path(name).read_bytes()
        except OSError as error:
            raise SegmentError(f"segment {name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SegmentError(f"segment {name} was altered: its SHA-256 is not the registered one")
        try:
            return _loaded(data, columns)
        except formats.UnknownFormat as error:
            raise SegmentError(f"segment {name}: {error}") from error

    def find(self, name: str, sha256: str, row: int) -> UsageRecord:
        """One record of a segment.

        Raises:
            SegmentError: as :meth:`read`.
        """
        return next(records(self.read(name, sha256).slice(row, 1)))

    def unregistered(self, shard: int, after: str) -> Iterator[tuple[Segment, pa.Table]]:
        """Each segment after ``after``, in order: written, and not registered by a drainer that died.

        A damaged one is quarantined under the suffix ``.damaged``, for the audit to name; Redis may still have its
        records.
        """
        folder = self.folder / f"s{shard:02d}"
        found = {path.stem.partition("_")[0]: path for path in folder.glob("*_*.parquet")} if folder.is_dir() else {}
        for first in sorted(found, key=stream_ids.order):
            if stream_ids.order(first) <= stream_ids.order(after):
                continue
            whole = _whole(found[first], shard)
            if whole is None:
                found[first].rename(found[first].with_suffix(DAMAGED))
                continue
            sync_folder(folder)  # who wrote it may have died between the renaming and this
            after = whole[0].last
            yield whole

    def damaged(self) -> list[str]:
        """The names of the segments that were damaged before they were registered."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(f"*/*{DAMAGED}"))


def parse(entries: Sequence[tuple[str, bytes]]) -> pa.Table:
    """Entries of a stream, ``(stream id, canonical record bytes)``, as a segment's columns.

    Raises:
        RecordError: an entry is not a usage record.
    """
    data = [record for _, record in entries]
    # Arrow reads a batch several times faster than record by record. What it cannot take whole, and what a version
    # with other fields wrote (the oldest entry tells), is made canonical first, or refused by name.
    table = _columns(data) if decode_record(data[0]).encode() == data[0] else None
    if table is None:
        data = [decode_record(record).encode() for record in data]
        table = _columns(data)
    if table is None:
        raise RecordError("a usage record has a number that a segment cannot hold")
    table = table.append_column(_STREAM_ID, pa.array([stream_id for stream_id, _ in entries], pa.string()))
    return table.append_column(LEAF, pa.array([leaf_hash(record) for record in data], pa.binary(32)))


def _columns(data: Sequence[bytes]) -> pa.Table | None:
    """The records' columns; None if one of them does not fit the schema exactly."""
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(b"\n".join(data)),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 30),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=RECORD_SCHEMA, unexpected_field_behavior="error"),
        ).combine_chunks()
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == len(data) and _whole_records(table) else None


def _whole_records(table: pa.Table) -> bool:
    """Whether each record has what its format has, and nothing else."""
    written = table["format"]
    oldest, newest = pc.min_max(written).as_py().values()
    if written.null_count or oldest < 1 or newest > FORMAT:
        return False
    for number in range(oldest, newest + 1):
        rows = table if oldest == newest else table.filter(pc.equal(written, number)).combine_chunks()
        for name, values in zip(rows.column_names, rows.columns, strict=True):
            array = values.combine_chunks()
            if not (_complete(array) if name in fields_of(number) else array.null_count == len(array)):
                return False
    return True


def _complete(array: pa.Array) -> bool:
    """Whether nothing is missing in it, at any depth."""
    if array.null_count:
        return False
    if pa.types.is_list(array.type):
        return _complete(array.flatten())
    return not pa.types.is_struct(array.type) or all(_complete(field) for field in array.flatten())


def _as_stored(table: pa.Table) -> pa.Table:
    """The columns that the table's format has, and its number where formats without one cannot be meant."""
    number = pc.max(table["format"]).as_py()
    stored = table.select([*fields_of(number), _STREAM_ID.name, LEAF.name])
    return stored if number == 1 else stored.replace_schema_metadata({_FORMAT: str(number)})


def _loaded(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a file, as :meth:`UsageLog.read` gives them.

    Raises:
        UnknownFormat: a newer version wrote it.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    number = (file.schema_arrow.metadata or {}).get(_FORMAT, b"1").decode()
    formats.check("it", int(number) if number.isdecimal() else number, FORMAT)
    names = list(dict.fromkeys(each.partition(".")[0] for each in columns or _SCHEMA.names))
    table = file.read(list(columns) if columns else None, use_threads=False).replace_schema_metadata(None)
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), _SCHEMA.field(name).type))
    return table.select(names)


def parquet_path(path: str) -> str:
    """The name that Parquet gives a part of a record, such as ``uses.splits.ppm``.

    Raises:
        KeyError: records have no such part.
    """
    first, *rest = path.split(".")
    kind, name = RECORD_SCHEMA.field(first).type, first
    for part in rest:
        if pa.types.is_list(kind):
            kind, name = kind.value_type, f"{name}.list.element"
        kind, name = kind.field(part).type, f"{name}.{part}"
    return name


def _whole(path: Path, shard: int) -> tuple[Segment, pa.Table] | None:
    """The segment in a file that is not registered, if every record in it has its leaf hash."""
    try:
        data = path.read_bytes()
        table = _loaded(data)
        segment = Segment.of(shard, table, data)
        good = [record.leaf() for record in records(table)] == table["leaf"].to_pylist()
    except (OSError, pa.ArrowException, msgspec.ValidationError, LookupError):
        return None
    except formats.UnknownFormat as error:
        raise SegmentError(f"segment {path}: {error}") from error
    return (segment, table) if good and segment.name.endswith(f"/{path.stem}") else None


def records(table: pa.Table) -> Iterator[UsageRecord]:
    """The records in a segment's table, in order."""
    for row in table.select(RECORD_SCHEMA.names).to_pylist():
        yield msgspec.convert(row, UsageRecord)
