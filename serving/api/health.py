"""Liveness, readiness, metrics, and the front page: none needs a key, so none does any work."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.api.dependencies import TheService, json_response
from serving.api.readiness import Readiness
from serving.portal.pages import render
from serving.rules.rulebook import EXTRACTIVE
from serving.telemetry.metrics import Metrics

router = APIRouter()


@router.get("/health/live")
async def live() -> Response:
    """The process runs."""
    return json_response({"status": "alive"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Queries can be answered and paid; false while the server is draining."""
    readiness: Readiness = request.app.state.readiness
    checks = {"serving": not request.app.state.draining, **readiness.checks()}
    good = all(checks.values())
    return json_response({"status": "ready" if good else "not ready", "checks": checks}, 200 if good else 503)


@router.get("/metrics")
async def metrics(request: Request, service: TheService) -> Response:
    """Metrics in Prometheus's text format."""
    found: Metrics = request.app.state.metrics
    found.queries_running.set(service.paid_calls.running)
    found.unvalued.set(service.valuing.unvalued)
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/")
async def home() -> HTMLResponse:
    """What this server is."""
    return HTMLResponse(render("home.html", model=EXTRACTIVE))
