"""Statements for people: HTML to read and print, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

from attribution.runs.transparency import fingerprint
from serving.portal.pages import render

_COLUMNS = (
    "document",
    "role",
    "policy_version",
    "retrieved",
    "cited",
    "pool",
    "residual",
    "platform",
    "outcomes",
    "credited",
)


def as_html(bundle: dict[str, Any]) -> str:
    """The statement as a page that stands alone."""
    statement = bundle["statement"]
    lines = sorted(statement["documents"], key=lambda line: (-Decimal(line["credited"]["amount"]), line["document"]))
    largest = max((abs(Decimal(line["credited"]["amount"])) for line in lines), default=Decimal(0))
    widths = [float(abs(Decimal(line["credited"]["amount"])) / largest * 100) if largest else 0.0 for line in lines]
    return render(
        "statement.html",
        statement=statement,
        audit=bundle["run"]["ablation"],
        own=statement["ablation"],
        lines=list(zip(lines, widths, strict=True)),
        key=fingerprint(bundle["public_key"]),
        root=bundle["run"]["input_root"],
        offset=None if not Decimal(statement["offset"]["amount"]) else statement["offset"]["amount"],
    )


def as_csv(bundle: dict[str, Any]) -> str:
    """A header, a line per document, role and policy, the offset if there is one, the total; plain decimals."""
    statement = bundle["statement"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["period", "contributor", *_COLUMNS, "currency"])
    head = [statement["period"], statement["contributor"]]
    currency = statement["credited"]["currency"]
    for line in statement["documents"]:
        cells = [line[name]["amount"] if isinstance(line[name], dict) else line[name] for name in _COLUMNS]
        writer.writerow([*map(_harmless, head + cells), currency])
    sums = {"total": statement["credited"]["amount"]}
    if Decimal(statement["offset"]["amount"]):
        sums = {"offset": statement["offset"]["amount"], **sums}
    for name, amount in sums.items():
        writer.writerow([*map(_harmless, head), name, *[""] * (len(_COLUMNS) - 2), amount, currency])
    return out.getvalue()


def _harmless(cell: Any) -> Any:
    """Text that a spreadsheet would run as a formula is quoted."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
