"""The clock of the rules: the seam at which tests replace the time.

Restart delays, stop timeouts and whatever else the rules decide are moments on it.  What
belongs to processes, descriptors and peers (retries, greetings, the pause before spares are
refilled) stays on the system's own clock: it runs out for real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Have it not come; idempotent."""


class Clock(Protocol):
    """What tells the time, and calls when it has come; never called from another thread."""

    def now(self) -> float:
        """Return the moment, in seconds since any point; it never goes back."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call once when the moment has come, soon if it has passed; never within this call."""
