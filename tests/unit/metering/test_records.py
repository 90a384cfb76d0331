"""The bytes of every format of the usage record, as they were written once: they are hashed, signed and paid by."""

from __future__ import annotations

import msgspec
import pytest

from metering.records import FORMAT, PPM, Provenance, RecordError, Split, UsageRecord, Use, decode_record, fields_of

_USES = (
    Use(
        document="ada/light",
        version="ab" * 32,
        contributor="ada",
        splits=(Split("ada", "author", 666_667), Split("zoë", "translator", 333_333)),
        score=-1_250_000,
        cited=True,
        registered_ms=1_762_160_407_390,
    ),
    Use(
        document="ben/tarn",
        version="cd" * 32,
        contributor="ben",
        splits=(Split("ben", "author", PPM),),
        score=0,
        cited=False,
    ),
)
_FIELDS = {
    "id": "019b76bf31121c092a00427508ee",
    "account": "acme",
    "key": "e32918a248b6",
    "model": "patronage-extractive",
    "purpose": "answer",
    "started_ms": 1_767_223_800_000,
    "finished_ms": 1_767_223_800_021,
    "price_version": 2,
    "policy_version": 3,
    "input_tokens": 9,
    "output_tokens": 21,
    "passages": 2,
    "charge": 3_777_000,
    "cost": 723_100,
    "platform": 1_183_848,
    "royalty": 1_870_052,
    "free": 17,
    "value_function": "counterfactual/1",
    "values": (0, 812_345_678, 0, 923_456_789),
    "uses": _USES,
    "idempotency": "",
}
_PROVENANCE = Provenance(
    answered=True,
    epoch=41,
    snapshot="",
    embedder="all-MiniLM-L6-v2/int8-1",
    engine="0.1.0",
    counted_by="all-MiniLM-L6-v2/int8-1",
    tokenizer="sha256:0123456789abcdef",
    machine="0123456789ab",
    tags=("support", "beta"),
)
_COMMON = (
    '"id":"019b76bf31121c092a00427508ee","account":"acme","key":"e32918a248b6","model":"patronage-extractive",'
    '"purpose":"answer","started_ms":1767223800000,"finished_ms":1767223800021,"price_version":2,"policy_version":3,'
    '"input_tokens":9,"output_tokens":21,"passages":2,"charge":3777000,"cost":723100,"platform":1183848,'
    '"royalty":1870052,"free":17,"value_function":"counterfactual/1","values":[0,812345678,0,923456789],'
    '"uses":[{"document":"ada/light","version":"abababababababababababababababababababababababababababababababab",'
    '"contributor":"ada","splits":[{"contributor":"ada","role":"author","ppm":666667},'
    '{"contributor":"zoë","role":"translator","ppm":333333}],"score":-1250000,"cited":true,'
    '"registered_ms":1762160407390},{"document":"ben/tarn",'
    '"version":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","contributor":"ben",'
    '"splits":[{"contributor":"ben","role":"author","ppm":1000000}],"score":0,"cited":false,"registered_ms":0}],'
    '"idempotency":""'
)
# For each format: a record, its bytes and its leaf. What stands here never changes; a new format is another row.
GOLDEN = {
    1: (
        UsageRecord(format=1, **_FIELDS),
        f'{{"format":1,{_COMMON}}}',
        "b2f0f7d3d5812197e4c56d6eef4d67205d1c953e39712122fcc60f44a17b0888",
    ),
    2: (
        UsageRecord(format=2, provenance=_PROVENANCE, **_FIELDS),
        (
            f'{{"format":2,{_COMMON},"provenance":{{"answered":true,"epoch":41,"snapshot":"",'
            '"embedder":"all-MiniLM-L6-v2/int8-1","engine":"0.1.0","counted_by":"all-MiniLM-L6-v2/int8-1",'
            '"tokenizer":"sha256:0123456789abcdef","machine":"0123456789ab","tags":["support","beta"]}}'
        ),
        "e3d2476ecbbf4314a00436378ba3f32e1939651c924098687afd74d01f71b392",
    ),
}


def test_every_format_is_golden():
    assert set(GOLDEN) == set(range(1, FORMAT + 1))


@pytest.mark.parametrize(("record", "data", "leaf"), GOLDEN.values(), ids=map(str, GOLDEN))
def test_a_record_has_the_bytes_and_the_leaf_of_its_format(record, data, leaf):
    assert record.encode().decode() == data
    assert record.leaf().hex() == leaf
    assert decode_record(data.encode()) == record


def test_a_new_record_has_the_newest_format():
    assert UsageRecord(provenance=_PROVENANCE, **_FIELDS).format == FORMAT


def test_format_1_has_the_fields_that_it_had():
    assert fields_of(1) == ("format", *_FIELDS)


@pytest.mark.parametrize("number", [0, -1, FORMAT + 1, 10**9])
def test_a_format_of_another_version_is_refused_by_name(number):
    """Before anything of it is believed: a later format may have lost a field that this one needs."""
    newer = {"format": number, "id": "x"}
    with pytest.raises(RecordError, match=rf"has format {number}, this version knows formats 1 to {FORMAT}: upgrade"):
        decode_record(msgspec.json.encode(newer))
    with pytest.raises(ValueError, match="upgrade Patronage"):
        UsageRecord(format=number, provenance=_PROVENANCE, **_FIELDS)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format":"1"}', b'{"format":1}', b'{"format":null}', b"[1]"])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(RecordError, match="not a usage record"):
        decode_record(data)


def test_a_record_has_what_its_format_has_and_nothing_else():
    with pytest.raises(ValueError, match="provenance"):
        UsageRecord(format=1, provenance=_PROVENANCE, **_FIELDS)
    with pytest.raises(ValueError, match="provenance"):
        UsageRecord(format=2, **_FIELDS)
    with pytest.raises(RecordError, match="provenance"):
        decode_record(GOLDEN[1][1].replace('"format":1', '"format":2').encode())
