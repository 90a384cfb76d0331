"""Periods: calendar months in UTC, written ``YYYY-MM``; and the days and moments in them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

HOUR_MS = 3_600_000

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DAY_MS: Final = 86_400_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
"""The last moment that has a name: the end of the year 9999 in UTC."""


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
    return _day(milliseconds // _DAY_MS)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    """A day, counted from the epoch. Kept, because every query asks for today."""
    return datetime.fromtimestamp(number * _DAY_MS / 1000, UTC).strftime("%Y-%m-%d")


def first_ms(text: str) -> int:
    """The moment that ``text`` names, in milliseconds since the epoch; of a day, its first.

    Raises:
        PeriodError: it is neither ``YYYY-MM-DD`` nor a time with its zone in RFC 3339.
    """
    return _moment(text)[0]


def last_ms(text: str) -> int:
    """As :func:`first_ms`, but of a day its last moment."""
    return _moment(text)[1]


def _moment(text: str) -> tuple[int, int]:
    try:
        if _DAY.fullmatch(text):
            first = (date.fromisoformat(text) - _EPOCH.date()).days * _DAY_MS
            if first < 0:
                raise ValueError
            return first, first + _DAY_MS - 1
        moment = moment_of(datetime.fromisoformat(text))
    except ValueError:
        raise PeriodError(
            f"{text[:40]!r} is not a day such as 2026-11-30, nor a time such as 2026-11-30T12:00:00Z"
        ) from None
    return moment, moment


def moment_of(found: datetime) -> int:
    """The moment of a time with its zone, in milliseconds since the epoch.

    Raises:
        PeriodError: it has no zone, or is not from 1970 to 9999 in UTC, so that :func:`timestamp` could not name it.
    """
    # A difference is exact and has no bounds; a time of its own in UTC, or a float, would have them.
    moment = -1 if found.tzinfo is None else (found - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= moment <= LAST_MS:
        raise PeriodError(f"{found.isoformat()} is not a time with its zone from 1970 to 9999 in UTC")
    return moment


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


def timestamp(milliseconds: int) -> str:
    """A moment, in milliseconds since the epoch, as RFC 3339 in UTC."""
    moment = _EPOCH + timedelta(milliseconds=milliseconds)  # exact, where a float of seconds would be a little less
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
