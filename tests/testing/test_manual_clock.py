"""A clock that tests move, by itself and under a supervisor with real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

import aiobgw
from aiobgw import WorkerSpec, WorkerState
from aiobgw.testing import ManualClock

from .. import targets
from ..conftest import MakeSupervisor

HOUR = 3600.0


def test_what_is_due_is_done_at_its_own_moment_in_order() -> None:
    clock = ManualClock(start=100.0)
    rang: list[tuple[str, float]] = []

    def again() -> None:
        rang.append(("again", clock.now()))
        if len(rang) < 4:
            clock.call_at(clock.now() + 2.0, again)

    clock.call_at(103.0, lambda: rang.append(("once", clock.now())))
    clock.call_at(102.0, again)
    clock.call_at(99.0, lambda: rang.append(("late", clock.now())))
    clock.call_at(106.5, lambda: rang.append(("never", clock.now()))).cancel()
    assert clock.next_at == 99.0
    clock.advance(5.9)
    assert rang == [("late", 100.0), ("again", 102.0), ("once", 103.0), ("again", 104.0)]
    assert clock.now() == 105.9
    assert clock.next_at is None
    clock.call_at(200.0, lambda: None)
    assert clock.advance_to_next() == pytest.approx(94.1)
    assert clock.now() == 200.0


def test_it_neither_goes_back_nor_waits_for_nobody() -> None:
    clock = ManualClock()
    for backwards in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="does not go back"):
            clock.advance(backwards)
    with pytest.raises(RuntimeError, match="nobody waits"):
        clock.advance_to_next()
    assert repr(clock) == "<ManualClock now=0 next_at=None>"


def test_what_cannot_tell_the_time_is_refused_as_a_clock() -> None:
    with pytest.raises(aiobgw.InvalidSpec, match=r"clock must be an aiobgw\.testing\.ManualClock"):
        aiobgw.Supervisor(clock=3.0)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_a_real_worker_is_restarted_when_the_clock_says_so(
    make_supervisor: MakeSupervisor,
) -> None:
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    events = supervisor.events()
    spec = WorkerSpec(name="w", target=targets.fail, restart_delay=HOUR, restart_jitter=0)
    handle = await supervisor.register(spec)
    for incarnation in (1, 2, 3):
        exited = await _next_exit(events)
        assert exited.status.incarnation == incarnation
        clock.advance(HOUR - 0.001)
        assert handle.status().state is WorkerState.BACKOFF
        clock.advance(0.001)
        assert handle.status().state is WorkerState.STARTING
    assert clock.now() == 3 * HOUR


async def _next_exit(events: AsyncIterator[aiobgw.Event]) -> aiobgw.Exited:
    async for event in events:
        if isinstance(event, aiobgw.Exited):
            return event
    raise AssertionError("the supervisor closed")


@pytest.mark.anyio
async def test_stop_timeout_is_on_the_clock_and_a_stop_ends_without_it(
    make_supervisor: MakeSupervisor,
) -> None:
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    handle = await _stuck(supervisor, HOUR)
    handle.terminate()
    clock.advance(HOUR - 1)
    assert handle.status().state is WorkerState.STOPPING
    clock.advance(1)
    exit = await handle
    assert exit is not None
    assert exit.signal == 9

    # The clock stands still from here on, the stop does not; and moving it hastens the stop.
    short, long = await _stuck(supervisor, 0.1), await _stuck(supervisor, HOUR)
    stop = asyncio.ensure_future(supervisor.shutdown())
    assert (await short) is not None
    assert clock.now() == HOUR
    assert long.status().state is WorkerState.STOPPING
    clock.advance(HOUR)
    await stop
    assert long.status().state is WorkerState.STOPPED


async def _stuck(supervisor: aiobgw.Supervisor, stop_timeout: float) -> aiobgw.WorkerHandle:
    """Return a worker that minds no SIGTERM."""
    with closing(aiobgw.Latch()) as up:
        spec = WorkerSpec(
            name="stuck",
            target=targets.ignore_term,
            latches={"up": up},
            stop_timeout=stop_timeout,
        )
        handle = await supervisor.register(spec)
        await up.wait()
    return handle
