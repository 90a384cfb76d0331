"""The pace of what is asked for and not paid: replays, refusals, reads, and whatever somebody without a key wants.

It costs the event loop, and so all others, as much as the beginning of a call that is paid. Who mostly pays is never
held up: each call that is paid makes up for one that is not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from serving.api.errors import ApiError

AT_ONCE: Final = 100
"""How many go through before the pace begins."""
WAIT_S_MAX: Final = 15.0
_CALLERS: Final = 10_000
"""How many are remembered before those are forgotten who are not ahead any more."""


class Pace:
    """Used from one event loop; what it keeps is a number for each caller that is ahead of it."""

    def __init__(self, per_second: float, what: str) -> None:
        """``per_second`` calls of each caller, on average; 0 for no limit. ``what`` is what a refusal calls them."""
        self._pause_s = 1 / per_second if per_second else 0.0
        self._what = what
        self._paced_until: dict[str, float] = {}
        """When what came so far is done, at the pace."""
        self._forget_at = _CALLERS

    async def turn(self, caller: str) -> bool:
        """Wait until a call may begin, which is at once but for whoever has more unpaid ones than the pace allows.

        Returns:
            Whether it waited: then it is counted already, for the case that it is not paid.

        Raises:
            ApiError: 429, too many wait.
        """
        until = self._paced_until.get(caller)
        if until is None:
            return False
        ahead_s = until - time.monotonic() - AT_ONCE * self._pause_s
        if ahead_s <= 0:
            return False
        if ahead_s > WAIT_S_MAX:
            pace = f"{1 / self._pause_s:g} a second"
            raise ApiError(
                429,
                "rate_limited",
                f"too many {self._what}: {pace} are answered, and many wait already",
                headers={"retry-after": str(round(WAIT_S_MAX))},
            )
        self._paced_until[caller] = until + self._pause_s
        await asyncio.sleep(ahead_s)
        return True

    def ended(self, caller: str, unpaid: int, *, counted: bool) -> None:
        """Count a call that has ended.

        Args:
            caller: whose call it was.
            unpaid: for how many calls it counts: 1, or more where its body was large; -1 where it was paid, or 0 where
                it failed and it was not the caller who did.
            counted: what :meth:`turn` said of it.
        """
        change = (unpaid - counted) * self._pause_s
        if not change or (change < 0 and caller not in self._paced_until):
            return
        now = time.monotonic()
        until = max(now, self._paced_until.get(caller, now)) + change
        if until > now:
            self._paced_until[caller] = until
            if len(self._paced_until) > self._forget_at:
                self._paced_until = {name: end for name, end in self._paced_until.items() if end > now}
                self._forget_at = max(_CALLERS, 2 * len(self._paced_until))
        else:
            self._paced_until.pop(caller, None)
