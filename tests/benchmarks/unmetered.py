"""The same server with metering off, as the rival of the metering benchmark: nothing is held, charged or logged."""

from __future__ import annotations

from metering.meter import Hold
from metering.redis.meter import RedisMeter
from serving.cli.entry import main


async def _authorize(_meter, request):
    return Hold(request)


async def _nothing(*_arguments, **_options):
    return None


RedisMeter.authorize = _authorize
RedisMeter.capture = _nothing
RedisMeter.void = _nothing
main()
