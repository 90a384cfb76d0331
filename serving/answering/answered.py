"""The answered query, as every interface shows it."""

from __future__ import annotations

import msgspec

from metering.meter import Quota
from serving.generators.generator import Citation


class Source(msgspec.Struct, frozen=True):
    """A retrieved document, as the customer sees it."""

    document_id: str
    version: str
    title: str
    contributor: str
    url: str | None
    score: float
    share: float
    cited: bool


class Answered(msgspec.Struct, frozen=True):
    """An answered query, with everything that any of the interfaces shows of it."""

    id: str
    created_ms: int
    model: str
    answer: str
    sources: tuple[Source, ...]
    citations: tuple[Citation, ...]
    model_residual: float
    charge: int
    input_tokens: int
    output_tokens: int
    price_version: int
    policy_version: int
    finish: str = "stop"
    """Why the answer ends: ``stop``, ``length``, or what else the model says."""
    interrupted: str = ""
    """The code of the error that broke the answer off; empty where it is whole."""
    free: int = 0
    """The part of the charge that the operator pays."""
    quota: Quota | None = None
    """What the key's limits leave now: of this response, not of the stored one."""
    replayed: bool = False
    """Whether it was answered before, and is given again: of this response, too."""
