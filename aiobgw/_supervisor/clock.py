"""Clocks that really run, and the alarm that a loop sets on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .._policy.clock import Clock, Timer


class SystemClock:
    """The monotonic clock, on which the host's loop calls."""

    def __init__(self, host: asyncio.AbstractEventLoop) -> None:
        self.now = time.monotonic
        self._host = host

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self._host.call_later(max(0.0, when - time.monotonic()), callback)


class GoingOn:
    """Another clock that goes on by itself from now on, too: a stop must come to its end."""

    def __init__(self, clock: Clock, host: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._real = SystemClock(host)
        self._since = time.monotonic()

    def now(self) -> float:
        return self._clock.now() + time.monotonic() - self._since

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call by whichever clock gets there first, and perhaps by the other one as well."""
        passed = time.monotonic() - self._since
        left = when - self.now()
        return _Either(
            self._clock.call_at(when - passed, callback),
            self._real.call_at(time.monotonic() + left, callback),
        )


class _Either:
    """Two timers for the same moment."""

    def __init__(self, *timers: Timer) -> None:
        self._timers = timers

    def cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()


class Alarm:
    """Calls *then* at the moment that was set last; none set: no timer at all."""

    def __init__(self, clock: Clock, then: Callable[[], object]) -> None:
        self._clock = clock
        self._then = then
        self._timer: Timer | None = None
        self._at: float | None = None

    def set(self, at: float | None) -> None:
        """Replace the moment; None: do not call."""
        if at == self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = None if at is None else self._clock.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = self._at = None
        self._then()
