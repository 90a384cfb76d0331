"""Everything that was ever adopted, by name and version.

What a record or a run names is computed by what stands here under that name, for ever. A rule that is to give other
results gets another version and another entry; no entry is changed or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from attribution import apportionment
from attribution.games.shapley import Unions, owen_values
from attribution.games.values import COUNTERFACTUAL, counterfactual
from attribution.runs import inputs, outcomes, tally
from attribution.runs.inputs import Hour
from attribution.value_functions.likelihood import LOG_LIKELIHOOD, log_likelihood
from attribution.value_functions.support import SUPPORT, support
from metering import merkle

Ints = npt.NDArray[np.int64]

Solver = Callable[[Ints, Unions], tuple[Ints, int]]
"""As :func:`attribution.games.shapley.owen_values`."""
Payments = Callable[[Mapping[str, int]], dict[str, int]]
"""As :func:`attribution.runs.tally.floored`."""
Inputs = Callable[[Iterable[Hour]], merkle.Tree]
"""As :func:`attribution.runs.inputs.input_tree`."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """A rule of apportionment."""

    one: Callable[[int, Sequence[int], bytes], list[int]]
    """As :func:`attribution.apportionment.apportion`."""
    many: Callable[..., Ints]
    """The same of many totals, as :func:`attribution.apportionment.apportion_all`."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A rule of what customers' outcomes move."""

    weight: Callable[[outcomes.Outcome, int], int]
    """As :meth:`attribution.runs.outcomes.Outcome.weight`."""
    moved: Callable[[Iterable[tuple[tally.CreditKey, int, int]], bytes], dict[tally.CreditKey, int]]
    """As :func:`attribution.runs.outcomes.moved`."""


VALUE_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    COUNTERFACTUAL: counterfactual,
    SUPPORT: support,
    LOG_LIKELIHOOD: log_likelihood,
}
"""The value functions that policies were ever able to name, each with arguments of its own."""
SOLVERS: Final[Mapping[str, Solver]] = {"owen/1": owen_values}
ROUNDINGS: Final[Mapping[str, Rounding]] = {
    apportionment.RULE: Rounding(apportionment.apportion, apportionment.apportion_all)
}
OUTCOMES: Final[Mapping[str, Outcomes]] = {outcomes.RULE: Outcomes(outcomes.Outcome.weight, outcomes.moved)}
PAYMENTS: Final[Mapping[str, Payments]] = {tally.FLOOR_RULE: tally.floored}
INPUTS: Final[Mapping[str, Inputs]] = {inputs.TREE: inputs.input_tree}

_KINDS: Final[Mapping[str, Mapping[str, object]]] = {
    "solver": SOLVERS,
    "rounding": ROUNDINGS,
    "outcomes": OUTCOMES,
    "payments": PAYMENTS,
    "input": INPUTS,
}


class UnknownRule(ValueError):
    """A rule that this version of the program does not know; the message names it."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules that a run is computed by, as its manifest names them. The defaults are those of new runs."""

    solver: str = "owen/1"
    rounding: str = apportionment.RULE
    outcomes: str = outcomes.RULE
    payments: str = tally.FLOOR_RULE
    input: str = inputs.TREE

    def __post_init__(self) -> None:
        """Refuse what cannot be computed here.

        Raises:
            UnknownRule: as said.
        """
        for kind, known in _KINDS.items():
            name = getattr(self, kind)
            if name not in known:
                raise UnknownRule(f"{kind} {name[:40]!r} is not known to this version: upgrade Patronage")

    @property
    def names(self) -> dict[str, str]:
        """By kind."""
        return {kind: getattr(self, kind) for kind in _KINDS}

    @classmethod
    def of(cls, names: Any) -> Rules:
        """The rules of those names, by kind.

        Raises:
            UnknownRule: a newer version names one, or a kind of them, that this one does not know.
        """
        try:
            return msgspec.convert(names, cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, UnknownRule):
                raise error.__cause__ from None
            raise UnknownRule(f"the algorithms of a run are not those of this version: {error}") from error


NEW_RUNS: Final = Rules()
