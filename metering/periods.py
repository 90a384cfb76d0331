"""Periods: calendar months in UTC, written ``YYYY-MM``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

HOUR_MS = 3_600_000

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)


class PeriodError(ValueError):
    """Not a period, or not one that can be closed."""


def parse(text: str) -> str:
    """``text`` if it is a period.

    Raises:
        PeriodError: it is not ``YYYY-MM``.
    """
    if _PERIOD.fullmatch(text) is None:
        raise PeriodError(f"{text[:40]!r} is not a period such as 2026-11")
    return text


def of(milliseconds: int) -> str:
    """The period of a moment, in milliseconds since the epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m")


def day_of(milliseconds: int) -> str:
    """The day of a moment, ``YYYY-MM-DD``."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")


def hour_of(milliseconds: int) -> int:
    """The hour of a moment, in hours since the epoch."""
    return milliseconds // HOUR_MS


def hour_name(hour: int) -> str:
    """An hour as ``YYYY-MM-DDTHH``."""
    return datetime.fromtimestamp(hour * HOUR_MS / 1000, UTC).strftime("%Y-%m-%dT%H")


def following(period: str) -> str:
    """The period after ``period``."""
    year, month = map(int, period.split("-"))
    return f"{year + month // 12:04d}-{month % 12 + 1:02d}"
