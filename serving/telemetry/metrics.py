"""Metrics, for Prometheus. One registry a server, so that tests can run several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "patronage_http_requests", "HTTP requests.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "patronage_http_request_seconds",
            "Time to the end of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queries_running = Gauge("patronage_queries_running", "Paid queries in progress.", registry=self.registry)
        self.unvalued = Gauge(
            "patronage_unvalued_answers",
            "Answers since the start that were sent and could not be valued, so that no document earned.",
            registry=self.registry,
        )
        self.passages = Gauge("patronage_passages", "Passages that can be retrieved.", registry=self.registry)
        self.meter_up = Gauge(
            "patronage_meter_up", "1 while payments can be taken, 0 while nothing is served.", registry=self.registry
        )
        self.drain_lag = Gauge(
            "patronage_drain_lag_records",
            "Captured records that are not in the ledger yet.",
            registry=self.registry,
        )
        self.drain_lag_seconds = Gauge(
            "patronage_drain_lag_seconds",
            "How long the oldest captured record has waited for the ledger.",
            registry=self.registry,
        )
        self.spool_waiting = Gauge(
            "patronage_spool_captures", "Charges that wait on disk until Redis is back.", registry=self.registry
        )
        self.spool_unsettled = Gauge(
            "patronage_spool_unsettled",
            "Charges on disk that are damaged or that the meter refused; the audit names them.",
            registry=self.registry,
        )
        self.holds_abandoned = Gauge(
            "patronage_holds_abandoned",
            "Holds of requests that Redis did not answer, which wait to be given up.",
            registry=self.registry,
        )
        self.drained = Counter("patronage_drained_records", "Records moved into the ledger.", registry=self.registry)
        self.accounts_low = Gauge(
            "patronage_accounts_low", "Accounts that are below their low-balance threshold.", registry=self.registry
        )
        self.webhooks = Counter(
            "patronage_webhook_deliveries",
            "Calls of webhooks that were delivered, or failed and are repeated, and events that were abandoned.",
            ("result",),
            registry=self.registry,
        )
        self.webhooks_pending = Gauge(
            "patronage_webhooks_pending", "Events that their webhook has not taken yet.", registry=self.registry
        )
        self.jobs = Gauge("patronage_jobs_unfinished", "Jobs that wait or are in work.", registry=self.registry)
        self.drain_failures = Counter(
            "patronage_drain_failures", "Drains that failed and will be repeated.", registry=self.registry
        )
