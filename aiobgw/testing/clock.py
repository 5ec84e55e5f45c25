"""A clock that a test moves."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import final


@final
class ManualClock:
    """Stand still until a test moves it: ``Supervisor(clock=ManualClock())``.

    Restart delays and stop timeouts run on it, with real processes and with fake ones; the
    processes themselves do not notice, nor do ``asyncio.timeout`` and ``asyncio.sleep``.  Once
    a supervisor stops, its own deadlines come by themselves, too, so that every stop ends.
    Wall-clock times (``started_at``, ``next_start_at``, events) are the system's.

    One clock may be given to several supervisors of one event loop.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = float(start)
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, _Timer]] = []

    def now(self) -> float:
        """Return the moment, in seconds since its start."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        """Call once when the clock is moved to *when*, or past it."""
        timer = _Timer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move it; whatever is due meanwhile is done at its own moment, before this returns.

        What needs a process, or somebody who waits, comes in later turns of the event loop:
        await the handle.  Raises ValueError for a negative number.
        """
        if not seconds >= 0:
            raise ValueError(f"a clock does not go back: {seconds!r}")
        end = self._now + seconds
        while (timer := self._next_until(end)) is not None:
            timer.ring()
        self._now = end

    def advance_to_next(self) -> float:
        """Move it to the next deadline; return how many seconds that took.

        Raises RuntimeError if there is none.
        """
        when = self.next_at
        if when is None:
            raise RuntimeError("nobody waits for this clock")
        seconds = max(0.0, when - self._now)
        self.advance(seconds)
        return seconds

    @property
    def next_at(self) -> float | None:
        """The earliest deadline; None if nobody waits."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _next_until(self, end: float) -> _Timer | None:
        """Move to the next deadline that is not after *end*, and take it."""
        when = self.next_at
        if when is None or when > end:
            return None
        self._now = max(self._now, when)
        return heapq.heappop(self._timers)[2]

    def __repr__(self) -> str:
        return f"<ManualClock now={self._now:g} next_at={self.next_at}>"


class _Timer:
    __slots__ = ("_callback", "cancelled")

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def ring(self) -> None:
        self._callback()
