"""The derivation of one query's credits, from the charge to the last unit, in words and numbers. For the operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import pyarrow.compute as pc
import sqlalchemy as sa

from attribution.apportionment import OFFSET_BITS, offset
from attribution.games.values import UNVALUED
from attribution.runs.outcomes import WEIGHT_ONE, factor
from attribution.runs.run import Batch, divide, owen_shares
from metering import periods, usage_index
from metering.pricing import Usage
from metering.records import PPM, VALUE_ONE, UsageRecord
from serving import rendering
from serving.books import Books
from serving.closing import lookup, outcomes
from serving.closing.crediting import COLUMNS, divided
from serving.rules.rulebook import EXTRACTIVE

_ALL_COALITIONS_PLAYERS: Final = 4
_PLACES: Final = 6


class UnknownRecord(LookupError):
    """There is no such record in the log."""


def explain(books: Books, record_id: str) -> dict[str, Any]:
    """Everything that led to the credits of a record.

    Returns:
        ``charge``, ``value``, ``players``, ``credits``, ``residual``, ``outcome`` (None where the customer reported
        nothing in the period), ``picture`` (the parts of the charge, in units) and ``steps`` (the same in sentences).

    Raises:
        UnknownRecord: it is not in the log.
        SegmentError: its segment is missing or altered.
    """
    logged = lookup.find(books, record_id)
    if logged is None:
        raise UnknownRecord(f"there is no record {record_id[:80]} in the log")
    record = logged.record
    credits_ = _credits(books, record)
    earned = sum(each["units"] for each in credits_)
    found = {
        "record": record.id,
        "period": logged.period,
        "account": record.account,
        "model": record.model,
        "answered": periods.timestamp(record.finished_ms),
        "charge": _charge(books, record),
        "value": _value(record),
        "players": _players(record),
        "credits": credits_,
        "offset": _decimal(Fraction(offset(record.leaf()), 1 << OFFSET_BITS)),
        "credited": books.currency.amount(earned),
        "residual": books.currency.amount(record.royalty - earned),
        "outcome": _outcome(books, record, logged.period),
        "picture": [
            {"part": "computing", "units": record.cost},
            {"part": "platform", "units": record.platform},
            {"part": "residual", "units": record.royalty - earned},
            *(
                {"part": f"{each['document']}: {each['contributor']}", "units": each["units"]}
                for each in credits_
                if each["units"]
            ),
        ],
    }
    found["steps"] = [{"title": title, "text": text} for title, text in _words(books, record, found)]
    return found


def _charge(books: Books, record: UsageRecord) -> dict[str, Any]:
    amount = books.currency.amount
    price = books.rulebook.price_book(record.price_version).price(record.model)
    return {
        "amount": amount(record.charge),
        "price_version": record.price_version,
        "request": amount(price.request),
        "input": {"tokens": record.input_tokens, "per_1k": amount(price.input_per_1k)},
        "output": {"tokens": record.output_tokens, "per_1k": amount(price.output_per_1k)},
        "documents": {"count": record.passages, "each": amount(price.passage)},
        "recomputed": amount(price.charge(Usage(record.input_tokens, record.output_tokens, record.passages))),
        "cost": amount(record.cost),
        "platform": amount(record.platform),
        "royalty": amount(record.royalty),
        "policy_version": record.policy_version,
    }


def _value(record: UsageRecord) -> dict[str, Any]:
    players = len(record.values).bit_length() - 1
    everyone = (1 << players) - 1
    if players <= _ALL_COALITIONS_PLAYERS:
        shown = list(range(1 << players))
    else:
        single = [1 << player for player in range(players)]
        shown = [0, *single, *(everyone ^ each for each in single), everyone]
    return {
        "function": record.value_function,
        "none": record.values[0] / VALUE_ONE,
        "all": record.values[-1] / VALUE_ONE,
        "coalitions": [
            {
                "documents": [record.uses[player].document for player in range(players) if coalition >> player & 1],
                "worth": record.values[coalition] / VALUE_ONE,
            }
            for coalition in shown
        ],
    }


def _players(record: UsageRecord) -> list[dict[str, Any]]:
    numerators, denominator = owen_shares(record)
    values = record.values
    return [
        {
            "document": use.document,
            "version": use.version,
            "contributor": use.contributor,
            "cited": use.cited,
            "alone": (values[1 << place] - values[0]) / VALUE_ONE,
            "last": (values[-1] - values[len(values) - 1 ^ 1 << place]) / VALUE_ONE,
            "share": numerator / denominator,
            "exact": f"{Fraction(numerator, denominator)}",
        }
        for place, (use, numerator) in enumerate(zip(record.uses, numerators, strict=False))
    ]


def _credits(books: Books, record: UsageRecord) -> list[dict[str, Any]]:
    """The cells of the line on which the royalty is laid, in order, with the whole units on each."""
    numerators, denominator = owen_shares(record)
    units = iter(divide(Batch.of([record])).units.tolist())
    reached = Fraction(0)
    found = []
    for use, numerator in zip(record.uses, numerators, strict=False):
        for split in use.splits:
            exact = Fraction(record.royalty * numerator * split.ppm, denominator * PPM)
            reached += exact
            given = next(units)
            found.append(
                {
                    "document": use.document,
                    "contributor": split.contributor,
                    "role": split.role,
                    "split_ppm": split.ppm,
                    "exact": _decimal(exact),
                    "reached": _decimal(reached),
                    "units": given,
                    "credited": books.currency.amount(given),
                }
            )
    return found


def _outcome(books: Books, record: UsageRecord, period: str) -> dict[str, Any] | None:
    """What the customer's outcomes of the period make of this query's credits."""
    reported = outcomes.of_period(books.engine, period, record.account).get(record.account)
    if not reported:
        return None
    by_weight: dict[int, int] = defaultdict(int)
    earned = 0
    for receipt, charge, units in _earned(books, record.account, period):
        if units > 0:
            outcome = reported.get(receipt)
            by_weight[WEIGHT_ONE if outcome is None else outcome.weight(charge)] += units
        if receipt == record.id:
            earned = units
    own = reported.get(record.id)
    weight = WEIGHT_ONE if own is None else own.weight(record.charge)
    numerator, denominator = factor(weight, by_weight) if earned > 0 else (1, 1)
    return {
        "reported": None if own is None else rendering.outcome(own, books.currency),
        "weight": weight / WEIGHT_ONE,
        "factor": numerator / denominator,
        "customers_queries_earned": books.currency.amount(sum(by_weight.values())),
    }


def _earned(books: Books, account: str, period: str) -> Iterator[tuple[str, int, int]]:
    """Receipt, charge and earned units of every query of a customer in a period."""
    logged, segments = usage_index.receipts, usage_index.segments
    query = (
        sa.select(segments.c.name, segments.c.sha256)
        .join_from(logged, segments, logged.c.segment == segments.c.name)
        .where(logged.c.account == account, segments.c.period == period)
        .distinct()
    )
    with books.engine.connect() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        table = books.log.read(row.name, row.sha256, COLUMNS)
        records = divided(table.filter(pc.equal(table["account"], account))).records
        yield from zip(*(records[name].to_pylist() for name in ("id", "charge", "earned")), strict=True)


def _words(books: Books, record: UsageRecord, found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    charge, value, currency = found["charge"], found["value"], books.currency.code
    text = (
        f"The query cost {charge['amount']['amount']} {currency}: {charge['request']['amount']} for the request, "
        f"{record.input_tokens} tokens of question at {charge['input']['per_1k']['amount']} a thousand, "
        f"{record.output_tokens} tokens of answer at {charge['output']['per_1k']['amount']} a thousand, and "
        f"{record.passages} documents at {charge['documents']['each']['amount']} (price book {record.price_version})."
    )
    yield "Charge", text
    text = (
        f"{charge['cost']['amount']} of it paid for computing. Policy {record.policy_version} divides the rest: "
        f"{charge['platform']['amount']} to the platform, {charge['royalty']['amount']} to the documents' pool."
    )
    yield "Royalty", text
    yield "What the documents added", _value_in_words(books, record, value)
    unions = len({use.contributor for use in record.uses[: len(found["players"])]})
    text = (
        f"{len(found['players'])} documents of {unions} contributors are players. A document's share is what it adds "
        "on average when contributors come in random order, and the documents of each among themselves (Owen value)."
    )
    yield "Who added it", text
    text = (
        f"The shares times their splits are laid end to end on a line of {record.royalty} units, the residual last. A "
        f"cell gets the whole numbers less {found['offset']} that fall on its stretch (systematic/1; the offset is "
        f"from the hash of the record). So {found['credited']['amount']} {currency} were credited and "
        f"{found['residual']['amount']} {currency} stay residual."
    )
    yield "Whole units", text
    yield "Outcome", _outcome_in_words(found, currency)


def _value_in_words(books: Books, record: UsageRecord, value: dict[str, Any]) -> str:
    if record.value_function == UNVALUED:
        policy = books.rulebook.policy_of(record.policy_version)
        due = policy.values_by(generated=record.model != EXTRACTIVE)
        return (
            f"The policy's value function, {due}, could not be computed when the answer had been sent. No other takes "
            "its place, so no document earned, and all of the pool is residual."
        )
    return (
        f"By {value['function']} the answer was worth {value['all']:.6f} with all documents and {value['none']:.6f} "
        f"with none: they added {value['all'] - value['none']:.6f} of 1, and the rest of the pool is residual."
    )


def _outcome_in_words(found: dict[str, Any], currency: str) -> str:
    outcome, period = found["outcome"], found["period"]
    if outcome is None:
        return f"The customer reported no outcome in {period}, so nothing was moved."
    said = "nothing of this query" if outcome["reported"] is None else "an outcome of this query"
    return (
        f"The customer reported {said}: its weight is {outcome['weight']:.6f}. Over all queries of this customer in "
        f"{period}, whose documents earned {outcome['customers_queries_earned']['amount']} {currency}, that "
        f"multiplies its credits by {outcome['factor']:.6f} (own-money/1), in whole units for the period together."
    )


def _decimal(exact: Fraction) -> str:
    """A fraction with so many places that it is told from its neighbours."""
    scaled = round(exact * 10**_PLACES)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{abs(scaled) // 10**_PLACES}.{abs(scaled) % 10**_PLACES:0{_PLACES}d}"
