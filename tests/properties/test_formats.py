"""Records of every format come back as they were written, through the stream, the segment and its columns."""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.records import FORMAT, VALUE_ONE, Provenance, RecordError, Split, UsageRecord, Use, decode_record
from metering.usage_log import RECORD_SCHEMA, SegmentError, UsageLog, parquet_path, parse, records
from tests.records import a_record

texts = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.integers(-(2**63), 2**63 - 1)
splits = st.builds(Split, contributor=texts, role=texts, ppm=numbers)
uses = st.builds(
    Use,
    document=texts,
    version=texts,
    contributor=texts,
    splits=st.lists(splits, max_size=3).map(tuple),
    score=numbers,
    cited=st.booleans(),
    registered_ms=numbers,
)
provenances = st.builds(
    Provenance,
    answered=st.booleans(),
    epoch=numbers,
    **dict.fromkeys(("snapshot", "embedder", "engine", "counted_by", "tokenizer", "machine"), texts),
    tags=st.lists(texts, max_size=3).map(tuple),
)


@st.composite
def usage_records(draw):
    """A record of any format, with anything in it that its columns hold."""
    number = draw(st.integers(1, FORMAT))
    return a_record(
        format=number,
        id=draw(texts),
        account=draw(texts),
        model=draw(texts),
        finished_ms=draw(st.integers(0, 2**48)),
        charge=draw(numbers),
        cost=draw(numbers),
        platform=draw(numbers),
        royalty=draw(numbers),
        values=tuple(draw(st.lists(st.integers(0, VALUE_ONE), max_size=4))),
        uses=tuple(draw(st.lists(uses, max_size=3))),
        idempotency=draw(texts),
        provenance=draw(provenances) if number > 1 else None,
    )


def entries(found):
    return [(f"{number}-0", record.encode()) for number, record in enumerate(found, 1)]


@given(st.lists(usage_records(), min_size=1, max_size=8))
def test_records_of_all_formats_come_back_from_one_segment(found):
    assert [decode_record(record.encode()) for record in found] == found
    with tempfile.TemporaryDirectory() as folder:
        log = UsageLog(Path(folder))
        segment = log.write(0, parse(entries(found)))
        table = log.read(segment.name, segment.sha256)
        assert list(records(table)) == found
        assert table["leaf"].to_pylist() == [record.leaf() for record in found]


@given(st.lists(usage_records(), min_size=1, max_size=5), st.sampled_from(sorted(RECORD_SCHEMA.names)))
def test_a_column_is_the_same_alone_and_null_where_a_format_has_none(found, name):
    with tempfile.TemporaryDirectory() as folder:
        log = UsageLog(Path(folder))
        segment = log.write(0, parse(entries(found)))
        alone = log.read(segment.name, segment.sha256, [name, "leaf"])
        assert alone.column_names == [name, "leaf"]
        assert alone[name].to_pylist() == log.read(segment.name, segment.sha256)[name].to_pylist()


def stored(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("formats", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_segment_says_its_format_and_one_of_format_1_says_nothing(tmp_path, formats):
    log = UsageLog(tmp_path)
    found = [a_record(format=number, id=f"r-{place}") for place, number in enumerate(formats)]
    segment = log.write(3, parse(entries(found)))
    assert log.write(3, parse(entries(found))) == segment, "the same records again are the same bytes"
    assert [each for each, _ in log.unregistered(3, "0-0")] == [segment], "what a drainer did not live to register"
    assert log.find(segment.name, segment.sha256, 1) == found[1]
    schema = pq.read_schema(log.path(segment.name))
    assert (schema.metadata or {}).get(b"patronage.format") == (b"2" if 2 in formats else None)
    assert ("provenance" in schema.names) == (2 in formats)


def test_a_segment_of_a_newer_version_is_refused_by_name_and_not_put_aside(tmp_path):
    log = UsageLog(tmp_path)
    table = parse(entries([a_record()])).replace_schema_metadata({"patronage.format": str(FORMAT + 1)})
    path = log.path("s00/1-0_1-0")
    path.parent.mkdir()
    path.write_bytes(stored(table))
    newer = rf"s00/1-0_1-0.* has format {FORMAT + 1}, this version knows formats 1 to {FORMAT}: upgrade Patronage"
    with pytest.raises(SegmentError, match=newer):
        log.read("s00/1-0_1-0", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(SegmentError, match=newer):
        list(log.unregistered(0, "0-0"))
    assert path.exists()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_record_of_a_newer_version_stays_in_the_stream(place):
    found = entries([a_record(format=1), a_record(), a_record()])
    name, data = found[place]
    newer = data.replace(b'"format":', b'"format":9', 1)
    found[place] = (name, newer)
    with pytest.raises(RecordError, match="upgrade Patronage"):
        parse(found)


@pytest.mark.parametrize("broken", [b'"provenance":null', b'"provenance":{"answered":true}', b'"tags":null'])
def test_a_record_whose_provenance_is_not_whole_is_refused(broken):
    name, _, rest = broken.partition(b":")
    data = a_record().encode()
    start = data.index(name)
    end = data.index(b"]", start) + 1 if name == b'"tags"' else len(data) - 1
    with pytest.raises(RecordError):
        parse([("1-0", a_record().encode()), ("2-0", data[:start] + name + b":" + rest + data[end:])])


def test_the_parts_of_a_record_have_their_names_in_parquet(tmp_path):
    log = UsageLog(tmp_path)
    segment = log.write(0, parse(entries([a_record()])))
    path = parquet_path("uses.splits.ppm")
    assert path == "uses.list.element.splits.list.element.ppm"
    table = log.read(segment.name, segment.sha256, [path, parquet_path("provenance.engine")])
    assert table["uses"][0].as_py() == [{"splits": [{"ppm": 1_000_000}]}, {"splits": [{"ppm": 1_000_000}]}]
    assert table["provenance"][0].as_py() == {"engine": "0.1.0"}
    with pytest.raises(KeyError):
        parquet_path("uses.price")


def test_the_columns_follow_the_record_and_nothing_else():
    assert tuple(RECORD_SCHEMA.names) == UsageRecord.__struct_fields__
    assert tuple(field.name for field in RECORD_SCHEMA.field("provenance").type) == Provenance.__struct_fields__
