"""How deep the elements of a page lie, counted before it is parsed.

A parser of HTML looks through all the elements that are open at nearly every tag, as the standard says (WHATWG HTML,
13.2.4.2 "has an element in scope"), so that the time for elements in elements grows with the square of their number.
What is counted here is at least a fixed part of that: tags are read as the standard's tokenizer reads them, and a tag
closes only what was opened last, so that nothing is taken for closed that is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

NESTING_MAX: Final = 512
"""How deep the elements of a page may lie on average; browsers put what is deeper beside."""

_ATTRIBUTE: Final = (
    r"""(?:[\s/]++|(?:=[^\s/>=]*+|[^\s/>=]++)(?:\s*+=\s*+(?:"[^"]*+"?+|'[^']*+'?+|[^\s>"'][^\s>]*+)?+)?+)"""
)
_ATTRIBUTES: Final = re.compile(_ATTRIBUTE)
_MARKUP: Final = re.compile(
    rf"<!--(?:-?>|.*?(?:--!?>|\Z))|<(?P<end>/?)(?P<name>[a-zA-Z][^\s/>]*+)(?P<attributes>{_ATTRIBUTE}*+)>?+", re.DOTALL
)
_RAW: Final = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style")}
_EMPTY: Final = frozenset(
    ("area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "image", "img", "input", "keygen",
     "link", "meta", "param", "source", "track", "wbr")
)  # fmt: skip
_CLOSED_BY_THE_NEXT: Final = frozenset(
    ("body", "caption", "colgroup", "dd", "dt", "head", "html", "li", "optgroup", "option", "p", "rb", "rp", "rt",
     "rtc", "tbody", "td", "tfoot", "th", "thead", "tr")
)  # fmt: skip
"""What may be left open: the next of its kind closes it, so it adds no more than a few to each that counts."""
_FOREIGN: Final = frozenset(("svg", "math"))
_HTML_IN_FOREIGN: Final = frozenset(
    ("foreignobject", "desc", "title", "mi", "mo", "mn", "ms", "mtext", "annotation-xml")
)
_ENDS_FOREIGN: Final = frozenset(
    ("b", "big", "blockquote", "body", "br", "center", "code", "dd", "div", "dl", "dt", "em", "embed", "font", "h1",
     "h2", "h3", "h4", "h5", "h6", "head", "hr", "i", "img", "li", "listing", "menu", "meta", "nobr", "ol", "p", "pre",
     "ruby", "s", "small", "span", "strong", "strike", "sub", "sup", "table", "tt", "u", "ul", "var")
)  # fmt: skip


def too_deep(page: str) -> int:
    """How deep the elements of a page lie on average if that is more than ``512``, else 0. Takes linear time."""
    tags = steps = 0
    for depth in depths(page):
        tags += 1
        steps += depth
    return steps // tags if steps > NESTING_MAX * max(tags, NESTING_MAX) else 0


def depths(page: str) -> Iterator[int]:
    """After each tag of a page, how many elements are open."""
    opened: list[tuple[str, bool]] = []
    position = 0
    while (found := _MARKUP.search(page, position)) is not None:
        position = found.end()
        if found["name"] is None:
            continue
        name = found["name"].lower()
        if not found["end"]:
            is_html = _open(opened, name, found["attributes"])
            if name in _RAW and is_html:
                end = _RAW[name].search(page, position)
                position = len(page) if end is None else end.start()
        elif opened and opened[-1][0] == name:
            opened.pop()
        yield len(opened)


def _open(opened: list[tuple[str, bool]], name: str, attributes: str) -> bool:
    """Open an element; gives whether it is one of HTML. Of each that is open: its name, whether it holds no HTML."""
    if name in _ENDS_FOREIGN:
        while opened and opened[-1][1]:
            opened.pop()
    if name in _FOREIGN or (opened and opened[-1][1]):
        if not _closes_itself(attributes):
            opened.append((name, name not in _HTML_IN_FOREIGN))
        return False
    if name not in _EMPTY and name not in _CLOSED_BY_THE_NEXT and name not in _RAW:
        opened.append((name, False))
    return True


def _closes_itself(attributes: str) -> bool:
    """Whether a tag ends with a slash that does not belong to a value."""
    if not attributes.endswith("/"):
        return False
    *_, last = _ATTRIBUTES.findall(attributes)
    return last[0] in "/ \t\n\r\f"
