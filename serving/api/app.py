"""The application: the resources together, and what runs beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from fastapi import FastAPI

from serving import __version__
from serving.api import account, admin, chat, documents, errors, health, query, statements
from serving.api.middleware import Edge
from serving.assembly import Books, Service, open_service
from serving.metrics import Metrics

_log = structlog.get_logger()
_ACTIVITY_SECONDS = 5.0


def create_app(books: Books) -> FastAPI:
    """The application over open books; it opens and closes the rest itself."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service(books) as service:
            app.state.service = service
            app.state.draining = False
            draining = asyncio.create_task(_drain(service, metrics))
            _log.info("ready", passages=service.retriever.refresh())
            try:
                yield
            finally:
                app.state.draining = True
                draining.cancel()
                with suppress(asyncio.CancelledError):
                    await draining
                await _last_drain(service)

    app = FastAPI(
        title="Patronage",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.metrics = metrics
    for part in (query, chat, account, documents, statements, admin, health):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(Edge, metrics=metrics, body_bytes_max=books.settings.body_bytes)
    return app


async def _drain(service: Service, metrics: Metrics) -> None:
    """Move captured records into the log and the ledger, for ever; a failure is logged and tried again."""
    drain, pause = service.metering.drain, service.books.settings.drain_seconds
    failing = False
    while True:
        began = time.monotonic()
        try:
            metrics.drained.inc(await drain.drain())
            metrics.drain_lag.set(await drain.lag())
            metrics.passages.set(await asyncio.to_thread(service.retriever.refresh))
            if failing:
                _log.info("drain works again")
            failing = False
        except Exception as error:  # noqa: BLE001 # nothing that is captured may be given up
            metrics.drain_failures.inc()
            if not failing:
                _log.error("drain failed; trying again", error=str(error))  # one line, not a trace
            failing = True
        await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))


async def _last_drain(service: Service) -> None:
    try:
        async with asyncio.timeout(_ACTIVITY_SECONDS):
            await service.metering.drain.drain()
    except Exception as error:  # noqa: BLE001 # the records are safe in Redis; the next start drains them
        _log.warning("records wait in Redis for the next start", error=str(error))
