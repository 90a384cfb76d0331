"""Statements: a bundle verifies offline, and whatever is changed in it is found."""

from __future__ import annotations

import copy

import pytest

from attribution.runs.proofs import verify_receipt
from attribution.runs.run import Batch, RunError, divide, shares
from attribution.runs.statements import Issue, verify
from attribution.runs.transparency import Checkpoint, CheckpointError, Signer, open_note
from metering.money import Currency
from metering.records import PPM, Split
from serving.closing.crediting import Sums, divided
from serving.portal import statement_pages
from tests.records import a_record, a_table, a_use

SPLITS = (Split("ada", "author", 600_000), Split("tom", "translator", 400_000))


@pytest.fixture
def signer(tmp_path):
    return Signer.load_or_create(tmp_path / "key.pem", "patronage/test")


@pytest.fixture
def bundle(signer):
    uses = (a_use("d1", "ada", splits=SPLITS), a_use("d2", "ben"))
    sums = Sums()
    sums.add(divided(a_table([a_record(id=f"r{i}", uses=uses) for i in range(3)])))
    issue = Issue(
        period="2026-01",
        input_root="00",
        tally=sums.tally(),
        credits_sha256="11",
        outcomes=0,
        contributors=["zoe"],
        currency=Currency.of("USD"),
        default_policy=1,
    )
    assert issue.contributors == ["ada", "ben", "tom", "zoe"]
    _, bundles = issue.bundles(signer)
    return bundles[0]


def failed(bundle, key=None):
    return [check["name"] for check in verify(bundle, key) if not check["ok"]]


def test_an_honest_statement_is_valid(bundle, signer):
    assert failed(bundle) == []
    assert failed(bundle, signer.public_key) == []


def change(bundle, path, value):
    changed = copy.deepcopy(bundle)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "check"),
    [
        (["statement", "credited", "amount"], "1.000000", "inclusion"),
        (["statement", "documents", 0, "credited", "amount"], "1.000000", "sum"),
        (["statement", "offset", "amount"], "-1.000000", "sum"),
        (["statement", "contributor"], "mallory", "inclusion"),
        (["statement", "run_id"], "run-x", "run"),
        (["run", "records"], 4, "manifest"),
        (["run", "charged", "amount"], "9.000000", "conservation"),
        (["proof", "index"], 1, "inclusion"),
        (["proof", "size"], 2, "inclusion"),
        (["proof", "path"], [], "inclusion"),
        (["checkpoint"], "no checkpoint", "signature"),
        (["public_key"], "AAAA", "signature"),
        (["statement", "credited", "currency"], "EUR", "format"),
        (["run", "currency"], "USD", "format"),
        (["statement", "documents"], None, "format"),
    ],
)
def test_whatever_is_changed_is_found(bundle, path, value, check):
    assert check in failed(change(bundle, path, value))


def test_a_failed_check_says_what_was_found_and_not_what_should_be(bundle):
    def said(changed):
        return {each["name"]: each["detail"] for each in verify(changed)}

    honest = said(bundle)
    assert honest["sum"].endswith("USD")
    forged = said(change(bundle, ["statement", "credited", "amount"], "1.000000"))
    assert forged["sum"] == f"{honest['sum']}, not to 1.000000"
    assert "not" in forged["inclusion"]
    assert "not" in said(change(bundle, ["run", "charged", "amount"], "9.000000"))["conservation"]
    assert "not" in said(change(bundle, ["run", "records"], 4))["manifest"]


def test_a_receipt_of_an_open_month_is_told_to_wait():
    (found,) = verify_receipt({"id": "01", "format": 1})
    assert not found["ok"]
    assert "when its month is closed" in found["detail"]


@pytest.mark.parametrize("nonsense", [None, [], {}, "text", 7, {"statement": {}, "run": {}, "proof": {}}])
def test_nonsense_is_no_statement(nonsense):
    assert failed(nonsense) == ["format"]


def test_a_statement_signed_by_another_is_refused(bundle, tmp_path):
    other = Signer.load_or_create(tmp_path / "other.pem", "patronage/test")
    assert failed(bundle, other.public_key) == ["signature"]


def test_a_signed_note_opens_with_its_key_alone(signer):
    checkpoint = Checkpoint("origin", 7, b"\x01" * 32, ("extension",))
    note = signer.sign(checkpoint)
    assert open_note(note, signer.public_key) == checkpoint
    for broken in ("", note.replace("7", "8", 1), note.replace("extension", "extensioN"), note[:-10], note + "x y z w"):
        with pytest.raises(CheckpointError):
            open_note(broken, signer.public_key)


def test_the_key_is_kept_and_readable_by_its_owner_alone(tmp_path):
    first = Signer.load_or_create(tmp_path / "keys" / "k.pem", "n")
    assert Signer.load_or_create(tmp_path / "keys" / "k.pem", "n").public_key == first.public_key
    assert (tmp_path / "keys" / "k.pem").stat().st_mode & 0o077 == 0


def test_a_query_is_divided_exactly():
    record = a_record(charge=1_000_003, uses=(a_use("d1", "ada", splits=SPLITS), a_use("d2", "ben")))
    division = divide(Batch.of([record]))
    ada, tom, ben = division.units.tolist()
    assert division.earned.tolist() == [ada + tom + ben]
    assert ada + tom + ben == pytest.approx(record.royalty * 3 / 4, abs=1)
    assert ada + tom == pytest.approx(record.royalty / 2, abs=2)
    assert ada == pytest.approx(record.royalty * 0.3, abs=1)
    weights, residual = shares(record)
    assert weights == [0.5, 0.25]
    assert residual == 0.25


def test_documents_beyond_the_game_earn_nothing():
    record = a_record(uses=(a_use("a", "ada"), a_use("b", "ben"), a_use("c", "cleo")))
    assert shares(record) == ([0.5, 0.25, 0.0], 0.25)
    assert set(divided(a_table([record])).credits["document"].to_pylist()) == {"a", "b"}


@pytest.mark.parametrize("values", [(), (0,) * 3, (0,) * 8])
def test_a_game_that_does_not_fit_is_named(values):
    with pytest.raises(RunError, match="record-1"):
        divide(Batch.of([a_record(values=values)]))


def test_a_spreadsheet_runs_no_formula_of_a_document_id(bundle):
    bundle["statement"]["documents"][0]["document"] = "=cmd()"
    text = statement_pages.as_csv(bundle)
    assert "'=cmd()" in text
    assert text.splitlines()[-1].endswith("USD")


def test_a_page_escapes_what_contributors_write(bundle):
    bundle["statement"]["documents"][0]["document"] = "<script>alert(1)</script>"
    assert "<script>alert" not in statement_pages.as_html(bundle)


def test_splits_sum_to_one_million():
    assert sum(split.ppm for split in SPLITS) == PPM
