"""Limits of API keys: what the settings give every key, and what an operator sets for one.

From outside, a limit is a number (of requests or tokens) or an amount (of a cap), or ``none``, or ``default`` for what
the settings say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from metering.meter import Limits
from metering.money import Currency, MoneyError
from serving.settings import Settings

CAPS: Final = ("day_cap", "month_cap")
NAMES: Final = tuple(field.name for field in fields(Limits))
COUNT_MAX: Final = 1_000_000_000
NONE: Final = "none"
DEFAULT: Final = "default"


class LimitError(ValueError):
    """Not a limit; the message says which and what one is."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits set for one key: None takes that of the settings, 0 is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    day_cap: int | None = None
    month_cap: int | None = None

    def over(self, defaults: Limits) -> Limits:
        """The limits that hold for the key."""
        own = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        return replace(defaults, **own) if own else defaults

    def to_json(self, currency: Currency) -> dict[str, Any]:
        """As :func:`parse` reads it."""
        return {name: _shown(name, value, currency) for name, value in asdict(self).items()}


def defaults(settings: Settings, currency: Currency) -> Limits:
    """What the settings give every key.

    Raises:
        LimitError: a cap in the settings is not an amount.
    """
    given = {name: getattr(settings, name) for name in NAMES}
    try:
        parsed = parse({name: NONE if value is None else value for name, value in given.items()}, currency)
    except LimitError as error:
        name, _, reason = str(error).partition(": ")
        raise LimitError(f"setting PATRONAGE_{name.upper()}: {reason}") from error
    return Limits(**{name: value or 0 for name, value in parsed.items()})


def parse(given: Mapping[str, object], currency: Currency) -> dict[str, int | None]:
    """Limits from outside, by name, as :class:`KeyLimits` has them.

    Raises:
        LimitError: one is not a limit.
    """
    unknown = set(given) - set(NAMES)
    if unknown:
        raise LimitError(f"there is no limit {min(unknown)[:40]}; there are {', '.join(NAMES)}")
    return {name: _parse(name, value, currency) for name, value in given.items()}


def parse_amount(name: str, value: object, currency: Currency) -> int | None:
    """An amount of zero or more in units, 0 for ``none``, or None for ``default``.

    Raises:
        LimitError: it is something else.
    """
    if value is None or value == DEFAULT:
        return None
    if value == NONE:
        return 0
    if isinstance(value, Mapping):
        if value.get("currency", currency.code) != currency.code:
            raise LimitError(f"{name}: amounts are in {currency.code}")
        value = value.get("amount")
    try:
        units = currency.parse(value) if isinstance(value, str) else -1
    except MoneyError as error:
        raise LimitError(f"{name}: {error}, nor {NONE} or {DEFAULT}") from error
    if units < 0:
        raise LimitError(f"{name}: {value!r} is not an amount such as 5.00, nor {NONE} or {DEFAULT}")
    return units


def show_amount(units: int | None, currency: Currency) -> Any:
    """An amount as :func:`parse_amount` reads it."""
    return _shown(CAPS[0], units, currency)


def _parse(name: str, value: object, currency: Currency) -> int | None:
    if name in CAPS:
        return parse_amount(name, value, currency)
    if value is None or value == DEFAULT:
        return None
    if value == NONE:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(COUNT_MAX)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= COUNT_MAX:
        raise LimitError(f"{name}: {str(value)[:40]!r} is not a number of 0 to {COUNT_MAX}, nor {NONE} or {DEFAULT}")
    return value


def _shown(name: str, value: int | None, currency: Currency) -> Any:
    if value is None:
        return DEFAULT
    if value == 0:
        return NONE
    return currency.amount(value) if name in CAPS else value
