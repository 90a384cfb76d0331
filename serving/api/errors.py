"""Errors: one JSON body that serves both conventions, RFC 9457 and the ``error`` object of the openai client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from attribution.policy import PolicyError
from metering.meter import (
    HoldExpired,
    IdempotencyMismatch,
    IdempotencyRunning,
    InsufficientFunds,
    KeyRevoked,
    MeterError,
    RateLimited,
    SpendingCapReached,
    TooManyTokens,
)
from metering.money import MoneyError
from metering.periods import PeriodError
from metering.pricing import PriceError, UnknownModel
from retrieval.documents import DocumentConflict, DocumentError
from retrieval.readers import MalformedError
from serving.answering.paid_calls import AlreadyCharged, ReplayNotKept
from serving.answering.pools import Overloaded
from serving.answering.sampled_texts import SampleNotKept
from serving.api.leaving import ClientGone
from serving.api.rate_limit_headers import quota_headers
from serving.closing.closing import ClosingError
from serving.closing.transparency_log import LogSizeError
from serving.generators.generator import AnswerTimeout, GeneratorBusy, GeneratorError
from serving.generators.query import InputTooLong, MaxPriceExceeded, QueryError, QuestionTooLong
from serving.jobs.runner import Failure
from serving.money.booking import BookingError, Conflict, ReferenceUsed, Unknown
from serving.notify.webhooks import WebhookError
from serving.people.identity import IdentityError, InvalidName, UnknownKey
from serving.people.keys import UnknownOwner
from serving.rules.limits import LimitError
from serving.store.jobs import TooMuchWaits
from serving.valuing.functions import NotComputable, NotValued

_CLIENT_CLOSED = 499
_SERVER_ERROR = 500
_KINDS = {
    401: "authentication_error",
    402: "insufficient_funds",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_HTTP_CODES = {
    400: "malformed_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "rate_limited",
}
_RETRY_SECONDS = 1
TRANSLATED = (
    AlreadyCharged, BookingError, ClosingError, DocumentError, GeneratorError, IdentityError, LimitError, LogSizeError,
    MeterError, MoneyError, NotValued, Overloaded, PeriodError, PolicyError, PriceError, QueryError, ReplayNotKept,
    SampleNotKept, TooMuchWaits, WebhookError, sa.exc.DataError, sa.exc.OperationalError,
)  # fmt: skip
"""What :func:`translate` knows, beside :class:`OSError`."""


class ApiError(Exception):
    """An error as the client sees it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``code`` is for programs, ``detail`` for people; ``param`` names the field that is wrong."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.headers = dict(headers or {})


def failure_of(error: Exception) -> Failure:
    """What the caller of a job is told of an error."""
    if not isinstance(error, (ApiError, OSError, *TRANSLATED)):
        found = ApiError(_SERVER_ERROR, "internal", "something went wrong, and the operator's log has it")
    else:
        found = error if isinstance(error, ApiError) else translate(error)
    told = {name: value for name, value in body_of(found, "")["error"].items() if name != "type"}
    return Failure(found.status >= _SERVER_ERROR, told)


def body_of(error: ApiError, instance: str) -> dict[str, Any]:
    """The JSON body of an error."""
    return {
        "type": f"urn:patronage:error:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "error": {
            "message": error.detail,
            "type": _KINDS.get(
                error.status, "server_error" if error.status >= _SERVER_ERROR else "invalid_request_error"
            ),
            "param": error.param,
            "code": error.code,
        },
    }


def respond(error: ApiError, instance: str) -> JSONResponse:
    """The response of an error."""
    return JSONResponse(body_of(error, instance), error.status, error.headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Translate every error of the application."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)  # noqa: S101 # registered for this type
        return respond(error, request.url.path)

    async def domain_error(request: Request, error: Exception) -> JSONResponse:
        return respond(translate(error), request.url.path)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 # registered for this type
        code = _HTTP_CODES.get(error.status_code, "http_error")
        found = ApiError(error.status_code, code, str(error.detail), headers=error.headers)
        return respond(found, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 # registered for this type
        return respond(_invalid(error), request.url.path)

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=_CLIENT_CLOSED)  # nobody reads it; the metrics count it

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(ClientGone, left)
    app.add_exception_handler(ClientDisconnect, left)  # in the middle of its body, or cut off there
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in TRANSLATED:
        app.add_exception_handler(kind, domain_error)


def translate(error: Exception) -> ApiError:
    """The client's view of an error of the application."""
    soon = {"retry-after": str(_RETRY_SECONDS)}
    match error:
        case MeterError():
            return _refused(error, soon)
        case MaxPriceExceeded():
            return ApiError(422, "max_price_exceeded", str(error), param="max_price")
        case InputTooLong():
            return ApiError(413, "input_too_long", str(error), param=error.param)
        case QueryError() if not isinstance(error, QuestionTooLong):
            return ApiError(422, "invalid", str(error), param=error.param)
        case AlreadyCharged():
            return ApiError(409, "idempotency_expired", str(error), headers={"x-should-retry": "false"})
        case ReplayNotKept():
            return ApiError(422, "replay_not_kept", str(error), headers={"x-should-retry": "false"})
        case Overloaded() | TooMuchWaits():
            return ApiError(503, "overloaded", f"{error}; retry", headers=soon)
        case GeneratorBusy():
            return ApiError(503, "model_busy", f"{error}; retry", headers=soon)
        case AnswerTimeout():
            return ApiError(504, "answer_timeout", str(error), headers={"x-should-retry": "false"})
        case GeneratorError():
            return ApiError(502, "model_failed", str(error))
        case QuestionTooLong():
            return ApiError(413, "question_too_long", str(error), param=error.param)
        case UnknownModel():
            return ApiError(404, "model_not_found", str(error), param="model")
        case Unknown() | UnknownKey() | UnknownOwner():
            return ApiError(404, "not_found", str(error))
        case Conflict():
            return ApiError(
                409, "conflict", str(error), param="reference" if isinstance(error, ReferenceUsed) else None
            )
        case IdentityError() if not isinstance(error, InvalidName):
            return ApiError(409, "conflict", str(error), param="id")
        case NotValued():
            return ApiError(503, "not_valued", f"{error}; nothing was charged", headers=soon)
        case NotComputable():
            return ApiError(409, "not_computable", str(error))
        case ClosingError():
            return ApiError(409, "period", str(error))
        case DocumentConflict():
            return ApiError(409, "document_conflict", str(error), param="id")
        case MalformedError():
            return ApiError(400, "malformed_json", str(error))
        case sa.exc.OperationalError():
            return ApiError(503, "storage_unavailable", "the database cannot be written now; retry", headers=soon)
        case OSError():
            return ApiError(503, "storage", f"it could not be stored: {error.strerror}; ask again", headers=soon)
        case sa.exc.DataError():
            return ApiError(422, "invalid", "a value has characters that cannot be stored")
        case _:
            return ApiError(422, "invalid", str(error))


def _refused(error: MeterError, soon: dict[str, str]) -> ApiError:
    """Why the meter does not let a call be paid."""
    match error:
        case InsufficientFunds():
            return ApiError(
                402,
                "insufficient_funds",
                "the available balance does not cover what this query may cost; add credit",
            )
        case SpendingCapReached():
            return ApiError(402, "spending_cap", str(error), headers={"x-should-retry": "false"})
        case RateLimited():
            wait = max(1, math.ceil(error.retry_after_s))
            headers = {"retry-after": str(wait), **quota_headers(error.quota)}
            return ApiError(429, "rate_limited", f"{error}; retry in {wait} s", headers=headers)
        case TooManyTokens():
            return ApiError(413, "too_many_tokens", str(error))
        case KeyRevoked():
            return ApiError(401, "key_revoked", str(error))
        case IdempotencyMismatch():
            return ApiError(422, "idempotency_mismatch", str(error), param="Idempotency-Key")
        case IdempotencyRunning():
            return ApiError(409, "idempotency_running", str(error), headers=soon)
        case HoldExpired():
            return ApiError(503, "hold_expired", f"{error}; nothing was charged", headers=soon)
        case _:
            return ApiError(
                503,
                "metering_unavailable",
                "payments cannot be taken now, so nothing is served; retry",
                headers=soon,
            )


def _invalid(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    if first["type"] == "json_invalid":
        return ApiError(400, "malformed_json", "the request body is not valid JSON")
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return ApiError(422, "invalid", message, param=where or None)
