"""The meter as a state machine: authorize, capture, void, expiry, funding and retries in any order, against a model.

The meter is the real one on a real Redis. Holds with a time to live of zero lapse at the next step that looks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from redis.asyncio import Redis

from metering.meter import (
    Funding,
    Hold,
    HoldExpired,
    IdempotencyMismatch,
    IdempotencyRunning,
    InsufficientFunds,
    Replay,
    Request,
)
from metering.redis_meter import RETRY_REPLAYS_MAX, RedisMeter, shard_of, usage_stream
from tests.records import a_record

SHARDS = 4
DEPLOYMENT = "state-machine"
units = st.integers(1, 1_000)


class MeterMachine(RuleBasedStateMachine):
    """Compares every answer and every balance with the model."""

    url = ""
    numbers: Iterator[int] = itertools.count()
    holds: Bundle[tuple[Hold, bool]] = Bundle("holds")
    captured: Bundle[tuple[Hold, int]] = Bundle("captured")

    @classmethod
    def connect(cls, url: str) -> None:
        cls.loop = asyncio.new_event_loop()
        cls.client = Redis.from_url(url)
        options = {"deployment": DEPLOYMENT, "shards": SHARDS, "replay_ttl_ms": 60_000, "retry_ttl_ms": 60_000}
        cls.meter = RedisMeter(cls.client, hold_ttl_ms=60_000, **options)
        cls.fleeting = RedisMeter(cls.client, hold_ttl_ms=0, **options)
        cls.run(cls.meter.claim(fresh=True))

    @classmethod
    def disconnect(cls) -> None:
        cls.run(cls.client.aclose())
        cls.loop.close()

    @classmethod
    def run(cls, coroutine):
        return cls.loop.run_until_complete(coroutine)

    @initialize(funded=st.integers(0, 3_000))
    def open(self, funded):
        self.account = f"account-{next(self.numbers)}"
        self.funded, self.version, self.spent = funded, 1, 0
        self.live: dict[str, int] = {}
        self.doomed: dict[str, int] = {}
        self.keys: dict[str, tuple[str, str, str]] = {}
        self.replays: dict[str, int] = {}
        self.run(self.meter.fund(Funding(self.account, 1, funded, 0)))

    @property
    def available(self) -> int:
        return self.funded - self.spent - sum(self.live.values()) - sum(self.doomed.values())

    def sweep(self) -> None:
        self.doomed.clear()

    @rule(
        target=holds,
        ceiling=units,
        fleeting=st.booleans(),
        key=st.sampled_from(["", "", "k1", "k2"]),
        body=st.sampled_from("ab"),
        retries=st.sampled_from([None, None, 0, 1]),
    )
    def authorize(self, ceiling, fleeting, key, body, retries):
        name = f"hold-{next(self.numbers)}"
        if retries is not None:
            key = f"made-of-{body}"
        request = Request(name, self.account, "key", ceiling, idempotency_key=key, fingerprint=body, retries=retries)
        meter = self.fleeting if fleeting else self.meter
        self.sweep()
        expected = self.verdict(key, body, ceiling, retries)
        if expected is not None:
            with pytest.raises(expected):
                self.run(meter.authorize(request))
            return multiple()
        found = self.run(meter.authorize(request))
        state = self.keys.get(key)
        if self.replayed(key, retries):
            self.replays[key] = self.replays.get(key, 0) + 1
            assert found == Replay(b"answer to " + state[2].encode())
            return multiple()
        assert found == Hold(request)
        (self.doomed if fleeting else self.live)[name] = ceiling
        if key:
            self.keys[key] = (body, "running", name)
            self.replays.pop(key, None)
        return found, fleeting

    def replayed(self, key, retries):
        """Whether the model expects the answer that was given before."""
        if not key or self.keys.get(key, ("", "", ""))[1] != "done" or retries == 0:
            return False
        return retries is None or self.replays.get(key, 0) < RETRY_REPLAYS_MAX

    def verdict(self, key, body, ceiling, retries):
        """Which error the model expects of an authorize, or None."""
        state = self.keys.get(key) if key else None
        if state:
            if state[0] != body:
                return IdempotencyMismatch
            if self.replayed(key, retries):
                return None
            if retries != 0 and state[1] == "running" and state[2] in self.live:
                return IdempotencyRunning
        return InsufficientFunds if self.available < ceiling else None

    @rule(target=captured, held=consumes(holds), part=st.floats(0, 1), kept=st.booleans())
    def capture(self, held, part, kept):
        hold, _ = held
        name, charge = hold.request.hold, int(hold.request.ceiling * part)
        known = name in self.live or name in self.doomed
        record = a_record(id=name, account=self.account, charge=charge)
        response = b"answer to " + name.encode() if kept else b""
        state = self.keys.get(hold.request.idempotency_key)
        taken = state is not None and state[2] != name
        if not known and (self.available < charge or taken):
            with pytest.raises(HoldExpired):
                self.run(self.meter.capture(hold, record, response))
            return multiple()
        self.run(self.meter.capture(hold, record, response))
        self.live.pop(name, None)
        self.doomed.pop(name, None)
        self.spent += charge
        if state is not None and not taken:
            if kept:
                self.keys[hold.request.idempotency_key] = (hold.request.fingerprint, "done", name)
            else:
                del self.keys[hold.request.idempotency_key]
        return hold, charge

    @rule(held=holds)
    def capture_too_much(self, held):
        hold, _ = held
        name = hold.request.hold
        if name in self.live or name in self.doomed:
            record = a_record(id=name, account=self.account, charge=hold.request.ceiling + 1)
            with pytest.raises(ValueError, match="above the ceiling"):
                self.run(self.meter.capture(hold, record))

    @rule(done=captured)
    def capture_again(self, done):
        """A capture that is sent again, after a broken connection, changes nothing."""
        hold, charge = done
        record = a_record(id=hold.request.hold, account=self.account, charge=charge)
        self.run(self.meter.capture(hold, record, b"something else"))

    @rule(held=holds)
    def authorize_again(self, held):
        """An authorize that is sent again holds nothing twice."""
        hold, _ = held
        if hold.request.hold in self.live:
            assert self.run(self.meter.authorize(hold.request)) == hold

    @rule(held=consumes(holds))
    def void(self, held):
        hold, _ = held
        for _ in range(2):
            self.run(self.meter.void(hold))
        self.live.pop(hold.request.hold, None)
        self.doomed.pop(hold.request.hold, None)
        state = self.keys.get(hold.request.idempotency_key)
        if state and state[1:] == ("running", hold.request.hold):
            del self.keys[hold.request.idempotency_key]

    @rule(amount=units)
    def fund(self, amount):
        self.funded += amount
        self.version += 1
        view = Funding(self.account, self.version, self.funded, 0)
        for _ in range(2):
            self.run(self.meter.fund(view))
        self.run(self.meter.fund(Funding(self.account, self.version - 1, 0, 0)))

    @invariant()
    def balance_is_the_models(self):
        if not hasattr(self, "account"):
            return
        self.sweep()
        found = self.run(self.meter.balance(self.account))
        assert (found.funded, found.spent) == (self.funded, self.spent)
        assert found.held == sum(self.live.values())
        assert found.available >= 0

    def teardown(self):
        if not hasattr(self, "account"):
            return
        stream = usage_stream(shard_of(self.account, SHARDS))
        entries = self.run(self.client.xrange(stream))
        mine = [fields[b"r"] for _, fields in entries if f'"account":"{self.account}"'.encode() in fields[b"r"]]
        charges = [int(each.split(b'"charge":')[1].split(b",")[0]) for each in mine]
        assert sum(charges) == self.spent, "charged if and only if the record is in the log"
        self.run(self.client.xtrim(stream, maxlen=0, approximate=False))


def test_the_meter_agrees_with_the_model_in_any_order(redis_url):
    MeterMachine.connect(redis_url)
    try:
        from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415 # beside its only use

        run_state_machine_as_test(
            MeterMachine, settings=settings(max_examples=10 * settings().max_examples, stateful_step_count=12)
        )
    finally:
        MeterMachine.disconnect()
