from __future__ import annotations

import hashlib
from typing import Any

import pytest

from retrieval.documents import (
    PPM,
    PURPOSES_MAX,
    SPLITS_MAX,
    TEXT_CHARS_MAX,
    TITLE_CHARS_MAX,
    URL_CHARS_MAX,
    Document,
    DocumentError,
    SplitShare,
    Terms,
    check,
    check_id,
)


def document(**fields: Any) -> Document:
    return Document(**{"id": "d", "title": "T", "text": "Some text.", "contributor": "ana"} | fields)


def refused(**fields: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        check(document(**fields))
    return str(caught.value)


def test_a_plain_document_is_taken_as_it_is():
    plain = document()
    assert check(plain) is plain


def test_the_version_is_the_sha256_of_the_text_alone():
    text = "Zoë, 👩‍👩‍👧"
    assert document(text=text).version == hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert document(text=text, title="Other", url="https://a.example/").version == document(text=text).version
    assert document(text=text + " ").version != document(text=text).version


def test_without_splits_everything_goes_to_the_contributor_as_author():
    assert document().effective_splits == (SplitShare("ana", "author", PPM),)


def test_splits_replace_the_contributor():
    splits = (SplitShare("bo", "translator", 400_000), SplitShare("cy", "author", 600_000))
    assert check(document(splits=splits)).effective_splits == splits


@pytest.mark.parametrize("value", ["a", "a/b.txt", "urn:isbn:0451450523", "Zoë", "x" * 200, "名前"])
def test_ids_may_be_any_visible_characters(value: str):
    assert check_id("document", value) == value


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\tb", "a\nb", "a\u00a0b", 'a"b', "a'b", "<a>", "a\\b", "a\x00", "a\x7f"]
)
def test_ids_with_spaces_quotes_or_control_characters_are_refused(value: str):
    with pytest.raises(DocumentError, match="document id"):
        check_id("document", value)
    assert "contributor id" in refused(contributor=value)


@pytest.mark.parametrize("value", [".", ".."])
def test_ids_that_a_url_cannot_hold_are_refused(value: str):
    with pytest.raises(DocumentError, match="document id"):
        check_id("document", value)


def test_documents_may_have_slashes_in_their_ids_and_people_not():
    assert check_id("document", "ana/notes/a.txt") == "ana/notes/a.txt"
    assert "contributor id 'a/b' must not have slashes" in refused(contributor="a/b")


def test_an_id_above_the_limit_is_refused_without_repeating_all_of_it():
    message = refused(id="x" * 201)
    assert "1 to 200 characters" in message
    assert len(message) < 200


def test_an_id_that_cannot_be_encoded_is_refused():
    """A file name that is not UTF-8 becomes such an id; no database stores it."""
    assert "id" in refused(id="caf\udce9.md")


@pytest.mark.parametrize("text", ["", " \n\t ", "\u2003\u00a0"])
def test_an_empty_text_is_refused(text: str):
    assert refused(text=text) == "the text is empty"


@pytest.mark.parametrize(
    ("field", "limit"), [("text", TEXT_CHARS_MAX), ("title", TITLE_CHARS_MAX)], ids=["text", "title"]
)
def test_lengths_are_taken_up_to_the_limit_and_refused_above_it(field: str, limit: int):
    check(document(**{field: "x" * limit}))
    assert f"has {limit + 1} characters; the limit is {limit}" in refused(**{field: "x" * (limit + 1)})


@pytest.mark.parametrize("field", ["text", "title"])
@pytest.mark.parametrize(("bad", "reason"), [("a\x00b", "NUL"), ("a\ud800b", "surrogates")])
def test_what_is_not_text_is_refused_by_the_name_of_its_field(field: str, bad: str, reason: str):
    message = refused(**{field: bad})
    assert field in message
    assert reason in message


@pytest.mark.parametrize("url", ["", "page.html", "/page", "www.example.org", "mailto:a@example.org"])
def test_a_url_that_is_not_absolute_is_refused(url: str):
    assert "url must be absolute" in refused(url=url)


def test_a_url_that_runs_a_script_is_refused():
    """It is shown to customers as the link of a source."""
    assert "url" in refused(url="javascript://example.org/%0Aalert(1)")


def test_a_url_is_taken_up_to_the_limit():
    start = "https://example.org/"
    check(document(url=start.ljust(URL_CHARS_MAX, "x")))
    assert "url" in refused(url=start.ljust(URL_CHARS_MAX + 1, "x"))


@pytest.mark.parametrize("delta", [-1, 1])
def test_splits_must_sum_to_one_million(delta: int):
    splits = (SplitShare("ana", "author", PPM // 2), SplitShare("bo", "editor", PPM // 2 + delta))
    assert refused(splits=splits) == f"the splits sum to {PPM + delta}, not to {PPM} (parts per million)"


@pytest.mark.parametrize("ppm", [0, -1])
def test_a_share_that_is_not_above_zero_is_refused_even_if_the_sum_is_right(ppm: int):
    splits = (SplitShare("ana", "author", PPM - ppm), SplitShare("bo", "editor", ppm))
    assert refused(splits=splits) == "the share of bo must be above zero"


def test_a_contributor_twice_in_one_role_is_refused_and_in_two_roles_taken():
    half = PPM // 2
    assert "twice" in refused(splits=(SplitShare("ana", "author", half), SplitShare("ana", "author", half)))
    check(document(splits=(SplitShare("ana", "author", half), SplitShare("ana", "editor", half))))


@pytest.mark.parametrize("role", ["", "Author", "two words", "é", "x" * 65, "-author"])
def test_a_role_must_be_a_word(role: str):
    assert "must be a word" in refused(splits=(SplitShare("ana", role, PPM),))


def test_the_contributor_of_a_split_must_be_an_id():
    assert "contributor id" in refused(splits=(SplitShare("a b", "author", PPM),))


def test_more_splits_than_the_limit_are_refused():
    share = PPM // SPLITS_MAX
    at_limit = tuple(SplitShare(f"c{i}", "author", share) for i in range(SPLITS_MAX))
    check(document(splits=at_limit))
    assert "the limit is" in refused(splits=(*at_limit, SplitShare("more", "author", share)))


def test_a_negative_floor_is_refused_and_a_floor_of_nothing_taken():
    assert refused(terms=Terms(None, -1)) == "the price floor must not be negative"
    check(document(terms=Terms(None, 0)))


@pytest.mark.parametrize("purpose", ["", "Answer", "two words", "*", "x" * 65])
def test_a_purpose_must_be_a_word(purpose: str):
    """``*`` above all: in the lexical index it stands for every purpose."""
    assert "must be a word" in refused(terms=Terms(("answer", purpose)))


def test_purposes_are_taken_up_to_the_limit():
    words = tuple(f"p{i}" for i in range(PURPOSES_MAX + 1))
    check(document(terms=Terms(words[:-1])))
    assert "the limit is" in refused(terms=Terms(words))


def test_no_purpose_at_all_is_a_choice_too():
    assert check(document(terms=Terms(()))).terms.purposes == ()
