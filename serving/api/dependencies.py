"""What handlers depend on: the service, and who is calling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Depends, Request, Response

from serving.api.errors import ApiError
from serving.people.identity import Caller, Role
from serving.service import Service

T = TypeVar("T")

WRITERS: Final = 8
"""How many requests write to the database at once, beside uploads and closes, which have pools."""
_CHALLENGE = {"www-authenticate": "Bearer"}


# What does not wait is a coroutine all the same: FastAPI runs plain functions in worker threads, and each hop costs
# more than what is done there.


async def service_of(request: Request) -> Service:
    """The service that the server runs."""
    found: Service = request.app.state.service
    return found


async def caller_of(request: Request, service: Annotated[Service, Depends(service_of)]) -> Caller:
    """Who is calling, by the bearer token.

    Raises:
        ApiError: 401, there is no key, or not one of ours.
    """
    return _known(await asyncio.to_thread(service.books.identities.find, _bearer(request.headers)))


async def payer_of(request: Request, service: Annotated[Service, Depends(service_of)]) -> Caller:
    """As :func:`caller_of`, for paid calls: not looked up every time, because the meter has the last word on a key.

    Raises:
        ApiError: 401, there is no key, or not one of ours.
    """
    return await admitted(service, request.headers)


async def admitted(service: Service, headers: Mapping[str, str]) -> Caller:
    """Whose key a request has, as of a second ago.

    Raises:
        ApiError: 401, there is no key, or not one of ours.
        KeyRevoked: it was one of ours.
    """
    identities, key = service.books.identities, _bearer(headers)
    return _known(identities.remembered(key) or await asyncio.to_thread(identities.find_payer, key))


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "missing_key", "send the API key as `Authorization: Bearer KEY`", headers=_CHALLENGE)
    return key.strip()


def _known(caller: Caller | None) -> Caller:
    if caller is None:
        raise ApiError(401, "invalid_api_key", "the API key is not known", headers=_CHALLENGE)
    return caller


def _checked(caller: Caller, role: Role) -> Caller:
    if caller.role != role:
        raise ApiError(403, "wrong_role", f"this needs a key of the role {role}; yours has {caller.role}")
    return caller


def _of_role(role: Role) -> Callable[[Caller], Awaitable[Caller]]:
    async def checked(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
        return _checked(caller, role)

    return checked


async def payer(caller: Annotated[Caller, Depends(payer_of)]) -> Caller:
    """The customer that pays for the call."""
    return _checked(caller, "customer")


TheService = Annotated[Service, Depends(service_of)]
customer = _of_role("customer")
contributor = _of_role("contributor")
operator = _of_role("operator")
Customer = Annotated[Caller, Depends(customer)]
Payer = Annotated[Caller, Depends(payer)]
Operator = Annotated[Caller, Depends(operator)]
Contributor = Annotated[Caller, Depends(contributor)]


async def one_of_few(request: Request) -> AsyncIterator[None]:
    """Few requests write to the database at once: of those that wait for its lock, only they have threads."""
    if request.method == "GET":
        yield
        return
    writers: asyncio.Semaphore = request.app.state.writers
    async with writers:
        yield


async def write(request: Request, work: Callable[[], T]) -> T:
    """Write to the database as one of few, in a route that does it now and then."""
    writers: asyncio.Semaphore = request.app.state.writers
    async with writers:
        return await asyncio.to_thread(work)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of plain values, as compact as it gets."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")
