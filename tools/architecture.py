"""The picture of the rooms, drawn from the import rules: ``python -m tools.architecture`` draws it anew.

What ``ARCHITECTURE.md`` shows is what ``make check`` enforces: the layers come from the contracts in
``pyproject.toml``, what a room is for from the summary of its docstring. A test fails if the picture in the checkout is
another.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PICTURE: Final = ROOT / "docs" / "architecture.svg"

_WIDTH: Final = 1_000
_GAP: Final = 8
_HEAD: Final = 30
_LINE: Final = 14
_CHARACTER: Final = 6.2
"""The mean width of a character of the text, in pixels."""
_ROOM_WIDTH_MIN: Final = 120
"""A layer whose rooms would be narrower continues on another line."""
_ATTRIBUTION: Final = 0.4
"""The part of the width that attribution has beside retrieval."""
_COLOURS: Final = {"serving": "#e7eefb", "attribution": "#fdf0dc", "retrieval": "#e6f4ea", "metering": "#f6e8f5"}


@dataclass(frozen=True, slots=True)
class Block:
    """A package with its layers, the highest first; a layer has one room or several beside each other."""

    package: str
    layers: tuple[tuple[str, ...], ...]


def blocks() -> dict[str, Block]:
    """The packages by name, as the layer contracts have them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {
        package: Block(package, tuple(tuple(layer.split(" | ")) for layer in contract["layers"]))
        for contract in contracts
        for package in contract.get("containers", ())
    }


def says(package: str, room: str = "") -> str:
    """The summary of the docstring of a package, or of a room in it."""
    path = ROOT / package / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("``", "").replace(":mod:", "").replace("`", "")


def svg() -> str:
    """The picture."""
    found = blocks()
    left = (_WIDTH - 3 * _GAP) * _ATTRIBUTION
    parts: list[str] = []
    y = float(_GAP)
    y += _block(parts, found["serving"], _GAP, y, _WIDTH - 2 * _GAP) + _GAP
    y += max(
        _block(parts, found["attribution"], _GAP, y, left),
        _block(parts, found["retrieval"], 2 * _GAP + left, y, _WIDTH - 3 * _GAP - left),
    )
    y += _GAP
    y += _block(parts, found["metering"], _GAP, y, _WIDTH - 2 * _GAP) + _GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" width="{_WIDTH}" '
        f'font-family="system-ui, sans-serif" font-size="11" role="img">\n'
        "<title>The rooms of Patronage: each imports only from rooms below it</title>\n"
        f'<rect width="{_WIDTH}" height="{y:.0f}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _block(parts: list[str], block: Block, x: float, y: float, width: float) -> float:
    """Draw a package; gives its height."""
    rows: list[str] = []
    below = y + _HEAD
    for layer in block.layers:
        lines = -(-len(layer) * _ROOM_WIDTH_MIN // int(width - _GAP))
        each = -(-len(layer) // lines)
        for begin in range(0, len(layer), each):
            below += _row(rows, block.package, layer[begin : begin + each], x + _GAP, below, width - _GAP) + _GAP
    parts.append(_box(x, y, width, below - y, _COLOURS[block.package]))
    name = f"{block.package}/"
    after = x + 3 * _GAP + 9 * len(name)
    parts.append(_text(x + _GAP, y + 20, name, size=15, bold=True))
    room = int((x + width - after) / _CHARACTER)
    parts.append(_text(after, y + 20, textwrap.shorten(says(block.package).partition(": ")[2], room, placeholder=" …")))
    parts += rows
    return below - y


def _row(parts: list[str], package: str, layer: tuple[str, ...], x: float, y: float, width: float) -> float:
    """Draw rooms beside each other; gives their height."""
    wide = width / len(layer) - _GAP
    texts = [textwrap.wrap(says(package, room), int((wide - 2 * _GAP) / _CHARACTER)) for room in layer]
    height = _HEAD + _LINE * max(map(len, texts)) - 4
    for place, (room, lines) in enumerate(zip(layer, texts, strict=True)):
        left = x + place * (wide + _GAP)
        parts.append(_box(left, y, wide, height, "#ffffff"))
        name = f"{room}/" if (ROOT / package / room).is_dir() else f"{room}.py"
        parts.append(_text(left + _GAP, y + 17, name, size=12, bold=True))
        parts += [_text(left + _GAP, y + 33 + _LINE * number, line) for number, line in enumerate(lines)]
    return height


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" fill="{fill}" '
        'stroke="#8a94a6" stroke-width="0.8"/>'
    )


def _text(x: float, y: float, text: str, *, size: int = 11, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight} fill="#1f2733">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
    sys.stdout.write(f"written: {PICTURE.relative_to(ROOT)}\n")
