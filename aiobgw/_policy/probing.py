"""When a probe looks whether a worker is ready."""

from __future__ import annotations

FIRST_LOOK = 0.02
LONGEST_DELAY = 1.0

LOOK_TIMEOUT = 5.0
"""Seconds after which a look that has not come to an end has failed."""


def look_delay(looks: int) -> float:
    """Return the pause before the next look, after so many: 20, 30, 45 ms ... 1 s."""
    return min(LONGEST_DELAY, FIRST_LOOK * 1.5 ** min(looks, 32))
