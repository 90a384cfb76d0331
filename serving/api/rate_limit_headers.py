"""Rate-limit headers: what the limits of a key leave.

``RateLimit`` and ``RateLimit-Policy`` are those of draft-ietf-httpapi-ratelimit-headers-10; the ``x-ratelimit-*`` names
are those that clients of OpenAI read.
"""

from __future__ import annotations

import math

from metering.meter import Quota

_WINDOW_S = 60


def quota_headers(quota: Quota | None) -> dict[str, str]:
    """One policy for each limit that the key has; no headers for a key without limits."""
    if quota is None:
        return {}
    headers: dict[str, str] = {}
    policies: list[str] = []
    services: list[str] = []
    limits = quota.limits
    for name, limit, left, reset_s in (
        ("requests", limits.requests_per_minute, quota.requests_left, quota.requests_reset_s),
        ("tokens", limits.tokens_per_minute, quota.tokens_left, quota.tokens_reset_s),
    ):
        if limit:
            policies.append(f'"{name}";q={limit};w={_WINDOW_S};qu="{name}"')
            services.append(f'"{name}";r={left};t={math.ceil(reset_s)}')
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(left)
            headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(reset_s)}s"
    if limits.concurrent_requests:
        policies.append(f'"concurrent";q={limits.concurrent_requests};qu="concurrent-requests"')
        services.append(f'"concurrent";r={quota.concurrent_left}')
    if policies:
        headers |= {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(services)}
    return headers
