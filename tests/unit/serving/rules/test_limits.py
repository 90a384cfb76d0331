"""Limits of keys from outside and for the outside, and the headers that say what they leave."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from metering.meter import Limits, Quota
from metering.money import Currency
from serving.api.rate_limit_headers import quota_headers
from serving.rules import limits
from serving.rules.limits import KeyLimits, LimitError
from serving.settings import Settings

USD = Currency.of("USD")


def test_what_is_set_for_a_key_goes_before_the_settings_and_none_is_no_limit():
    settings = Limits(requests_per_minute=60, tokens_per_minute=1_000, day_cap=5)
    own = KeyLimits(requests_per_minute=10, tokens_per_minute=0, month_cap=7)
    assert own.over(settings) == Limits(10, 0, 0, 5, 7)
    assert KeyLimits().over(settings) == settings


def test_limits_read_back_what_they_show():
    own = KeyLimits(10, 0, None, 5_000_000_000, 0)
    shown = own.to_json(USD)
    assert shown == {
        "requests_per_minute": 10,
        "tokens_per_minute": "none",
        "concurrent_requests": "default",
        "day_cap": {"amount": "5.000000", "currency": "USD"},
        "month_cap": "none",
    }
    assert KeyLimits(**limits.parse(shown, USD)) == own


@pytest.mark.parametrize("name", limits.NAMES)
@pytest.mark.parametrize("wrong", ["-1", -1, "", "many", 1.5, True, [], {"amount": 5}, 10**10, "9" * 30, "\u0663"])
def test_what_is_no_limit_is_refused_by_name(name, wrong):
    with pytest.raises(LimitError, match=f"^{name}: "):
        limits.parse({name: wrong}, USD)


def test_settings_give_every_key_its_limits_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.setenv("PATRONAGE_TOKENS_PER_MINUTE", "900")
    monkeypatch.setenv("PATRONAGE_DAY_CAP", "5.00")
    assert limits.defaults(Settings(), USD) == Limits(tokens_per_minute=900, day_cap=5_000_000_000)
    monkeypatch.setenv("PATRONAGE_MONTH_CAP", "much")
    with pytest.raises(LimitError, match=r"^setting PATRONAGE_MONTH_CAP: "):
        limits.defaults(Settings(), USD)
    monkeypatch.setenv("PATRONAGE_CONCURRENT_REQUESTS", "-1")
    with pytest.raises(ValidationError):
        Settings()


def test_headers_name_one_policy_for_each_limit():
    quota = Quota(Limits(100, 20_000, 4), 99, 0.6, 19_500, 1.5, 3)
    assert quota_headers(quota) == {
        "ratelimit-policy": '"requests";q=100;w=60;qu="requests", "tokens";q=20000;w=60;qu="tokens", '
        '"concurrent";q=4;qu="concurrent-requests"',
        "ratelimit": '"requests";r=99;t=1, "tokens";r=19500;t=2, "concurrent";r=3',
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "20000",
        "x-ratelimit-remaining-tokens": "19500",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert quota_headers(Quota(Limits(day_cap=5), 0, 0, 0, 0, 0)) == quota_headers(None) == {}
