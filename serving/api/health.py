"""Liveness, readiness, metrics, and the front page: none needs a key, so none does any work."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.api.dependencies import json_response
from serving.api.readiness import Readiness
from serving.portal.pages import render
from serving.rules.rulebook import EXTRACTIVE
from serving.service import Service
from serving.telemetry.metrics import Metrics

router = APIRouter()

LIVE: Final = "/health/live"
READY: Final = "/health/ready"
METRICS: Final = "/metrics"
PATHS: Final = (LIVE, READY, METRICS)
"""What the edge answers itself, before the application: whoever asks without a key costs microseconds."""
_METRICS_SECONDS: Final = 0.25
"""How long the text of the metrics is given again. It takes milliseconds to write."""


class Health:
    """What a load balancer and Prometheus ask for."""

    def __init__(self, service: Service, metrics: Metrics, readiness: Readiness) -> None:
        """The readiness is kept true by its owner."""
        self._service = service
        self._metrics = metrics
        self._readiness = readiness
        self._text: asyncio.Future[bytes] | None = None
        self._written = -float("inf")

    async def answer(self, path: str) -> Response:
        """The response to one of :data:`PATHS`."""
        if path == LIVE:
            return json_response({"status": "alive"})
        if path == READY:
            checks = self._readiness.checks()
            good = all(checks.values())
            return json_response({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)
        return Response(await self._exposition(), media_type=CONTENT_TYPE_LATEST)

    async def _exposition(self) -> bytes:
        """The text of a moment ago, which one thread writes for all who ask."""
        now = time.monotonic()
        if self._text is None or (self._text.done() and now - self._written > _METRICS_SECONDS):
            self._written = now
            self._metrics.queries_running.set(self._service.paid_calls.running)
            self._metrics.holds_abandoned.set(self._service.metering.settling.waiting)
            self._metrics.unvalued.set(self._service.valuing.unvalued)
            self._text = self._readiness.run_beside(generate_latest, self._metrics.registry)
        return await asyncio.shield(self._text)


@router.get("/")
async def home() -> HTMLResponse:
    """What this server is."""
    return HTMLResponse(await asyncio.to_thread(render, "home.html", model=EXTRACTIVE))
