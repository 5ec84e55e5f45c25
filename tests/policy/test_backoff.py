"""How long the pauses are before something that failed is tried again."""

from __future__ import annotations

import pytest

from aiobgw._policy.backoff import launch_delay, zygote_delay


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
