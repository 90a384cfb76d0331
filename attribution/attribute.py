"""What each passage of a case earned: by the Shapley value, or by a simpler method to compare it with.

Players are contributors with their passages. Near-duplicates count as one passage, by the rule of
:mod:`attribution.players`: the original is read, and what it earns goes by evidence of registration. So a copy changes
neither what the original's contributor earns nor what the others do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import fsum
from typing import Final, Protocol

import numpy as np
from msgspec import structs

from attribution import support as supporting
from attribution.apportionment import apportion
from attribution.cases import Case, CaseError, CasePassage, Result, Share
from attribution.max_games import MaxGame
from attribution.players import Group, Relation, groups, paid
from attribution.semivalues import BANZHAF, LEAVE_ONE_OUT, SEMIVALUES, SHAPLEY, Floats, Semivalue
from attribution.shapley import unions_of
from attribution.support import SUPPORT, Passage, support
from metering.money import Currency
from metering.records import VALUE_ONE

VALUE_FUNCTIONS: Final = {SUPPORT: support}
DOLLAR: Final = Currency.of("USD")

Groups = Sequence[Group]
"""The members of a case's game: its passages, by index, with their near-duplicates."""

Method = Callable[[Case, Groups, MaxGame], list[float]]
"""Gives each passage a number, not negative: what it earned as a part of 1, or what all earned is in proportion to."""

_NOTHING: Final = MaxGame(np.zeros((0, 0), np.int64), np.zeros(0, np.int64))
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_MARKER: Final = re.compile(r"\[(\d{1,4})\]")
_WORD: Final = re.compile(r"\w+")


class Reader(supporting.Reader, Protocol):
    """What it takes to read and to compare the texts of a case."""

    def relation(self, texts: Sequence[str]) -> Relation:
        """Which of the texts repeats which."""
        ...


def attribute(
    case: Case,
    reader: Reader,
    *,
    method: str = SHAPLEY.name,
    value_function: str = SUPPORT,
    currency: Currency = DOLLAR,
) -> Result:
    """Attribute a case to its passages.

    Args:
        case: what was asked, answered and retrieved.
        reader: how texts are read and compared.
        method: one of ``METHODS``. The value function decides what all passages earned together; the method divides it.
        value_function: the name and version of what says how much a coalition is worth, one of ``VALUE_FUNCTIONS``.
        currency: of a charge that names none.

    Raises:
        CaseError: the case lacks what the method needs, or there is no such method or value function.
    """
    if method not in METHODS:
        raise CaseError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    if value_function not in VALUE_FUNCTIONS:
        raise CaseError(f"there is no value function {value_function!r}; there is {', '.join(VALUE_FUNCTIONS)}")
    members = _members(case, reader)
    originals = [case.passages[each.original] for each in members]
    texts = [Passage(passage.text, passage.title or "") for passage in originals]
    game = VALUE_FUNCTIONS[value_function](case.question, case.answer or "", texts, reader) if texts else _NOTHING
    raw = METHODS[method](case, members, game)
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


def _members(case: Case, reader: Reader) -> Groups:
    """The passages with their near-duplicates; what belongs together does not depend on the order they come in.

    Of passages of one date that repeat one another, nothing says which was there first. The one that has most of the
    words of the question and the answer is read, so that what was said is not lost with one that was cut elsewhere.
    """
    passages = case.passages
    wanted = {*reader.stems(case.question), *reader.stems(case.answer or "")}
    named = [len(wanted.intersection(reader.stems(passage.text))) for passage in passages]
    order = sorted(range(len(passages)), key=lambda i: (-named[i], *_identity(passages[i])))
    ids = dict(zip(order, (f"{place:04}" for place in range(len(order))), strict=True))
    found = groups(
        reader.relation([passage.text for passage in passages]),
        [_microseconds(passage.registered) for passage in passages],
        [ids[i] for i in range(len(passages))],
    )
    return sorted(found, key=lambda group: group.original)


def _identity(passage: CasePassage) -> tuple[object, ...]:
    """Tells passages apart; the longest comes first."""
    return (-len(passage.text), passage.title or "", passage.text, passage.contributor or "", str(passage.id))


def _microseconds(registered: datetime | None) -> int | None:
    return None if registered is None else (registered - _EPOCH) // timedelta(microseconds=1)


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


def _shapley(case: Case, members: Groups, game: MaxGame) -> list[float]:
    """The Owen value, in which the passages of a contributor stand together; the Shapley value where each has one."""
    owners = []
    for number, group in enumerate(members):
        names = {case.passages[i].contributor for i in group.earners}
        # What several contributors earn on is a player of its own, and so is what nobody is named for.
        owners.append(f"contributor {names.pop()}" if len(names) == 1 and None not in names else f"passage {number}")
    return _to_passages(members, game.owen(unions_of(owners)) if members else [])


def _semivalue(semivalue: Semivalue) -> Method:
    def values(_case: Case, members: Groups, game: MaxGame) -> list[float]:
        return _to_passages(members, game.solve(semivalue) if members else [])

    return values


def _to_passages(members: Groups, values: Floats | Sequence[float]) -> list[float]:
    """What the members earned, as parts of 1, passage by passage."""
    return paid(members, [float(value) / VALUE_ONE for value in values])


def _tokens(case: Case, _members: Groups, _game: MaxGame) -> list[float]:
    """How many words each passage has."""
    return [float(len(_WORD.findall(passage.text))) for passage in case.passages]


def _scores(case: Case, _members: Groups, _game: MaxGame) -> list[float]:
    """The retrieval scores; above the lowest where there are negative ones, whose zero says nothing."""
    scores = [passage.score for passage in case.passages if passage.score is not None]
    if len(scores) < len(case.passages):
        raise CaseError("score-proportional needs the score of every passage")
    lowest = min([0.0, *scores])
    return [score - lowest for score in scores]


def _citations(case: Case, _members: Groups, _game: MaxGame) -> list[float]:
    """How often the answer cites each passage: as ``[1]`` for the first, or else by quoting a sentence of it."""
    answer = case.answer or ""
    cited = [int(number) - 1 for number in _MARKER.findall(answer)]
    if cited:
        return [float(cited.count(i)) for i in range(len(case.passages))]
    said = [" ".join(part.split()) for part in _SENTENCE_END.split(answer)]
    texts = [" ".join(passage.text.split()) for passage in case.passages]
    return [float(sum(part in text for part in said if part)) for text in texts]


def _equal(case: Case, _members: Groups, _game: MaxGame) -> list[float]:
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
