"""Money as integers.

One deployment has one currency, and every amount inside it is an ``int``: a count of units of
``10 ** -scale`` of that currency (nano-dollars for USD at scale 9). Decimal strings exist only at the
outside, where :meth:`Currency.parse` and :meth:`Currency.format` translate without rounding.
See ``docs/adr/0003-money-unit.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict

MAX_UNITS = 2**53 - 1
"""The largest amount or balance: Redis Lua numbers are doubles and exact only up to here."""

MAX_TOTAL = 2**63 - 1
"""The largest sum of many amounts: SQL and the log count in 64 bits."""

MIN_PLACES = 6
"""Amounts are printed with at least this many decimal places."""

_DECIMAL = re.compile(r"(-?)(\d{1,24})(?:\.(\d{1,24}))?", re.ASCII)

# Currencies whose everyday prices have large nominal amounts get a coarser unit, so that MAX_UNITS
# is never a poor man's limit. Every other currency has the scale of the dollar.
_COARSE_SCALES = {"JPY": 7, "HUF": 7, "KRW": 6, "CLP": 6, "IDR": 5, "VND": 5, "IRR": 4, "LBP": 5}
_DEFAULT_SCALE = 9


class MoneyError(ValueError):
    """An amount that is not money: malformed, out of range, or finer than the unit."""


class Amount(TypedDict):
    """An amount as the outside sees it."""

    amount: str
    currency: str


@dataclass(frozen=True, slots=True)
class Currency:
    """The currency of a deployment and the size of its unit, ``10 ** -scale``."""

    code: str
    scale: int

    @classmethod
    def of(cls, code: str) -> Currency:
        """The currency with the project's unit for it.

        Raises:
            MoneyError: ``code`` is not three capital letters.
        """
        if not re.fullmatch(r"[A-Z]{3}", code, re.ASCII):
            raise MoneyError(f"currency {code!r} is not a three-letter ISO 4217 code such as USD")
        return cls(code, _COARSE_SCALES.get(code, _DEFAULT_SCALE))

    def parse(self, amount: str, limit: int = MAX_UNITS) -> int:
        """Units in a decimal string such as ``"12.50"``; exact, never rounded.

        Raises:
            MoneyError: not a plain decimal, finer than the unit, or beyond ``limit`` units.
        """
        match = _DECIMAL.fullmatch(amount.strip())
        if match is None:
            raise MoneyError(f"amount {amount[:40]!r} is not a decimal number such as 12.50")
        sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
        if len(fraction.rstrip("0")) > self.scale:
            raise MoneyError(f"amount {amount[:40]!r} is finer than the unit of {self.code}, 1e-{self.scale}")
        units: int = int(whole) * 10**self.scale + int(fraction[: self.scale].ljust(self.scale, "0"))
        if units > limit:
            raise MoneyError(f"amount {amount[:40]!r} is above the limit {self.format(limit)}")
        return -units if sign else units

    def parse_positive(self, amount: str) -> int:
        """As :meth:`parse`, for amounts that must be above zero.

        Raises:
            MoneyError: as :meth:`parse`, or the amount is zero or negative.
        """
        units = self.parse(amount)
        if units <= 0:
            raise MoneyError(f"amount {amount[:40]!r} must be above zero")
        return units

    def parse_amount(self, amount: str, currency: str | None) -> int:
        """As :meth:`parse`, for an amount that may name its currency.

        Raises:
            MoneyError: as :meth:`parse`, or it is another currency.
        """
        if currency not in (None, self.code):
            raise MoneyError(f"amounts are in {self.code}, not {currency[:10]!r}")
        return self.parse(amount)

    def format(self, units: int) -> str:
        """The exact decimal string of ``units``, with at least ``MIN_PLACES`` places."""
        whole, fraction = divmod(abs(units), 10**self.scale)
        digits = str(fraction).rjust(self.scale, "0").rstrip("0").ljust(MIN_PLACES, "0")
        return f"{'-' if units < 0 else ''}{whole}.{digits}"

    def amount(self, units: int) -> Amount:
        """``units`` as the JSON object that every interface of Patronage uses."""
        return {"amount": self.format(units), "currency": self.code}
