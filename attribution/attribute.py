"""What each passage of a case earned: by the Shapley value, or by a simpler method to compare it with.

Players are contributors with their passages. Copies of a text count as one passage: it is read once, and what it earns
goes to the copy that was registered first, or to all copies equally where no registration tells. So a copy changes
neither what the original's contributor earns nor what the others do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import fsum
from typing import Final

import numpy as np
from msgspec import structs

from attribution.apportionment import apportion
from attribution.cases import Case, CaseError, CasePassage, Result, Share
from attribution.max_games import MaxGame
from attribution.semivalues import BANZHAF, LEAVE_ONE_OUT, SEMIVALUES, SHAPLEY, Semivalue
from attribution.shapley import unions_of
from attribution.support import SUPPORT, Passage, Reader, support
from metering.money import Currency
from metering.records import VALUE_ONE

VALUE_FUNCTIONS: Final = {SUPPORT: support}
DOLLAR: Final = Currency.of("USD")

Groups = list[list[int]]
"""The passages of a case, by index, in groups of copies."""

Method = Callable[[Case, Groups, MaxGame], list[float]]
"""Gives each passage a number, not negative: what it earned as a part of 1, or what all earned is in proportion to."""

_NOTHING: Final = MaxGame(np.zeros((0, 0), np.int64), np.zeros(0, np.int64))
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_MARKER: Final = re.compile(r"\[(\d{1,4})\]")
_WORD: Final = re.compile(r"\w+")


def exact_copies(passages: Sequence[CasePassage]) -> Groups:
    """Groups the passages of the same text, white space aside."""
    groups: dict[str, list[int]] = {}
    for i, passage in enumerate(passages):
        groups.setdefault(" ".join(passage.text.split()), []).append(i)
    return list(groups.values())


def attribute(
    case: Case,
    reader: Reader,
    *,
    method: str = SHAPLEY.name,
    value_function: str = SUPPORT,
    copies: Callable[[Sequence[CasePassage]], Groups] = exact_copies,
    currency: Currency = DOLLAR,
) -> Result:
    """Attribute a case to its passages.

    Args:
        case: what was asked, answered and retrieved.
        reader: how texts are read.
        method: one of ``METHODS``. The value function decides what all passages earned together; the method divides it.
        value_function: the name and version of what says how much a coalition is worth, one of ``VALUE_FUNCTIONS``.
        copies: which passages are copies of one another.
        currency: of a charge that names none.

    Raises:
        CaseError: the case lacks what the method needs, or there is no such method or value function.
    """
    if method not in METHODS:
        raise CaseError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    if value_function not in VALUE_FUNCTIONS:
        raise CaseError(f"there is no value function {value_function!r}; there is {', '.join(VALUE_FUNCTIONS)}")
    groups = copies(case.passages)
    first = [min((case.passages[i] for i in group), key=_precedence) for group in groups]
    texts = [Passage(passage.text, passage.title or "") for passage in first]
    game = VALUE_FUNCTIONS[value_function](case.question, case.answer or "", texts, reader) if texts else _NOTHING
    raw = METHODS[method](case, groups, game)
    added = (game.value_all - game.value_none) / VALUE_ONE
    scale = added / (fsum(raw) or 1.0)
    if method in SEMIVALUES:
        scale = min(1.0, scale)  # a value that is not efficient leaves the rest to the residual
    weights = [each * scale for each in raw]
    residual = max(0.0, 1.0 - fsum(weights))
    result = Result(
        id=case.id,
        shares=tuple(
            Share(passage.id, passage.contributor, weight, value)
            for passage, weight, value in zip(case.passages, weights, raw, strict=True)
        ),
        model_residual=residual,
        method=method,
        estimated=False,
        value_all=game.value_all / VALUE_ONE,
        value_none=game.value_none / VALUE_ONE,
        value_function=value_function,
    )
    return _with_amounts(result, case, currency)


def _precedence(passage: CasePassage) -> tuple[object, ...]:
    """Sorts the copy that is read to the front: the first registered, and whatever the order they come in."""
    registered = passage.registered
    return (registered is None, registered or _EPOCH, passage.title or "", passage.text, str(passage.id))


def _with_amounts(result: Result, case: Case, currency: Currency) -> Result:
    """The result with its weights as amounts of the charge, in whole units that sum to it."""
    charged = case.charged(currency)
    if charged is None:
        return result
    units, currency = charged
    weights = [int(share.weight * VALUE_ONE) for share in result.shares]
    rest = max(0, VALUE_ONE - sum(weights))
    *amounts, left = apportion(units, [*weights, rest], str(case.id).encode())
    return structs.replace(
        result,
        shares=tuple(
            structs.replace(share, amount=currency.amount(each))
            for share, each in zip(result.shares, amounts, strict=True)
        ),
        residual_amount=currency.amount(left),
    )


def _shapley(case: Case, groups: Groups, game: MaxGame) -> list[float]:
    """The Owen value, in which the passages of a contributor stand together; the Shapley value where each has one."""
    owners = []
    for number, group in enumerate(groups):
        names = {case.passages[i].contributor for i in group}
        # What several contributors brought is a player of its own, and so is what nobody is named for.
        owners.append(f"contributor {names.pop()}" if len(names) == 1 and None not in names else f"passage {number}")
    return _to_passages(case, groups, game.owen(unions_of(owners)).tolist() if groups else [])


def _semivalue(semivalue: Semivalue) -> Method:
    def values(case: Case, groups: Groups, game: MaxGame) -> list[float]:
        return _to_passages(case, groups, game.solve(semivalue).tolist() if groups else [])

    return values


def _to_passages(case: Case, groups: Groups, values: Sequence[float]) -> list[float]:
    """What groups of copies earned, as parts of 1, to those of each group that were registered first."""
    raw = [0.0] * len(case.passages)
    for group, value in zip(groups, values, strict=True):
        known = [registered for i in group if (registered := case.passages[i].registered)]
        earliest = min(known, default=None)
        winners = [i for i in group if case.passages[i].registered == earliest]
        for i in winners:
            raw[i] = value / VALUE_ONE / len(winners)
    return raw


def _tokens(case: Case, _groups: Groups, _game: MaxGame) -> list[float]:
    """How many words each passage has."""
    return [float(len(_WORD.findall(passage.text))) for passage in case.passages]


def _scores(case: Case, _groups: Groups, _game: MaxGame) -> list[float]:
    """The retrieval scores; above the lowest where there are negative ones, whose zero says nothing."""
    scores = [passage.score for passage in case.passages if passage.score is not None]
    if len(scores) < len(case.passages):
        raise CaseError("score-proportional needs the score of every passage")
    lowest = min([0.0, *scores])
    return [score - lowest for score in scores]


def _citations(case: Case, _groups: Groups, _game: MaxGame) -> list[float]:
    """How often the answer cites each passage: as ``[1]`` for the first, or else by quoting a sentence of it."""
    answer = case.answer or ""
    cited = [int(number) - 1 for number in _MARKER.findall(answer)]
    if cited:
        return [float(cited.count(i)) for i in range(len(case.passages))]
    said = [" ".join(part.split()) for part in _SENTENCE_END.split(answer)]
    texts = [" ".join(passage.text.split()) for passage in case.passages]
    return [float(sum(part in text for part in said if part)) for text in texts]


def _equal(case: Case, _groups: Groups, _game: MaxGame) -> list[float]:
    return [1.0] * len(case.passages)


METHODS: Final[dict[str, Method]] = {
    SHAPLEY.name: _shapley,
    LEAVE_ONE_OUT.name: _semivalue(LEAVE_ONE_OUT),
    BANZHAF.name: _semivalue(BANZHAF),
    "token-count": _tokens,
    "score-proportional": _scores,
    "citation-count": _citations,
    "equal": _equal,
}
"""How what all passages earned is divided, by name. The first is what Patronage pays by."""
