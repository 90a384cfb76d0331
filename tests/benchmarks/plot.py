"""A dot plot as SVG: one line an attack, one colour a method, hollow before the defence and full after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil

LEFT, RIGHT, TOP, ROW, WIDTH = 270, 20, 46, 44, 820
COLOURS = ("#8c8c8c", "#c58b00", "#0a7f6f", "#7a4fb5", "#c2410c", "#1d4ed8")


@dataclass(frozen=True)
class Series:
    """One attack: its share of the corpus, and by method what it got over that share, before and after."""

    name: str
    share: float
    parts: dict[str, tuple[float, float]]


def dots(found: Sequence[Series], label: str) -> str:
    """The plot."""
    methods = list(found[0].parts)
    most = ceil(max(value for each in found for pair in each.parts.values() for value in pair))
    height = TOP + ROW * len(found) + 40

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / most

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for i, (method, colour) in enumerate(zip(methods, COLOURS, strict=True)):
        place = 10 + i * (WIDTH - 20) / len(methods)
        lines.append(f'<circle cx="{place:.0f}" cy="16" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{place + 9:.0f}" y="20">{escape(method)}</text>')
    for tick in range(0, most + 1, 2):
        lines.append(f'<path d="M{x(tick):.1f} {TOP - 8}V{height - 36}" stroke="#ddd"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{height - 22}" text-anchor="middle">{tick}</text>')
    lines.append(f'<path d="M{x(1):.1f} {TOP - 8}V{height - 36}" stroke="#888" stroke-dasharray="3 3"/>')
    lines.append(f'<text x="{x(most / 2):.1f}" y="{height - 6}" text-anchor="middle">{escape(label)}</text>')
    for row, each in enumerate(found):
        middle = TOP + ROW * row + ROW / 2
        lines.append(f'<text x="{LEFT - 12}" y="{middle + 4:.0f}" text-anchor="end">{escape(each.name)}</text>')
        for i, (method, colour) in enumerate(zip(methods, COLOURS, strict=True)):
            y = middle + (i - (len(methods) - 1) / 2) * 6
            before, after = each.parts[method]
            lines.append(f'<path d="M{x(before):.1f} {y:.1f}H{x(after):.1f}" stroke="{colour}" stroke-opacity=".35"/>')
            lines.append(f'<circle cx="{x(before):.1f}" cy="{y:.1f}" r="3" fill="white" stroke="{colour}"/>')
            lines.append(f'<circle cx="{x(after):.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return "\n".join([*lines, "</svg>", ""])
