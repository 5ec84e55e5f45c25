"""Token buckets: who asks for too much waits for as long as it takes to make up for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobgw._policy.rate import Bucket


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


@pytest.mark.parametrize(
    ("taken", "later", "free_after"),
    [
        # taken at 100.0 from a bucket of 10 that fills at 2 a second
        (0, 0.0, 0.0),
        (9, 0.0, 0.0),
        (10, 0.0, 0.0),  # an empty bucket is no debt
        (11, 0.0, 0.5),
        (12, 0.0, 1.0),
        (12, 0.25, 0.75),
        (12, 1.0, 0.0),
        (12, 9.0, 0.0),
        (110, 0.0, 50.0),
        (110, 49.0, 1.0),
        (110, 50.0, 0.0),
        (110, -5.0, 50.0),  # a clock that goes back neither fills nor frees
    ],
)
def test_it_is_free_again_when_the_debt_is_paid(
    taken: float, later: float, free_after: float
) -> None:
    bucket = Bucket(10, 2)
    bucket.take(100.0, taken)
    now = 100.0 + later
    assert bucket.free_at(now) == pytest.approx(now + free_after)


@pytest.mark.parametrize("first", [0.0, 1e-9, 100.0, 1e9])
def test_it_is_full_at_first_whatever_the_clock_says(first: float) -> None:
    bucket = Bucket(10, 2)
    bucket.take(first, 10)
    assert bucket.free_at(first) == first
    bucket.take(first, 1)
    assert bucket.free_at(first) == pytest.approx(first + 0.5, rel=1e-12)


def test_it_never_holds_more_than_its_size() -> None:
    bucket = Bucket(10, 2)
    bucket.take(0.0, 10)
    bucket.take(1e6, 11)
    assert bucket.free_at(1e6) == pytest.approx(1e6 + 0.5)


def test_a_look_costs_nothing() -> None:
    looked_at, left_alone = Bucket(10, 2), Bucket(10, 2)
    for bucket in (looked_at, left_alone):
        bucket.take(5.0, 14)
    for step in range(100):
        looked_at.free_at(5.0 + step / 100)
    assert looked_at.free_at(6.0) == pytest.approx(left_alone.free_at(6.0))


SIZES = st.integers(1, 10_000)
RATES = st.integers(1, 10_000)
STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 500)), max_size=40)


@given(SIZES, RATES, STEPS)
def test_at_the_moment_that_it_names_it_is_free_and_not_much_before(
    size: int, rate: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(size, rate), 0.0
    for pause, tokens in steps:
        now += pause
        bucket.take(now, tokens)
        at = bucket.free_at(now)
        assert at >= now
        if at > now + 1e-3:
            assert bucket.free_at(now + (at - now) * 0.5) > now + (at - now) * 0.5
            now += (at - now) * 0.5
        assert bucket.free_at(at + 1e-6) == at + 1e-6
        now = at + 1e-6


@given(SIZES, RATES, STEPS)
def test_who_waits_when_told_to_gets_no_more_than_size_and_rate_allow(
    size: int, rate: int, steps: list[tuple[float, int]]
) -> None:
    """But for the last thing it took, which may leave a debt."""
    bucket, now, taken, last = Bucket(size, rate), 0.0, 0, 0
    for pause, tokens in steps:
        now = max(now + pause, bucket.free_at(now + pause))
        bucket.take(now, tokens)
        taken += tokens
        last = tokens
        assert taken - last <= size + rate * now + 1e-3


@given(SIZES, RATES, st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_a_debt_is_the_same_however_it_was_made(size: int, rate: int, parts: list[int]) -> None:
    at_once, in_parts = Bucket(size, rate), Bucket(size, rate)
    at_once.take(50.0, sum(parts))
    for part in parts:
        in_parts.take(50.0, part)
    assert at_once.free_at(50.0) == pytest.approx(in_parts.free_at(50.0))
