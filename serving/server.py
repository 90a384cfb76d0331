"""The server: the application on a socket, the drain beside it, and an end in good order."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import structlog
import uvicorn

from metering.meter import MeterUnavailable
from serving.api.app import create_app
from serving.api.connections import Door, networks
from serving.api.dependencies import WRITERS
from serving.api.errors import failure_of
from serving.api.readiness import Readiness
from serving.assembly import AssemblyError, open_service
from serving.books import Books
from serving.jobs.runner import Runner
from serving.notify.balance_watch import BalanceWatch
from serving.notify.dispatcher import Dispatcher
from serving.service import Service
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()
_LAST_DRAIN_SECONDS: Final = 5.0
_DESTROY_SECONDS: Final = 3_600.0
_FILES: Final = 65_536
_THREADS: Final = WRITERS + 16
"""asyncio's own, for what is short. At most the writers of them wait for a lock of the database."""
_KEEP_ALIVE_S: Final = 75
"""Longer than clients (5 s in httpx) and load balancers (60 s is common) keep an idle connection: if it is the server
that closes it, a query may be on its way already."""


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: it would end the process before what is open is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(books: Books, listener: socket.socket) -> None:
    """Serve on a bound socket until the process is told to stop.

    First readiness turns false while everything is still answered, then no new connections are taken and what
    runs is finished, then what was captured is drained.
    """
    _make_room()
    async with open_service(books, serving=True) as service:
        _tell_of_redis(service)
        metrics = Metrics()
        app = create_app(service, metrics)
        settings = books.settings
        config = uvicorn.Config(
            app,
            http=_door(settings).protocol(),  # type: ignore[arg-type] # it is called, and nothing else
            ws="none",
            proxy_headers=False,  # no decision is made by the address that a proxy names
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.finish_seconds,
        )
        server = _Server(config)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if app.state.readiness.draining:
                server.force_exit = True
            app.state.readiness.draining = True
            _log.info("stopping")
            loop.call_later(settings.shutdown_grace_seconds, setattr, server, "should_exit", True)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        over = asyncio.Event()
        await app.state.readiness.look()
        looking = asyncio.create_task(app.state.readiness.run(over))
        draining = asyncio.create_task(_drain(service, metrics, over))
        settling = asyncio.create_task(service.metering.settling.run(over))
        watching = asyncio.create_task(BalanceWatch(books, service.metering, metrics).run(over))
        dispatching = asyncio.create_task(Dispatcher(books, metrics).run(over))
        sampling = asyncio.create_task(_keep_sampled(books, over))
        working = asyncio.create_task(Runner(service, metrics, failure_of).run(over))
        leaving = asyncio.create_task(_leave(service, app.state.readiness, server))
        unpriced = (service.answering.models | {service.embeddings.model}) - set(books.rulebook.prices.models)
        if unpriced:
            _log.warning("models without a price are not sold", models=sorted(unpriced))
        _log.info("ready", passages=await asyncio.to_thread(service.retriever.refresh))
        try:
            await server.serve(sockets=[listener])
        finally:
            await _cut_off(server.server_state.tasks)
            await service.paid_calls.finish()
            leaving.cancel()
            over.set()
            _, late = await asyncio.wait(
                {looking, draining, settling, watching, dispatching, sampling, working}, timeout=_LAST_DRAIN_SECONDS
            )
            for task in late:
                task.cancel()
            await _last_drain(service)
        service.metering.lease.raise_lost()
    _log.info("stopped")


def _tell_of_redis(service: Service) -> None:
    for redis in service.metering.servers:
        _log.info("redis", found=redis.summary())
        for warning in redis.warnings():
            _log.warning("redis", address=redis.address, reason=warning)


async def _leave(service: Service, readiness: Readiness, server: uvicorn.Server) -> None:
    """End the server when another has its books: at once not ready, and no new connections."""
    await service.metering.lease.over.wait()
    readiness.draining = True
    server.should_exit = True


def _door(settings: Settings) -> Door:
    return Door(
        address_max=settings.connections_per_address,
        head_seconds=settings.head_seconds,
        body_seconds=settings.body_seconds,
        body_bytes_per_second=settings.body_bytes_per_second,
        trusted=_trusted(settings.trusted_proxies),
    )


def _trusted(proxies: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return networks(proxies)
    except ValueError as error:
        raise AssemblyError(f"PATRONAGE_TRUSTED_PROXIES cannot be used: {error}") from error


def _make_room() -> None:
    """As many threads as may be busy, and as many open files as the system lets us have: a connection is one."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="short"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _FILES)), hard))


async def _cut_off(requests: Iterable[asyncio.Task[None]]) -> None:
    """End the requests that did not finish in time: what they delivered is then paid, and the rest void."""
    late = set(requests)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)


async def _drain(service: Service, metrics: Metrics, over: asyncio.Event) -> None:
    """Move captured records into the log and the ledger until it is over; a failure is logged and tried again."""
    drain, pause = service.metering.drain, service.books.settings.drain_seconds
    failing = False
    while not over.is_set():
        began = time.monotonic()
        try:
            # First what can be drained: in a cluster, the masters that are there do not wait for one that is not.
            metrics.drained.inc(await drain.drain())
            await service.metering.meter.check()
            if failing:
                # Whatever Redis may have lost meanwhile, its accounts are never behind the ledger.
                await service.metering.catch_up()
            lag = await drain.lag()
            metrics.drain_lag.set(lag.records)
            metrics.drain_lag_seconds.set(lag.seconds)
            metrics.passages.set(await asyncio.to_thread(service.retriever.refresh))
            metrics.meter_up.set(1)
            if failing:
                _log.info("the meter and the drain work again")
            failing = False
        except Exception as error:  # noqa: BLE001 # nothing that is captured may be given up
            metrics.drain_failures.inc()
            if isinstance(error, MeterUnavailable):
                metrics.meter_up.set(0)
            if not failing:
                _log.error("meter or drain failed; trying again", reason=f"{type(error).__name__}: {error}")
            failing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), max(0.0, pause - (time.monotonic() - began)))


async def _keep_sampled(books: Books, over: asyncio.Event) -> None:
    """Store sampled text that waits on disk, and destroy every hour what was kept for long enough.

    A failure is tried again.
    """
    destroyed_at = time.monotonic() - _DESTROY_SECONDS
    while not over.is_set():
        try:
            await asyncio.to_thread(books.samples.store)
        except Exception as error:  # noqa: BLE001 # it is on disk, and the next second is soon enough
            _log.error("sampled text waits on disk", reason=f"{type(error).__name__}: {error}")
        if time.monotonic() >= destroyed_at + _DESTROY_SECONDS:
            destroyed_at = time.monotonic()
            try:
                if destroyed := await asyncio.to_thread(books.samples.destroy):
                    _log.info("sampled text destroyed", queries=destroyed)
            except Exception as error:  # noqa: BLE001 # the next hour is soon enough, and the audit knows
                _log.error("sampled text could not be destroyed", reason=f"{type(error).__name__}: {error}")
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), books.settings.drain_seconds)


async def _last_drain(service: Service) -> None:
    try:
        async with asyncio.timeout(_LAST_DRAIN_SECONDS):
            await service.metering.drain.drain()
            await service.metering.drain.release()
    except Exception as error:  # noqa: BLE001 # the records are safe in Redis; the next start drains them
        _log.warning("records wait in Redis for the next start", reason=f"{type(error).__name__}: {error}")
