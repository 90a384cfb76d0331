"""The usage log: immutable Parquet segments of usage records.

A segment holds consecutive records of one shard's stream and is named by the first and last stream id it holds.
It is written to a temporary name, synced and renamed, so a segment either exists whole or not at all; writing the
same records again gives the same name and the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from metering.merkle import leaf_hash
from metering.records import UsageRecord, decode_record

_SPLIT: Final = pa.struct([("contributor", pa.string()), ("role", pa.string()), ("ppm", pa.int64())])
_PEER: Final = pa.struct(
    [
        ("document", pa.string()),
        ("version", pa.string()),
        ("contributor", pa.string()),
        ("splits", pa.list_(_SPLIT)),
    ]
)
_USE: Final = pa.struct(
    [
        ("document", pa.string()),
        ("version", pa.string()),
        ("contributor", pa.string()),
        ("splits", pa.list_(_SPLIT)),
        ("score", pa.int64()),
        ("cited", pa.bool_()),
        ("registered_ms", pa.int64()),
        ("peers", pa.list_(_PEER)),
    ]
)
_STRINGS: Final = {"id", "account", "key", "model", "purpose", "value_function", "idempotency"}
_LISTS: Final[dict[str, pa.DataType]] = {"values": pa.list_(pa.int64()), "uses": pa.list_(_USE)}

RECORD_SCHEMA: Final = pa.schema(
    [
        (name, _LISTS.get(name) or (pa.string() if name in _STRINGS else pa.int64()))
        for name in UsageRecord.__struct_fields__
    ]
)
"""A record's columns, in the order of :class:`metering.records.UsageRecord`."""

DAMAGED: Final = ".damaged"
_LEAF: Final = pa.field("leaf", pa.binary(32))
_STREAM_ID: Final = pa.field("stream_id", pa.string())


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

    @property
    def name(self) -> str:
        """Unique and the same for the same records: ``s03/1700000000000-0_1700000000005-2``."""
        return f"s{self.shard:02d}/{self.first}_{self.last}"


class UsageLog:
    """The folder of segments."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made when the first segment is written."""
        self._folder = folder

    def path(self, name: str) -> Path:
        """Where the segment of that name is stored."""
        return self._folder / f"{name}.parquet"

    def write(self, shard: int, entries: Sequence[tuple[str, bytes]]) -> tuple[Segment, list[UsageRecord]]:
        """Store consecutive stream entries ``(stream id, canonical record bytes)`` as one segment.

        Returns:
            The segment, and its records in order.

        Raises:
            RecordError: an entry is not a usage record.
            OSError: the disk refuses; no file of the segment's name is left behind half-written.
        """
        records = [decode_record(data) for _, data in entries]
        table = pyarrow.json.read_json(
            io.BytesIO(b"\n".join(data for _, data in entries)),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 30),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=RECORD_SCHEMA, unexpected_field_behavior="error"),
        )
        table = table.append_column(_STREAM_ID, pa.array([stream_id for stream_id, _ in entries], pa.string()))
        table = table.append_column(_LEAF, pa.array([record.leaf() for record in records], pa.binary(32)))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        segment = Segment(shard, entries[0][0], entries[-1][0], len(records), hashlib.sha256(data).hexdigest())
        _write_durably(self.path(segment.name), data)
        return segment, records

    def read(self, name: str, sha256: str) -> pa.Table:
        """The segment's columns: ``RECORD_SCHEMA``, ``stream_id`` and ``leaf``.

        Raises:
            SegmentError: it is missing, or is not byte for byte what was registered.
        """
        try:
            data = self.path(name).read_bytes()
        except OSError as error:
            raise SegmentError(f"segment {name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SegmentError(f"segment {name} was altered: its SHA-256 is not the registered one")
        return pq.read_table(io.BytesIO(data), use_threads=False)

    def find(self, name: str, sha256: str, row: int) -> UsageRecord:
        """One record of a segment.

        Raises:
            SegmentError: as :meth:`read`.
        """
        return next(records(self.read(name, sha256).slice(row, 1)))

    def unregistered(self, shard: int, after: str) -> Iterator[list[tuple[str, bytes]]]:
        """The entries of each segment after ``after``, in order: written, and not registered by a drainer that died.

        A damaged one is put aside under the suffix ``.damaged``, for the audit to name; Redis may still have its
        records.
        """
        folder = self._folder / f"s{shard:02d}"
        found = {path.stem.partition("_")[0]: path for path in folder.glob("*_*.parquet")} if folder.is_dir() else {}
        for first in sorted(found, key=stream_order):
            if stream_order(first) <= stream_order(after):
                continue
            entries = _entries(found[first])
            if not entries:
                found[first].rename(found[first].with_suffix(DAMAGED))
                continue
            after = entries[-1][0]
            yield entries

    def damaged(self) -> list[str]:
        """The names of the segments that were damaged before they were registered."""
        return sorted(str(path.relative_to(self._folder)) for path in self._folder.glob(f"*/*{DAMAGED}"))


def _entries(path: Path) -> list[tuple[str, bytes]]:
    """The entries of a segment file; none if it is damaged."""
    try:
        table = pq.read_table(path, use_threads=False)
        found = [record.encode() for record in records(table)]
        whole = [leaf_hash(data) for data in found] == table["leaf"].to_pylist()
        ids = table["stream_id"].to_pylist()
    except (OSError, pa.ArrowException, msgspec.ValidationError, KeyError):
        return []
    return list(zip(ids, found, strict=True)) if whole else []


def records(table: pa.Table) -> Iterator[UsageRecord]:
    """The records in a segment's table, in order."""
    for row in table.select(RECORD_SCHEMA.names).to_pylist():
        yield msgspec.convert(row, UsageRecord)


def stream_order(stream_id: str) -> tuple[int, int]:
    """The sort key of a Redis stream id: milliseconds, then sequence."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
