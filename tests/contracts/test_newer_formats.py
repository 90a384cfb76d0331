"""What a newer version of the program wrote is refused by name: it is neither misread nor taken for damage."""

from __future__ import annotations

import copy
import json

import pytest
import sqlalchemy as sa

from attribution.policy import Policy, PolicyError
from attribution.runs.proofs import verify_receipt
from attribution.runs.statements import verify
from metering import formats
from metering.pricing import ModelPrice, PriceBook, PriceError
from retrieval.catalogue import documents
from retrieval.documents import Document, DocumentError, Terms, check
from serving.assembly import open_books
from serving.closing import closing, lookup
from serving.settings import Settings
from serving.upkeep.audit import _recomputed
from tests.contracts.test_format_1 import CLOSED, EXPECTED, unpacked

UPGRADE = "upgrade Patronage"


@pytest.fixture(scope="module")
def books(tmp_path_factory, model_cache):
    with open_books(Settings(data_dir=unpacked(tmp_path_factory.mktemp("newer")), model_cache=model_cache)) as found:
        yield found


@pytest.fixture
def bundle(books):
    return closing.statement(books, "ada", CLOSED)


@pytest.fixture(scope="module")
def receipt(books):
    """A receipt of the closed month, with its proof."""
    with books.engine.connect() as connection:
        query = sa.text("SELECT id FROM receipts JOIN segments ON name = segment WHERE period = :period LIMIT 1")
        (name,) = connection.execute(query, {"period": CLOSED}).one()
    return {"id": name, "format": 1, "inclusion": closing.inclusion(books, lookup.find(books, name).record)}


@pytest.mark.parametrize("number", [0, 2, True, "1", None, 1.0])
def test_a_format_is_one_that_is_known(number):
    with pytest.raises(formats.UnknownFormat, match=f"it has format {number}, this version knows format 1: {UPGRADE}"):
        formats.check("it", number, 1)
    formats.check("it", 1, 1)


def failed(checks):
    return [(each["name"], each["detail"]) for each in checks if not each["ok"]]


@pytest.mark.parametrize("part", ["statement", "run"])
def test_a_statement_of_a_newer_format_is_not_called_forged(bundle, part):
    assert failed(verify(bundle)) == []
    newer = copy.deepcopy(bundle)
    newer[part]["format"] = 2
    (name, detail), *more = failed(verify(newer))
    assert (name, more) == ("format", [])
    assert f"the {part} has format 2" in detail
    assert UPGRADE in detail


def newer_content(found):
    found["inclusion"]["record"]["content"] = found["inclusion"]["record"]["content"].replace(":1,", ":3,", 1)


def newer_rules(found):
    found["inclusion"]["run"]["algorithms"]["input"] = "hours/2"


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(format=2),
        lambda found: found["inclusion"]["run"].update(format=2),
        newer_content,
        newer_rules,
    ],
    ids=["receipt", "run", "record", "rules"],
)
def test_a_receipt_of_a_newer_format_is_not_called_forged(receipt, change):
    assert failed(verify_receipt(receipt)) == []
    newer = copy.deepcopy(receipt)
    change(newer)
    (name, detail), *more = failed(verify_receipt(newer))
    assert (name, more) == ("format", [])
    assert UPGRADE in detail


def test_a_run_of_a_newer_version_is_not_recomputed_by_the_rules_of_this_one(books):
    manifest = EXPECTED["months"][CLOSED]["manifest"]
    assert _recomputed(books, CLOSED, manifest).issue.manifest == manifest
    for newer in ({"format": 2}, {"algorithms": {**manifest["algorithms"], "rounding": "systematic/2"}}):
        with pytest.raises(ValueError, match=UPGRADE):
            _recomputed(books, CLOSED, {**manifest, **newer})


def test_a_price_book_of_a_newer_format_is_refused_and_one_without_has_format_1():
    body = PriceBook(7, {"m": ModelPrice(5)}).to_json()
    assert body["format"] == 1
    assert PriceBook.from_json({name: value for name, value in body.items() if name != "format"}).format == 1
    with pytest.raises(PriceError, match=f"price book 7 has format 2, .*{UPGRADE}"):
        PriceBook.from_json({**body, "format": 2, "discounts": []})


def test_a_policy_of_a_newer_format_is_refused_and_one_without_has_format_1():
    body = Policy(7, 500_000).to_json()
    assert body["format"] == 1
    assert Policy.from_json({name: value for name, value in body.items() if name != "format"}).format == 1
    with pytest.raises(PolicyError, match=f"policy 7 has format 2, .*{UPGRADE}"):
        Policy.from_json({**body, "format": 2, "funds": {}})


def test_the_books_of_format_1_are_read(books):
    with books.engine.connect() as connection:
        bodies = connection.execute(sa.text("SELECT body FROM price_books UNION ALL SELECT body FROM policies"))
        assert not any("format" in json.loads(body) for body in bodies.scalars())
    assert {each.format for each in books.rulebook.price_books()} == {1}
    assert [books.rulebook.policy_of(version).format for version in (1, 2, 3)] == [1, 1, 1]


def test_a_document_under_terms_of_a_newer_format_is_not_used(books):
    """Who cannot read all that a contributor demands does not serve the document."""
    assert books.catalogue.get(["ben/tarn"])["ben/tarn"].terms.format == 1
    table = documents
    with books.engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.id == "ben/tarn").values(terms_format=2))
    with pytest.raises(DocumentError, match=f"terms have format 2, .*{UPGRADE}"):
        books.catalogue.get(["ben/tarn"])
    with books.engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.id == "ben/tarn").values(terms_format=1))
    with pytest.raises(DocumentError, match=UPGRADE):
        check(Document("d", "t", "text", "ada", terms=Terms(None, 0, 2)))
