"""A launcher without processes: it must be as the real one is, but for the processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitStatus, Flags, Restart, WorkerSpec, WorkerState
from aiobgw.testing import FakeLauncher, FakeProcess, ManualClock

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

SLEEP = ["/bin/sleep", "3600"]


def meaning(exit: ExitStatus | None) -> tuple[object, ...]:
    assert exit is not None
    return exit.kind, exit.code, exit.signal, exit.reason, exit.incarnation, bool(exit.error)


def last_states(events: list[aiobgw.Event]) -> list[tuple[str, WorkerState, int]]:
    workers = [event for event in events if isinstance(event, aiobgw.WorkerEvent)]
    return [(type(e).__name__, e.status.state, e.status.incarnation) for e in workers]


ENDS: dict[str, tuple[dict[str, Any], Callable[[FakeProcess], None] | None]] = {
    "returns": ({"target": targets.nothing}, FakeProcess.finish),
    "raises": ({"target": targets.fail}, FakeProcess.fail),
    "says goodbye": (
        {"target": targets.exit_with, "args": (3,)},
        lambda process: process.fail("", code=3),
    ),
    "says nothing": (
        {"target": targets.exit_rudely, "args": (3,)},
        lambda process: process.exit(3),
    ),
    "crashes": ({"target": targets.kill_self, "args": (11,)}, FakeProcess.crash),
    "command exits": ({"command": ["/bin/sh", "-c", "exit 7"]}, lambda process: process.exit(7)),
    "command crashes": (
        {"command": ["/bin/sh", "-c", "kill -9 $$"]},
        lambda process: process.crash(9),
    ),
    "is terminated": ({"target": targets.sleep}, None),
    "command is terminated": ({"command": SLEEP}, None),
}


@pytest.mark.parametrize("how", ENDS)
async def test_a_fake_process_ends_as_a_real_one_does(
    how: str, make_supervisor: MakeSupervisor
) -> None:
    """The same events, the same states, the same exit, whether it is a process or not."""
    fields, end = ENDS[how]
    told = []
    for launcher in (None, FakeLauncher()):
        supervisor = await make_supervisor(launcher=launcher)
        events = supervisor.events()
        spec = WorkerSpec(name="w", restart=Restart.NEVER, **fields)
        handle = await supervisor.register(spec)
        if launcher is not None and end is not None:
            end(launcher["w"])
        if end is None:
            await handle.wait_for_startup()
            handle.terminate()
        exit = await handle
        await supervisor.shutdown()
        told.append((meaning(exit), last_states([event async for event in events])))
    assert told[0] == told[1]


async def test_years_of_restarts_take_no_time_and_no_process(
    make_supervisor: MakeSupervisor,
) -> None:
    launcher, clock = FakeLauncher(), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    spec = WorkerSpec(name="daily", target="no.such:thing", restart_delay=86_400, restart_jitter=0)
    handle = await supervisor.register(spec)
    for day in range(1, 1001):
        launcher["daily"].fail("no such picture")
        assert handle.status().state is WorkerState.BACKOFF
        clock.advance(86_399)
        assert handle.status().state is WorkerState.BACKOFF
        clock.advance(1)
        assert launcher["daily"].incarnation == day + 1
    status = handle.status()
    assert (status.state, status.restarts) == (WorkerState.RUNNING, 1000)
    assert status.exit is not None
    assert status.exit.error == "no such picture"
    assert procs.children() == set()


async def test_a_process_comes_up_when_the_test_says_so(make_supervisor: MakeSupervisor) -> None:
    launcher = FakeLauncher(start=False)
    supervisor = await make_supervisor(launcher=launcher)
    handle = await supervisor.register(WorkerSpec(name="w", target="a:b"))
    assert handle.status().state is WorkerState.STARTING
    waiting = asyncio.ensure_future(handle.wait_for_startup())
    launcher["w"].start()
    assert (await waiting).pid == launcher["w"].pid
    with pytest.raises(ProcessLookupError):
        os.kill(launcher["w"].pid, 0)  # never somebody's
    assert supervisor.type_by_pid(launcher["w"].pid) == "w"

    broken = await supervisor.register(WorkerSpec(name="x", target="a:b", restart=Restart.NEVER))
    launcher["x"].fail("ImportError")
    with pytest.raises(aiobgw.NeverStarted, match="ImportError"):
        await broken.wait_for_startup()

    taken_back = await supervisor.register(WorkerSpec(name="y", target="a:b"))
    taken_back.terminate()
    assert await taken_back is None
    with pytest.raises(RuntimeError, match="is over"):
        launcher["y"].start()
    assert launcher.running == [launcher["w"]]


async def test_a_launch_that_fails_is_tried_again_by_the_rules(
    make_supervisor: MakeSupervisor,
) -> None:
    launcher, clock = FakeLauncher(), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    launcher.refuse("out of memory", times=2)
    handle = await supervisor.register(WorkerSpec(name="w", target="a:b"))
    with pytest.raises(KeyError):
        launcher["w"]
    assert "out of memory" in handle.status().reason
    first = clock.advance_to_next()
    second = clock.advance_to_next()
    assert second > first > 0
    assert (await handle.wait_for_startup()).state is WorkerState.RUNNING


async def test_one_that_does_not_obey_is_killed_in_time(make_supervisor: MakeSupervisor) -> None:
    launcher, clock = FakeLauncher(obey=False), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    handle = await supervisor.register(WorkerSpec(name="w", target="a:b", stop_timeout=30))
    handle.signal(signal.SIGHUP)
    handle.terminate()
    clock.advance(29.9)
    assert not launcher["w"].is_over
    clock.advance(0.1)
    exit = await handle
    assert exit is not None
    assert exit.signal == signal.SIGKILL
    sent = launcher["w"].signals
    assert sent[:2] == [signal.SIGHUP, signal.SIGTERM]
    assert sent[-1] == signal.SIGKILL
    with pytest.raises(RuntimeError, match="is over"):
        launcher["w"].exit(0)


async def test_a_crash_cycle_takes_its_members_and_nobody_else(
    make_supervisor: MakeSupervisor,
) -> None:
    launcher = FakeLauncher()
    resets: list[int] = []
    supervisor = await make_supervisor(
        launcher=launcher, on_reset=lambda: resets.append(len(launcher.running))
    )
    shared: dict[str, Any] = {"flags": Flags.SHMEM_ACCESS, "crash_scope": aiobgw.CrashScope.ALL}
    for name, fields in (("a", shared), ("b", shared), ("alone", {})):
        await supervisor.register(WorkerSpec(name=name, target="a:b", **fields))
    events = supervisor.events()
    launcher["a"].crash()
    async for event in events:
        if isinstance(event, aiobgw.CrashCycle):
            break
    assert resets == [1]
    assert {process.name: process.incarnation for process in launcher.running} == {
        "a": 2,
        "b": 2,
        "alone": 1,
    }


async def test_it_serves_clients_and_one_supervisor_only(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    launcher = FakeLauncher()
    await make_supervisor(launcher=launcher, runtime_dir=place)
    async with aiobgw.attach(place) as client:
        handle = await client.register(WorkerSpec(name="w", target="a:b"))
        await handle.wait_for_ready()
        launcher["w"].finish()
        assert (await handle) is not None
    with pytest.raises(RuntimeError, match="one supervisor"):
        await make_supervisor(launcher=launcher)


async def test_abandoning_ends_what_never_ran() -> None:
    launcher = FakeLauncher()
    supervisor = aiobgw.Supervisor(launcher=launcher)
    await supervisor.__aenter__()
    handle = await supervisor.register(WorkerSpec(name="w", target="a:b"))
    supervisor.abandon()
    assert launcher.running == []
    with pytest.raises(aiobgw.SupervisorDied):
        await handle
