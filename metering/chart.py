"""The chart of accounts: where each account of the ledger stands, and what other programs call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from metering import ledger

ROOTS: Final = ("Assets", "Liabilities", "Equity", "Income", "Expenses")

_FIXED: Final = {
    ledger.BANK: ("Assets", "Bank"),
    ledger.IN_TRANSIT: ("Liabilities", "Payouts"),
    ledger.RESIDUAL: ("Equity", "Residual"),
    ledger.COMPUTE: ("Income", "Compute"),
    ledger.PLATFORM: ("Income", "Platform"),
    ledger.PROMOTIONS: ("Expenses", "Promotions"),
}
_GROUPS: Final = {
    "customer": ("Liabilities", "Customers"),
    "pool": ("Liabilities", "Pools"),
    "contributor": ("Liabilities", "Contributors"),
    "operator": ("Income", "Operator"),
}
_OTHER: Final = ("Equity", "Other")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an account: one of ``ROOTS``, a group of it, and whose account it is, if the group has several."""

    root: str
    group: str
    owner: str | None = None

    @property
    def journal_name(self) -> str:
        """The name in a plain-text journal: letters, digits and single dashes, different for different accounts."""
        parts = [self.root, self.group]
        if self.owner is not None:
            parts.append(f"Id-{_encode(self.owner)}")
        return ":".join(parts)


def place(account: str) -> Place:
    """Where an account of the ledger stands."""
    if account in _FIXED:
        return Place(*_FIXED[account])
    prefix, colon, owner = account.partition(":")
    if colon and prefix in _GROUPS:
        return Place(*_GROUPS[prefix], owner)
    return Place(*_OTHER, account)


def _encode(owner: str) -> str:
    """``owner`` with everything but ASCII letters and digits, and dashes between two of them, as ``--HEX-``.

    The code can be read back: two dashes begin a character's code point, one dash is itself.
    """
    plain = [character.isascii() and character.isalnum() for character in owner]
    around = zip([False, *plain], [*plain[1:], False], strict=False)
    return "".join(
        character if ok or (character == "-" and before and after) else f"--{ord(character):x}-"
        for character, ok, (before, after) in zip(owner, plain, around, strict=True)
    )
