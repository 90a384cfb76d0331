"""Bodies: JSON is read in the event loop, so it may not have more values than are read in a moment.

Texts may be long, and are cheap to read: what takes long is to make a value of every comma. A body of 4 MB that was
nothing but numbers stopped the server for 21 s (docs/adr/0033).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.exceptions import HTTPException

T = TypeVar("T")

VALUES_MAX: Final = 16_384
"""Values of lists and objects; a list or object in another counts for one more. Many times what any request needs."""

_SHORT_BYTES: Final = 65_536
"""What is read in a millisecond at most."""
_OTHERS: Final = 3
"""How much longer than to read long bodies, one after the other, the event loop is left to everything else."""

Items = Annotated[list[T], Field(fail_fast=True)]
"""A list of which the first wrong item is told: to describe one takes a hundred times as long as to read it."""


def is_above(text: str, values_max: int = VALUES_MAX) -> bool:
    """Whether some JSON has more values than that; it is not read for it."""
    if len(text) <= values_max:
        return False
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * values_max:  # a value has two, and its name
        return True
    outside = "".join(bare.split('"')[::2])
    return sum(map(outside.count, ",[{")) > values_max


class _Bounded(Request):
    """A request whose JSON has a bound."""

    async def json(self) -> Any:
        """The body as JSON.

        Raises:
            HTTPException: 413, it has too many values. FastAPI hides every other error of reading a body.
            ValueError: it is not JSON.
        """
        body = await self.body()
        if len(body) <= _SHORT_BYTES:
            return _read(body)
        turns: asyncio.Lock = self.app.state.long_bodies
        async with turns:
            began = time.perf_counter()
            try:
                return _read(body)
            finally:
                await asyncio.sleep(_OTHERS * (time.perf_counter() - began))


def _read(body: bytes) -> Any:
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    if is_above(text):
        raise HTTPException(413, f"the request body has more than {VALUES_MAX} JSON values")
    return json.loads(text)


class BoundedRoute(APIRoute):
    """The class of every route whose body FastAPI reads."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, on a request with a bound."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_Bounded(request.scope, request.receive))

        return bounded
