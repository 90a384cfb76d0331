"""The application: the resources together."""

from __future__ import annotations

import asyncio

from fastapi import Depends, FastAPI

from serving import __version__
from serving.api import (
    account,
    chat,
    contributors,
    customers,
    documents,
    embeddings,
    errors,
    health,
    jobs,
    keys,
    ledger,
    models,
    outcomes,
    payouts,
    periods,
    policy,
    prices,
    query,
    receipts,
    responses,
    statements,
    transparency,
    usage,
)
from serving.api.dependencies import WRITERS, one_of_few
from serving.api.health import Health
from serving.api.middleware import Edge
from serving.api.readiness import Readiness
from serving.service import Service
from serving.telemetry.metrics import Metrics


def create_app(service: Service, metrics: Metrics) -> FastAPI:
    """The HTTP application over a running service; ``state.readiness`` is for the server to keep."""
    app = FastAPI(
        title="Patronage",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,  # `curl -d` says that its JSON is a form
    )
    app.state.service = service
    app.state.readiness = Readiness(service, metrics)
    app.state.writers = asyncio.Semaphore(WRITERS)
    app.state.long_bodies = asyncio.Lock()
    pooled = (query, chat, responses, embeddings, models, usage, receipts, documents, statements, periods, jobs)
    writing = (account, outcomes, customers, contributors, keys, prices, policy, ledger, payouts)
    for part in (*pooled, transparency, health):
        app.include_router(part.router)
    for part in writing:
        app.include_router(part.router, dependencies=[Depends(one_of_few)])
    errors.install(app)
    app.add_middleware(Edge, metrics=metrics, service=service, health=Health(service, metrics, app.state.readiness))
    return app
