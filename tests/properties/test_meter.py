"""The meter as a state machine: authorize, capture, void, expiry, funding and retries in any order, against a model.

The meter is the real one on a real Redis. Holds with a time to live of zero expire at the next step that looks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from metering import periods
from metering.meter import (
    Funding,
    Hold,
    HoldExpired,
    KeySpending,
    Limits,
    MeterUnavailable,
    Replay,
    Request,
)
from metering.records import UsageRecord
from metering.redis import keys
from metering.redis.connection import connect
from metering.redis.meter import RedisMeter
from tests.properties.meter_model import Model
from tests.records import MOMENT_MS, a_record

SHARDS = 4
DEPLOYMENT = "state-machine"
DAY_MS = 24 * 3600 * 1000
FIRST_MS = MOMENT_MS + 16 * DAY_MS
"""The last day of a month."""
KEYS = ("red", "blue")
STILL_SECONDS = 5.0
"""In the model time stands still: an example that a busy machine held up, so that a rate limit might let something
through again (the earliest does after 7.5 s), is not judged."""
SCALES = (1, 3_000_000_000_001)
"""Sums of money are drawn small, so that they often meet the limits exactly, and multiplied: up to what Lua counts."""
units = st.integers(1, 10)


def or_none(values: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.just(0) | values


RATES = {
    "requests_per_minute": or_none(st.integers(1, 5)),
    "tokens_per_minute": or_none(st.sampled_from(range(100, 900, 100))),
    "concurrent_requests": or_none(st.integers(1, 5)),
}
CAPS = {"day_cap": or_none(st.integers(1, 15)), "month_cap": or_none(st.integers(1, 20))}
NO_LIMITS = dict.fromkeys((*RATES, *CAPS), st.just(0))
limits = st.one_of(st.builds(Limits, **NO_LIMITS | chosen) for chosen in (CAPS, RATES, CAPS | RATES))
"""A rate stops what would come to a cap, so there are keys with each alone."""


class MeterMachine(RuleBasedStateMachine):
    """Compares every answer and every balance with the model."""

    numbers: Iterator[int] = itertools.count()
    holds: Bundle[Hold] = Bundle("holds")
    captured: Bundle[tuple[Hold, UsageRecord]] = Bundle("captured")

    @classmethod
    def connect(cls, url: str) -> None:
        cls.loop = asyncio.new_event_loop()
        cls.client = connect(url)
        options = {
            "deployment": DEPLOYMENT,
            "shards": SHARDS,
            "replay_ttl_ms": 60_000,
            "retry_ttl_ms": 60_000,
            "process": "p",
        }
        cls.meter = RedisMeter(cls.client, hold_ttl_ms=60_000, **options)
        cls.fleeting = RedisMeter(cls.client, hold_ttl_ms=0, **options)
        cls.dying = RedisMeter(cls.client, hold_ttl_ms=60_000, **options | {"process": "dying"})
        cls.run(cls.meter.claim(fresh=True))

    @classmethod
    def disconnect(cls) -> None:
        cls.run(cls.client.aclose())
        cls.loop.close()

    @classmethod
    def run(cls, coroutine):
        return cls.loop.run_until_complete(coroutine)

    @initialize(
        scale=st.sampled_from(SCALES),
        funded=st.integers(0, 30),
        grant=st.sampled_from([0, 0, 5, 15]),
        red=limits,
        blue=limits,
    )
    def open(self, scale, funded, grant, red, blue):
        self.account, self.began = f"account-{next(self.numbers)}", time.monotonic()
        self.scale, self.model = scale, Model(funded * scale)
        self.version, self.grant, self.now_ms = 1, grant * scale, FIRST_MS
        self.limits = {
            key: replace(own, day_cap=own.day_cap * scale, month_cap=own.month_cap * scale)
            for key, own in (("red", red), ("blue", blue))
        }
        self.late_days: set[tuple[str, str]] = set()
        self.run(self.meter.fund(Funding(self.account, 1, self.model.funded, 0)))

    @rule(
        target=holds,
        ceiling=units,
        tokens=st.integers(0, 4),
        key=st.sampled_from(KEYS),
        by=st.sampled_from(["meter", "fleeting", "dying"]),
        idempotency=st.sampled_from(["", "", "k1", "k2"]),
        body=st.sampled_from("ab"),
        retries=st.sampled_from([None, None, 0, 1]),
    )
    def authorize(self, ceiling, tokens, key, by, idempotency, body, retries):
        """With ``retries`` the Idempotency-Key is made of what a client's library sends, first or again."""
        assume(time.monotonic() - self.began < STILL_SECONDS)
        if retries is not None:
            idempotency = f"made-of-{body}"
        request = Request(
            f"hold-{next(self.numbers)}",
            self.account,
            key,
            ceiling * self.scale,
            tokens=tokens * 100,
            limits=self.limits[key],
            free_per_month=self.grant,
            at_ms=self.now_ms,
            idempotency_key=idempotency,
            fingerprint=body,
            retries=retries,
        )
        meter = getattr(self, by)
        expected = self.model.authorize(request, expiring=by == "fleeting", process=by)
        if not isinstance(expected, str):
            with pytest.raises(expected):
                self.run(meter.authorize(request))
            return multiple()
        found = self.run(meter.authorize(request))
        self.check_quota(key, found.quota)
        if expected == "replay":
            first = self.model.idempotency[idempotency][2]
            assert found == Replay(b"answer to " + first.encode(), first)
            return multiple()
        assert found == Hold(request, self.model.holds[request.hold].free)
        return found

    @rule(
        key=st.sampled_from(KEYS),
        idempotency=st.sampled_from(["k1", "k2"]),
        body=st.sampled_from("ab"),
        retries=st.sampled_from([None, 0, 1]),
    )
    def look(self, key, idempotency, body, retries):
        """What was answered before is found without being asked what it would cost, and nothing is held."""
        assume(time.monotonic() - self.began < STILL_SECONDS)
        if retries is not None:
            idempotency = f"made-of-{body}"
        request = Request(
            f"hold-{next(self.numbers)}", self.account, key, 0, limits=self.limits[key], at_ms=self.now_ms,
            idempotency_key=idempotency, fingerprint=body, retries=retries,
        )  # fmt: skip
        expected = self.model.find_replay(request)
        if not isinstance(expected, str):
            with pytest.raises(expected):
                self.run(self.meter.find_replay(request))
            return
        found = self.run(self.meter.find_replay(request))
        if expected == "new":
            assert found is None
            return
        first = self.model.idempotency[idempotency][2]
        assert found == Replay(b"answer to " + first.encode(), first)
        self.check_quota(key, found.quota)

    def check_quota(self, key, quota):
        own, admitted = self.limits[key], self.model.admitted.get(key, [])
        if own.requests_per_minute:
            assert quota.requests_left == own.requests_per_minute - len(admitted)
        if own.tokens_per_minute:
            assert quota.tokens_left // 100 * 100 == own.tokens_per_minute - sum(admitted)
        if own.concurrent_requests:
            assert quota.concurrent_left == own.concurrent_requests - len(self.model.of_key(key))

    @rule(target=captured, hold=consumes(holds), part=st.floats(0, 1), ago=st.integers(0, 2), kept=st.booleans())
    def capture(self, hold, part, ago, kept):
        """The record may be days old: its capture waited for Redis, or for the server to come back."""
        request = hold.request
        charge = int(request.ceiling * part)
        finished_ms = max(request.at_ms, self.now_ms - ago * DAY_MS)
        free = min(charge, hold.free)
        record = a_record(
            id=request.hold, account=self.account, key=request.key, charge=charge, free=free, finished_ms=finished_ms
        )
        response = b"answer to " + request.hold.encode() if kept else b""
        day = periods.day_of(finished_ms)
        expired = request.hold not in self.model.holds
        if not self.model.capture(request, day, charge, free, kept=kept):
            with pytest.raises(HoldExpired):
                self.run(self.meter.capture(hold, record, response))
            return multiple()
        if expired:
            self.late_days.add((request.key, day))
        self.run(self.meter.capture(hold, record, response))
        return hold, record

    @rule(target=captured, ceiling=units, key=st.sampled_from(KEYS), part=st.sampled_from([0.5, 1]))
    def pay(self, ceiling, key, part):
        """Most queries are paid at once: so what is spent comes to the limits in few steps."""
        hold = self.authorize(ceiling, 0, key, by="meter", idempotency="", body="a", retries=None)
        return self.capture(hold, part, 0, kept=False) if isinstance(hold, Hold) else multiple()

    @rule(hold=holds, more=st.sampled_from([(1, 0), (0, 1)]))
    def capture_too_much(self, hold, more):
        """Neither the charge nor its free part may be above what is held."""
        if hold.request.hold in self.model.holds:
            charge, free = hold.request.ceiling + more[0], hold.free + more[1]
            record = a_record(id=hold.request.hold, account=self.account, charge=charge, free=free)
            with pytest.raises(ValueError, match="above the ceiling"):
                self.run(self.meter.capture(hold, record))

    @rule(done=captured)
    def capture_again(self, done):
        """A capture that is sent again, after a broken connection, changes nothing."""
        hold, record = done
        self.run(self.meter.capture(hold, record, b"something else"))

    @rule(hold=holds)
    def authorize_again(self, hold):
        """An authorize that is sent again holds nothing twice."""
        if hold.request.hold in self.model.holds:
            self.model.sweep()
            if hold.request.hold in self.model.holds:
                assert self.run(self.meter.authorize(hold.request)) == hold

    @rule()
    def die(self):
        """A process is dead: what it held is released. What it captured stays."""
        for _ in range(2):
            self.run(self.meter.release(["dying"]))
        self.model.die("dying")

    @rule(hold=consumes(holds))
    def abandon(self, hold):
        """No reply came, so whoever asked gives it up, before or after Redis came to it: it holds nothing any more."""
        for _ in range(2):
            self.run(self.meter.abandon(hold.request))
        self.model.void(hold.request)
        with pytest.raises(MeterUnavailable):
            self.run(self.meter.authorize(hold.request))

    @rule(hold=consumes(holds))
    def void(self, hold):
        for _ in range(2):
            self.run(self.meter.void(hold))
        self.model.void(hold.request)

    @rule(amount=st.integers(0, 10), credit_limit=st.sampled_from([None, 0, 7]))
    def fund(self, amount, credit_limit):
        """Views of the ledger that come twice, or late, change nothing; neither does what the meter knows better."""
        self.model.funded += amount * self.scale
        if credit_limit is not None:
            self.model.credit_limit = credit_limit * self.scale
        self.version += 1
        posted = (KeySpending("red", "2026-01-01", 0, 0), KeySpending("blue", periods.day_of(FIRST_MS), 0, 0))
        view = Funding(
            self.account, self.version, self.model.funded, 0, self.model.credit_limit, "2026-01", 0, posted
        )  # fmt: skip
        for _ in range(2):
            self.run(self.meter.fund(view))
        self.run(self.meter.fund(Funding(self.account, self.version - 1, 0, 0)))

    @rule()
    def revoke(self):
        self.run(self.meter.revoke(self.account, "blue"))
        self.model.revoked.add("blue")

    @rule()
    def next_day(self):
        self.now_ms += DAY_MS

    @invariant()
    def balance_is_the_models(self):
        if not hasattr(self, "account"):
            return
        self.model.sweep()
        found = self.run(self.meter.balance(self.account))
        assert (found.funded, found.credit_limit) == (self.model.funded, self.model.credit_limit)
        assert (found.spent, found.held) == (self.model.spent, self.model.held)
        assert found.spent + found.held <= found.funded + 7 * self.scale, "never below the highest credit limit"
        month = periods.of(self.now_ms)
        assert found.free_left(month, self.grant) == self.model.free_left(month, self.grant)

    def teardown(self):
        if not hasattr(self, "account"):
            return
        stream = keys.usage(keys.shard_of(self.account, SHARDS))
        entries = self.run(self.client.xrange(stream))
        decoder = msgspec.json.Decoder(UsageRecord)
        mine = [record for _, fields in entries if (record := decoder.decode(fields[b"r"])).account == self.account]
        assert sum(record.charge - record.free for record in mine) == self.model.spent, "charged if and only if logged"
        for month in {periods.of(record.finished_ms) for record in mine}:
            assert sum(record.free for record in mine if periods.of(record.finished_ms) == month) <= self.grant
        for key, own in self.limits.items():
            for day in {periods.day_of(record.finished_ms) for record in mine}:
                spent = sum(r.charge - r.free for r in mine if (r.key, periods.day_of(r.finished_ms)) == (key, day))
                assert not own.day_cap or spent <= own.day_cap or (key, day) in self.late_days
        self.run(self.client.xtrim(stream, maxlen=0, approximate=False))
        # An account that is over is not asked by the next death of a process: that took most of the time.
        self.run(self.client.srem(keys.holding(keys.shard_of(self.account, SHARDS)), self.account))


def test_the_meter_agrees_with_the_model_in_any_order(request, any_redis_url):
    """The scripts are the same everywhere: one Redis takes most examples, the others show that they run there too."""
    examples = settings().max_examples
    if request.node.callspec.params["any_redis_url"] == "embedded":
        examples *= 10
    MeterMachine.connect(any_redis_url)
    try:
        from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415 # beside its only use

        run_state_machine_as_test(MeterMachine, settings=settings(max_examples=examples, stateful_step_count=20))
    finally:
        MeterMachine.disconnect()
