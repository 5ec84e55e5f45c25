"""How long to wait before something that failed is tried again."""

from __future__ import annotations

from .life import Rule

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


def restart_delay(rule: Rule, streak: int, luck: float) -> float:
    """Return the pause after the n-th failure in a row (n from 1).

    Kubernetes' crash loop in shape; the jitter is Nomad's, and only ever makes a pause longer,
    the longest ones too: at their limit many workers would start at once otherwise.
    """
    return _grown(rule, streak) * (1.0 + rule.restart_jitter * luck)


def _grown(rule: Rule, streak: int) -> float:
    """Return the delay without jitter; one of 0 stays 0 whatever it is multiplied by."""
    most = max(rule.restart_delay, rule.restart_delay_max)
    try:
        factor = float(rule.restart_backoff) ** (max(streak, 1) - 1)
    except OverflowError:
        return most if rule.restart_delay else 0.0
    return min(most, rule.restart_delay * factor)


def healthy_time(rule: Rule) -> float:
    """Return for how long a worker must have been ready to end a streak of failures."""
    if rule.restart_reset is not None:
        return rule.restart_reset
    return max(60.0, 10.0 * rule.restart_delay)
