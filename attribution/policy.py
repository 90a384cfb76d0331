"""The policy: how much of a charge belongs to the documents, and by which rules it is divided.

A policy has a version and never changes; a new policy is a new version. Every usage record names its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from attribution.games.values import COUNTERFACTUAL
from attribution.runs.adopted import ROUNDINGS, SOLVERS, VALUE_FUNCTIONS
from attribution.value_functions.support import SUPPORT
from metering import formats
from metering.records import PPM

GENERATED_VALUE_FUNCTIONS: Final = tuple(name for name in VALUE_FUNCTIONS if name != COUNTERFACTUAL)
"""The counterfactual of an answer that a language model wrote is not known exactly."""
_CHOICES: Final[dict[str, Collection[str]]] = {
    "value_function": VALUE_FUNCTIONS,
    "generated_value_function": GENERATED_VALUE_FUNCTIONS,
    "solver": SOLVERS,
    "rounding": ROUNDINGS,
}
FORMAT: Final = 1
"""The format of policies. Those that do not say theirs have format 1."""
ABLATION_PPM = 10_000
"""A new policy has one record in a hundred recomputed."""


class PolicyError(ValueError):
    """A policy that cannot be used."""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of the policy."""

    version: int
    data_share_ppm: int
    """The documents' part of what a charge leaves after computing cost."""
    value_function: str = COUNTERFACTUAL
    """Values the answers of the extractive generator."""
    generated_value_function: str = SUPPORT
    """Values the answers that a language model wrote."""
    solver: str = "owen/1"
    rounding: str = "systematic/1"
    ablation_ppm: int = ABLATION_PPM
    """How many in a million records are drawn for the audit by ablation; see :mod:`attribution.agreement`."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse what this version of the program cannot compute.

        Raises:
            PolicyError: with the field that is wrong.
        """
        for field in ("data_share_ppm", "ablation_ppm"):
            if not 0 <= getattr(self, field) <= PPM:
                raise PolicyError(f"{field} must be between 0 and {PPM}")
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                raise PolicyError(f"{field} cannot be {getattr(self, field)!r}: choose {' or '.join(known)}")

    def values_by(self, *, generated: bool) -> str:
        """The value function, by name and version, of an answer that a language model generated, or of another."""
        return self.generated_value_function if generated else self.value_function

    def divide(self, charge: int, cost: int) -> tuple[int, int]:
        """``(platform, royalty)``, in units: what a charge leaves after its cost, divided.

        The royalty rounds down, so that the platform's part takes the fraction of a unit.
        """
        royalty = (charge - cost) * self.data_share_ppm // PPM
        return charge - cost - royalty, royalty

    def to_json(self) -> dict[str, Any]:
        """The policy as plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Policy:
        """The policy in plain JSON values.

        Raises:
            PolicyError: a field is missing, unknown or out of range, or a newer version wrote it.
        """
        try:
            formats.check(f"policy {data.get('version')}", data.get("format", 1), FORMAT)
            return msgspec.convert(data, cls)
        except formats.UnknownFormat as error:
            raise PolicyError(str(error)) from error
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, PolicyError):
                raise error.__cause__ from None
            raise PolicyError(f"not a policy: {error}") from error
