"""How long the pauses are before something that failed is tried again."""

from __future__ import annotations

import pytest

from aiobgw._policy.backoff import healthy_time, launch_delay, restart_delay, zygote_delay
from aiobgw._policy.life import Rule


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


def test_a_failed_fork_waits_longer_each_time_up_to_a_minute() -> None:
    assert [launch_delay(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_zygote_that_died_is_replaced_at_once_and_one_that_cannot_come_up_is_not() -> None:
    delays = [zygote_delay(n) for n in range(9)]
    assert delays == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


@pytest.mark.parametrize("failures", [100, 2_000, 10**9])
def test_a_pause_has_a_limit_after_any_number_of_failures(failures: int) -> None:
    assert launch_delay(failures) == 60.0
    assert zygote_delay(failures) == 5.0


# Between the restarts of a worker.

STREAKS: list[tuple[dict[str, float], list[float]]] = [
    ({}, [1, 2, 4, 8, 16, 32, 60, 60]),
    ({"restart_delay": 0.1}, [0.1, 0.2, 0.4, 0.8, 1.6]),
    ({"restart_delay": 30}, [30, 60, 60]),
    ({"restart_backoff": 1}, [1, 1, 1, 1]),
    ({"restart_delay": 60, "restart_backoff": 1}, [60, 60, 60]),
    ({"restart_backoff": 10, "restart_delay_max": 5_000}, [1, 10, 100, 1_000, 5_000, 5_000]),
    ({"restart_delay_max": 3}, [1, 2, 3, 3]),
    ({"restart_delay": 100, "restart_delay_max": 60}, [100, 100, 100]),
    ({"restart_delay": 0}, [0, 0, 0]),
    ({"restart_delay": 0, "restart_backoff": 100}, [0, 0, 0]),
    ({"restart_delay": 5, "restart_delay_max": 0}, [5, 5]),
]


@pytest.mark.parametrize(("fields", "delays"), STREAKS, ids=str)
def test_the_delays_of_a_streak(fields: dict[str, float], delays: list[float]) -> None:
    rule = Rule(**fields, restart_jitter=0.5)  # type: ignore[arg-type]
    pauses = [restart_delay(rule, streak, 0.0) for streak in range(1, len(delays) + 1)]
    assert pauses == pytest.approx(delays)
    longest = [restart_delay(rule, streak, 1.0) for streak in range(1, len(delays) + 1)]
    assert longest == pytest.approx([1.5 * delay for delay in delays])


def test_the_jitter_is_a_quarter_by_default_and_only_makes_a_pause_longer() -> None:
    assert [restart_delay(Rule(), 3, luck) for luck in (0.0, 0.5, 1.0)] == [4.0, 4.5, 5.0]


def test_no_jitter_and_no_growth_are_a_fixed_interval_whatever_luck_says() -> None:
    """PostgreSQL's bgw_restart_time."""
    rule = Rule(restart_delay=7.0, restart_backoff=1.0, restart_jitter=0.0)
    assert {restart_delay(rule, n, luck) for n in (1, 2, 10**6) for luck in (0.0, 0.9)} == {7.0}


@pytest.mark.parametrize("streak", [200, 5_000, 10**9])
@pytest.mark.parametrize("backoff", [1.01, 1.5, 2, 100])
def test_a_delay_reaches_its_limit_however_slowly_it_grows_and_never_passes_it(
    streak: int, backoff: float
) -> None:
    rule = Rule(restart_delay=10.0, restart_backoff=backoff)
    assert restart_delay(rule, streak, 0.0) == 60.0
    assert restart_delay(Rule(restart_delay=0.0, restart_backoff=backoff), streak, 1.0) == 0.0


def test_the_healthy_time_is_a_minute_ten_delays_or_what_is_said() -> None:
    assert healthy_time(Rule()) == 60.0
    assert healthy_time(Rule(restart_delay=7.0)) == 70.0
    assert healthy_time(Rule(restart_delay=7.0, restart_reset=0.0)) == 0.0
    assert healthy_time(Rule(restart_delay=7.0, restart_reset=5.0)) == 5.0
