"""What each passage of a case earned: by the Shapley value, or by a simpler method to compare it with.

Players are contributors with their passages. Near-duplicates count as one passage, by the rule of
:mod:`attribution.games.players`: the original is read, and what it earns goes by evidence of registration. So a copy
changes neither what the original's contributor earns nor what the others do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import fsum
from typing import Final, Protocol

from msgspec import structs

from attribution.apportionment import apportion
from attribution.arithmetic import Floats
from attribution.cases.case import Case, CaseError, CasePassage, Result, Share
from attribution.games.estimation import BUDGET, BUDGET_MAX, BUDGET_MIN, Estimate
from attribution.games.players import Group, Relation, groups, paid
from attribution.games.semivalues import BANZHAF, LEAVE_ONE_OUT, SEMIVALUES, SHAPLEY, Semivalue
from attribution.games.shapley import unions_of
from attribution.games.solving import Game, LargeGame, TableGame
from attribution.games.values import TABLE_PLAYERS_MAX
from attribution.value_functions.likelihood import (
    LOG_LIKELIHOOD,
    LikelihoodError,
    Sampled,
    Scorer,
    Unscorable,
    log_likelihood,
)
from attribution.value_functions.support import SUPPORT, Passage, Span, TextAnalyzer, support
from metering.money import Currency
from metering.records import VALUE_ONE

VALUE_FUNCTIONS: Final = (SUPPORT, LOG_LIKELIHOOD)
DOLLAR: Final = Currency.of("USD")

Groups = Sequence[Group]
"""The members of a case's game: its passages, by index, with their near-duplicates."""


@dataclass(frozen=True, slots=True)
class Earned:
    """What a method gave each passage, in their order."""

    raw: Sequence[float]
    """Parts of 1, or numbers in proportion to which the sum is divided."""
    estimate: Estimate | None = None
    """Where the members' values are estimated, in units."""


Method = Callable[[Case, Groups, Game], Earned]

_SEED: Final = b"estimate/1\x00"
_SEED_BYTES: Final = 6
"""Few enough that every reader of JSON reads the seed as it is."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_MARKER: Final = re.compile(r"\[(\d{1,4})\]")
_WORD: Final = re.compile(r"\w+")


class CaseAnalyzer(TextAnalyzer, Protocol):
    """Also tells which texts of a case repeat which."""

    def relation(self, texts: Sequence[str]) -> Relation:
        """Which of the texts repeats which."""
        ...

    def repeated(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[Span, int]]]:
        """For each text, the earliest first, the sentences that an earlier one has, and which one that is."""
        ...


def attribute_case(
    case: Case,
    analyzer: CaseAnalyzer,
    *,
    method: str = SHAPLEY.name,
    value_function: str = SUPPORT,
    scorer: Scorer | None = None,
    budget: int = BUDGET,
    currency: Currency = DOLLAR,
) -> Result:
    """Attribute a case to its passages.

    Args:
        case: what was asked, answered and retrieved.
        analyzer: how texts are read and compared.
        method: one of ``METHODS``. The value function decides what all passages earned together; the method divides it.
        value_function: the name and version of what says how much a coalition is worth, one of ``VALUE_FUNCTIONS``.
        scorer: the language model of ``log_likelihood/1``; no other function needs one.
        budget: of a game that must be estimated, the most coalitions that are valued, from ``BUDGET_MIN`` to
            ``BUDGET_MAX``.
        currency: of a charge that names none.

    Raises:
        CaseError: the case lacks what the method or the value function needs, or there is no such method or function.
        LikelihoodError: there is no scorer, or it does not answer.
    """
    if method not in METHODS:
        raise CaseError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    if value_function not in VALUE_FUNCTIONS:
        raise CaseError(f"there is no value function {value_function!r}; there is {', '.join(VALUE_FUNCTIONS)}")
    if not BUDGET_MIN <= budget <= BUDGET_MAX:
        raise CaseError(f"a budget of {budget} coalitions is not between {BUDGET_MIN} and {BUDGET_MAX}")
    members = _members(case, analyzer)
    texts = _texts([case.passages[each.original] for each in members], analyzer)
    try:
        if value_function == LOG_LIKELIHOOD:
            game = _likelihood(case, texts, scorer, budget)
        else:
            game = support(case.question, case.answer or "", texts, analyzer)
        earned = METHODS[method](case, members, game)
        value_all, value_none = game.value_all, game.value_none
    except Unscorable as error:
        raise CaseError(str(error)) from error
    scale = _scale(method, fsum(earned.raw), (value_all - value_none) / VALUE_ONE)
    weights = [each * scale for each in earned.raw]
    result = Result(
        id=case.id,
        shares=tuple(
            Share(passage.id, passage.contributor, weight, value)
            for passage, weight, value in zip(case.passages, weights, earned.raw, strict=True)
        ),
        model_residual=max(0.0, 1.0 - fsum(weights)),
        method=method,
        estimated=False,
        value_all=value_all / VALUE_ONE,
        value_none=value_none / VALUE_ONE,
        value_function=value_function,
    )
    if earned.estimate is not None:
        result = _estimated(result, members, earned.estimate)
    return _with_amounts(result, case, currency)


def _likelihood(case: Case, texts: Sequence[Passage], scorer: Scorer | None, budget: int) -> Game:
    """The game of ``log_likelihood/1``, as in a paid query: a text begins with its title, if it has one."""
    if scorer is None:
        raise LikelihoodError(f"{LOG_LIKELIHOOD} needs a language model")
    answer = case.answer or ""
    if not answer.strip():
        raise CaseError(f"{LOG_LIKELIHOOD} needs an answer: it says how probable that is; {SUPPORT} takes the question")
    documents = [f"{each.title}\n{each.text}" if each.title else each.text for each in texts]
    if len(documents) <= TABLE_PLAYERS_MAX:
        return TableGame(log_likelihood(case.question, answer, documents, scorer).values)
    seed = int.from_bytes(hashlib.sha256(_SEED + str(case.id).encode()).digest()[:_SEED_BYTES], "big")
    return LargeGame(Sampled(case.question, answer, documents, scorer), len(documents), budget, seed)


def _scale(method: str, total: float, added: float) -> float:
    """The factor from what a method gave to parts of what all passages added."""
    if method == SHAPLEY.name:
        return 1.0  # efficient as it is
    if method in SEMIVALUES:
        return min(1.0, max(0.0, added / total)) if total else 1.0  # what is less is left to the residual
    return added / (total or 1.0)


def _estimated(result: Result, members: Groups, found: Estimate) -> Result:
    """The result with what it takes to repeat the estimate, and an interval for each share."""
    bounds = zip(_to_passages(members, found.low), _to_passages(members, found.high), strict=True)
    return structs.replace(
        result,
        shares=tuple(
            structs.replace(share, interval=interval) for share, interval in zip(result.shares, bounds, strict=True)
        ),
        estimated=True,
        budget=found.budget,
        seed=found.seed,
        confidence=found.confidence,
    )


def _members(case: Case, analyzer: CaseAnalyzer) -> Groups:
    """The passages with their near-duplicates; what belongs together does not depend on the order they come in.

    Of passages of one date that repeat one another, nothing says which was there first. The one that has most of the
    words of the question and the answer is read, so that what was said is not lost with one that was cut elsewhere.
    """
    passages = case.passages
    wanted = {*analyzer.stems(case.question), *analyzer.stems(case.answer or "")}
    named = [len(wanted.intersection(analyzer.stems(passage.text))) for passage in passages]
    order = sorted(range(len(passages)), key=lambda i: (-named[i], *_identity(passages[i])))
    ids = dict(zip(order, (f"{place:04}" for place in range(len(order))), strict=True))
    found = groups(
        analyzer.relation([passage.text for passage in passages]),
        [_microseconds(passage.registered) for passage in passages],
        [ids[i] for i in range(len(passages))],
    )
    return sorted(found, key=lambda group: group.original)


def _texts(originals: Sequence[CasePassage], analyzer: CaseAnalyzer) -> list[Passage]:
    """The text that is read of each: a sentence that an earlier passage has plays there, as in a paid query.

    Of passages of one date, and of those without one, nothing says which had a sentence first: it plays for all.
    """
    dates = [_microseconds(each.registered) for each in originals]
    texts = [each.text for each in originals]
    if len(set(dates)) > 1:
        order = sorted(range(len(originals)), key=lambda i: (dates[i] is None, dates[i] or 0, *_identity(originals[i])))
        for i, found in zip(order, analyzer.repeated([texts[i] for i in order]), strict=True):
            for (start, end), first in reversed(found):
                if dates[order[first]] != dates[i]:
                    texts[i] = texts[i][:start] + texts[i][end:]
    return [Passage(text.strip(), each.title or "") for text, each in zip(texts, originals, strict=True)]


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


def _shapley(case: Case, members: Groups, game: Game) -> Earned:
    """The Owen value, in which the passages of a contributor stand together; the Shapley value where each has one."""
    if not members:
        return Earned([])
    owners = []
    for number, group in enumerate(members):
        names = {case.passages[i].contributor for i in group.earners}
        # What several contributors earn on is a player of its own, and so is what nobody is named for.
        owners.append(f"contributor {names.pop()}" if len(names) == 1 and None not in names else f"passage {number}")
    unions = unions_of(owners)
    if not isinstance(game, LargeGame):
        return Earned(_to_passages(members, game.owen(unions)))
    try:
        found = game.owen(unions)
    except ValueError as error:
        raise CaseError(str(error)) from error
    return Earned(_to_passages(members, found.values), found)


def _semivalue(semivalue: Semivalue) -> Method:
    def values(_case: Case, members: Groups, game: Game) -> Earned:
        if isinstance(game, LargeGame):
            raise CaseError(
                f"{semivalue.name} of {len(members)} passages is not estimated: {TABLE_PLAYERS_MAX} can be tabulated; "
                f"choose {SHAPLEY.name}, or {SUPPORT}"
            )
        return Earned(_to_passages(members, game.solve(semivalue)) if members else [])

    return values


def _to_passages(members: Groups, values: Floats) -> list[float]:
    """What the members earned, as parts of 1, passage by passage."""
    return paid(members, [float(value) / VALUE_ONE for value in values])


def _tokens(case: Case, _members: Groups, _game: Game) -> Earned:
    """How many words each passage has."""
    return Earned([float(len(_WORD.findall(passage.text))) for passage in case.passages])


def _scores(case: Case, _members: Groups, _game: Game) -> Earned:
    """The retrieval scores; above the lowest where there are negative ones, whose zero says nothing."""
    scores = [passage.score for passage in case.passages if passage.score is not None]
    if len(scores) < len(case.passages):
        raise CaseError("score-proportional needs the score of every passage")
    lowest = min([0.0, *scores])
    return Earned([score - lowest for score in scores])


def _citations(case: Case, _members: Groups, _game: Game) -> Earned:
    """How often the answer cites each passage: as ``[1]`` for the first, or else by quoting a sentence of it."""
    answer = case.answer or ""
    cited = [int(number) - 1 for number in _MARKER.findall(answer)]
    if cited:
        return Earned([float(cited.count(i)) for i in range(len(case.passages))])
    said = [" ".join(part.split()) for part in _SENTENCE_END.split(answer)]
    texts = [" ".join(passage.text.split()) for passage in case.passages]
    return Earned([float(sum(part in text for part in said if part)) for text in texts])


def _equal(case: Case, _members: Groups, _game: Game) -> Earned:
    return Earned([1.0] * len(case.passages))


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
