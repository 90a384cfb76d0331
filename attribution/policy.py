"""The policy: how much of a charge belongs to the documents, and by which rules it is divided.

A policy has a version and never changes; a new policy is a new version. Every usage record names its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from attribution.apportionment import RULE
from attribution.values import COUNTERFACTUAL
from metering.records import PPM

SOLVER = "owen/1"
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
    solver: str = SOLVER
    rounding: str = RULE
    ablation_ppm: int = ABLATION_PPM
    """How many in a million records are drawn for the audit by ablation; see :mod:`attribution.agreement`."""

    def __post_init__(self) -> None:
        """Refuse what this version of the program cannot compute.

        Raises:
            PolicyError: with the field that is wrong.
        """
        for field in ("data_share_ppm", "ablation_ppm"):
            if not 0 <= getattr(self, field) <= PPM:
                raise PolicyError(f"{field} must be between 0 and {PPM}")
        for field, known in (("value_function", COUNTERFACTUAL), ("solver", SOLVER), ("rounding", RULE)):
            if getattr(self, field) != known:
                raise PolicyError(f"{field} {getattr(self, field)!r} is not known; there is {known}")

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
            PolicyError: a field is missing, unknown or out of range.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise PolicyError(f"not a policy: {error}") from error
