"""Rendering: answers and documents as JSON, the same from HTTP and from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from attribution.runs.outcomes import Outcome
from metering import periods
from metering.money import Currency
from metering.records import PPM
from retrieval.catalogue import Catalogue, StoredDocument
from serving.answering.answered import Answered


def answer(answered: Answered, currency: Currency) -> dict[str, Any]:
    """An answered query."""
    plain = msgspec.to_builtins(answered)
    return {
        "id": answered.id,
        "answer": answered.answer,
        "sources": plain["sources"],
        "citations": plain["citations"],
        "model_residual": answered.model_residual,
        "receipt": receipt(answered, currency),
    }


def receipt(answered: Answered, currency: Currency) -> dict[str, Any]:
    """The receipt inside a paid response."""
    return {
        "id": answered.id,
        "charge": currency.amount(answered.charge),
        "free": currency.amount(answered.free),
        "created": periods.timestamp(answered.created_ms),
        "model": answered.model,
        "input_tokens": answered.input_tokens,
        "output_tokens": answered.output_tokens,
        "documents": len(answered.sources),
        "price_version": answered.price_version,
        "policy_version": answered.policy_version,
    }


def outcome(reported: Outcome, currency: Currency) -> dict[str, Any]:
    """What a customer said of an answer."""
    return {
        "value": None if reported.value is None else currency.amount(reported.value),
        "rating": None if reported.rating_ppm is None else reported.rating_ppm / PPM,
    }


def documents(stored: Sequence[StoredDocument], catalogue: Catalogue, currency: Currency) -> list[dict[str, Any]]:
    """Documents as their contributor and the operator see them."""
    copies = catalogue.copies([each.number for each in stored])
    return [_document(each, copies.get(each.number, {}), currency) for each in stored]


def _document(stored: StoredDocument, copies: dict[str, int], currency: Currency) -> dict[str, Any]:
    purposes = stored.terms.purposes
    return {
        "id": stored.id,
        "title": stored.title,
        "version": stored.version,
        "contributor": stored.contributor,
        "url": stored.url,
        "splits": [{"contributor": each.contributor, "role": each.role, "share": each.ppm} for each in stored.splits],
        "terms": {
            "purposes": None if purposes is None else list(purposes),
            "floor": currency.amount(stored.terms.floor),
        },
        "copies": [{"original": name, "passages": count} for name, count in copies.items()],
        "state": "active" if stored.withdrawn_ms is None else "withdrawn",
        "added": periods.timestamp(stored.added_ms),
        "withdrawn": None if stored.withdrawn_ms is None else periods.timestamp(stored.withdrawn_ms),
    }
