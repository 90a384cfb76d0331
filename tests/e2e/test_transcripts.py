"""Everything that the README and the quickstarts tell a reader to type works, and prints what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.transcripts import MONTH, ROOT, Likeness, Reader, steps

README = ROOT / "README.md"
DOCS = ROOT / "docs"
TYPED = ("bash", "curl", "openssl")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TYPED)), reason=f"a reader types {', '.join(TYPED)}")


def test_what_the_readme_tells_and_then_customers_and_contributors(tmp_path: Path, e2e_env: dict[str, str]):
    with Reader(tmp_path / "checkout", e2e_env) as reader:
        reader.follow(README)
        reader.follow(DOCS / "quickstart-customer.md")
        reader.follow(DOCS / "quickstart-contributor.md")


def test_what_the_interface_answers(tmp_path: Path, e2e_env: dict[str, str]):
    with Reader(tmp_path / "checkout", e2e_env) as reader:
        reader.follow(README)
        reader.follow(DOCS / "api.md")


def test_what_operators_are_told(tmp_path: Path, e2e_env: dict[str, str]):
    """From nothing, but for the documents of the README."""
    [essays] = [step for step in steps(README) if "mkdir -p essays" in step.typed]
    with Reader(tmp_path / "checkout", e2e_env) as reader:
        reader.perform(essays, Likeness())
        reader.follow(DOCS / "quickstart-operator.md")


def test_a_likeness_sees_what_is_not_as_the_page_says():
    said = "receipt 01a1ffbe14c7d6bf2885ecd64b2f: 0.002284 USD\n[...]\nbalance 4.9 of 3 [...]"
    like = "receipt 01a21563f472a89ab5ff7f08d44e: 0.1 USD\nmore\nand more\nbalance   12.25 of 3 accounts"

    assert Likeness().compare(said, like) is None
    for wrong in (
        like.replace("USD", "EUR"),
        like.replace("0.1", "1"),
        like.replace("of 3", "of 4"),
        like.replace("receipt ", "receipt"),
        like.replace("balance", "the balance"),
        like.partition("balance")[0],
        f"first {like}",
        f"{like}\nand a last line",
    ):
        assert Likeness().compare(said, wrong) is not None, wrong
    assert Likeness(whole_numbers_differ=True).compare(said, like.replace("of 3", "of 4")) is None


def test_an_id_that_a_page_shows_twice_is_the_same_twice_and_can_be_typed():
    said = "made 01a1ffbe14c7d6bf2885ecd64b2f\nkept 01a1ffbe14c7d6bf2885ecd64b2f"
    likeness = Likeness()

    assert likeness.compare(said, "made 01a21563f472a89ab5ff7f08d44e\nkept 01a2156b52265c053dc058cbbad7") is not None
    likeness = Likeness()
    assert likeness.compare(said, "made 01a21563f472a89ab5ff7f08d44e\nkept 01a21563f472a89ab5ff7f08d44e") is None
    assert likeness.of_this_run("show 01a1ffbe14c7d6bf2885ecd64b2f") == "show 01a21563f472a89ab5ff7f08d44e"


def test_the_month_of_the_pages_is_this_month():
    said = "closed 2026-11 on 2026-11-26: run-2026-11-90f30bb72e72184f09dff3aaff052b01"
    likeness = Likeness(actual={MONTH: "2031-05"})

    assert likeness.compare(said, "closed 2031-05 on 2031-05-02: run-2031-05-996cb78446e6181e071bca8a2c49bec8") is None
    assert (
        likeness.compare(said, "closed 2031-05 on 2031-05-02: run-2031-04-996cb78446e6181e071bca8a2c49bec8") is not None
    )
    assert likeness.of_this_run("statement 2026-11 -o mary-2026-11.html") == "statement 2031-05 -o mary-2031-05.html"
