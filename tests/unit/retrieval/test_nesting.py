"""How deep elements lie, counted as a parser would find them: never less than a part of it, whatever hides them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from retrieval import nesting
from retrieval.nesting import NESTING_MAX, too_deep

MANY = 3_000

# What repeats, and so grows as deep as it is long, however it hides that.
DEEP = {
    "nested": "<div>",
    "lists": "<ul><li>",
    "a table that keeps the end of what is around it": "<div><table></div></table>",
    "closed by another name": "<div></span>",
    "ended in the wrong order": "<b><div></b>",
    "a quote in the name of an attribute": """<div 'a"=b'>""",
    "a drawing's script, which is none": "<svg><script/></svg><div>",
    "a comment that is empty": "<!--><div><!---><div>",
    "a comment that ends otherwise": "<!-- --!><div><!-- -->",
    "a slash in a value": "<svg><g d=a/></svg>".removesuffix("</svg>"),
    "a slash of no meaning": "<div/>",
    "upper case": "<DIV>",
    "ended by what is no drawing": "<svg><div/>",
}
FLAT = {
    "paragraphs": "<p>Short one.</p>\n",
    "paragraphs without ends": "<p>Short one.",
    "items without ends": "<li>one",
    "rows without ends": "<tr><td>a<td>b",
    "breaks": "one<br>two<img src=x><hr>",
    "drawings": '<svg><g><path d="M0"/><use href="#a"/></g></svg>',
    "scripts": "<script>if (a<b && c<d) x = '<div>'</script>",
    "styles": "<style>a>b{}/*<div>*/</style>",
    "comments": "<!-- <div> -->",
    "attributes": """<i title="<div>" class='<div>' data-x=<div></i>""",
    "text": "a < b <3 </ <! >",
}


@pytest.mark.parametrize("unit", DEEP.values(), ids=DEEP)
def test_what_lies_deep_is_found(unit: str):
    assert too_deep(unit * MANY) > NESTING_MAX
    assert too_deep("<!doctype html><html><body>" + "<p>Text.</p>" * 100 + unit * MANY) > NESTING_MAX


@pytest.mark.parametrize("unit", FLAT.values(), ids=FLAT)
def test_what_does_not_lie_deep_is_let_through(unit: str):
    assert too_deep(unit * MANY) == 0
    assert too_deep("<main><article>" + unit * MANY + "</article></main>") == 0


def test_a_page_may_be_as_deep_as_the_limit_throughout():
    assert too_deep("<div>" * NESTING_MAX + "<i>x</i>" * MANY + "</div>" * NESTING_MAX) == 0


@pytest.mark.parametrize(
    "unit",
    [
        "<a ",
        "<a b='",
        '<a b="',
        "<!--",
        "<",
        "</",
        "<a" + " " * 20,
        "=",
        "<a =",
        "<script>",
        "</script ",
        "<a b= ",
        "--",
    ],
)
def test_every_character_is_read_once_and_not_again_from_every_tag(unit: str, monkeypatch: pytest.MonkeyPatch):
    """Each search begins where the last one ended, and what opens and does not end is taken to the end at once."""
    searched = []

    class Counted:
        def __init__(self, pattern):
            self.pattern = pattern

        def search(self, page, position):
            found = self.pattern.search(page, position)
            searched.append((len(page) if found is None else found.end()) - position)
            return found

    monkeypatch.setattr(nesting, "_MARKUP", Counted(nesting._MARKUP))
    monkeypatch.setattr(nesting, "_RAW", {name: Counted(each) for name, each in nesting._RAW.items()})
    page = unit * MANY
    too_deep(page)
    assert sum(searched) <= 2 * len(page) + 2


PIECES = st.sampled_from(
    [
        *DEEP.values(),
        *FLAT.values(),
        "</div>",
        "</b>",
        "</svg>",
        "</table>",
        "<a href='",
        '">',
        "-->",
        "</script>",
        "<p>",
    ]
)


@given(st.lists(PIECES, max_size=12), st.integers(1, 4))
@example(["<svg><div/>"], 4)
def test_it_is_counted_no_less_than_a_part_of_what_a_parser_finds(pieces: list[str], times: int):
    """A tenth: what may be left open is not counted, and lies at most a few deep in each that is."""
    page = "".join(pieces) * times
    deepest = depth_of(page)
    assert max(nesting.depths(page), default=0) >= (deepest - 3) / 10


def depth_of(page: str) -> int:
    """How deep the deepest element lies as the parser has it."""
    deepest = 0
    for node in LexborHTMLParser(page).css("*"):
        depth, parent = 0, node.parent
        while parent is not None:
            depth, parent = depth + 1, parent.parent
        deepest = max(deepest, depth)
    return deepest
