"""The derivation of a credit as a page."""

from __future__ import annotations

from typing import Any

from serving.portal.pages import render


def as_html(found: dict[str, Any]) -> str:
    """The explanation as a page that stands alone."""
    whole = sum(abs(each["units"]) for each in found["picture"]) or 1
    parts = [(each, abs(each["units"]) / whole * 100) for each in found["picture"]]
    highest = max((abs(each["worth"]) for each in found["value"]["coalitions"]), default=0) or 1
    coalitions = [(each, abs(each["worth"]) / highest * 100) for each in found["value"]["coalitions"]]
    return render("explanation.html", found=found, parts=parts, coalitions=coalitions)
