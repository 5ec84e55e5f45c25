"""How long to wait before something that failed is tried again."""

from __future__ import annotations

LAUNCH_ATTEMPTS = 3
"""How often a launch that reached no process is made again at once."""

ZYGOTE_ATTEMPTS = 10
"""How often in a row a zygote may fail to come up before its supervisor fails."""


def launch_delay(failures: int) -> float:
    """Return the pause after the n-th failed fork in a row: 1, 2, 4 ... 60 s."""
    return _doubled(1.0, failures, 60.0)


def zygote_delay(failures: int) -> float:
    """Return the pause before the next zygote: none after a death, then 0.1, 0.2 ... 5 s."""
    return 0.0 if failures == 0 else _doubled(0.1, failures, 5.0)


def _doubled(first: float, times: int, most: float) -> float:
    """Double *first* for each time after the first one, up to *most*; no overflow."""
    return min(most, first * 2.0 ** min(times - 1, 32))
