"""Who uses too much memory is ended and restarted, and who is old is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import aiobgw
from aiobgw import ExitKind, Restart, WorkerSpec, WorkerState
from aiobgw._policy.happenings import Happening, OverLimit
from aiobgw._process.watcher import Watcher
from aiobgw._supervisor.memory import INTERVAL, PER_TURN, Memory

from .. import live_targets, procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def test_who_has_too_much_memory_is_ended_as_a_failure_and_restarted(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    watcher = supervisor._core.launcher.watcher  # type: ignore[union-attr]
    assert not watcher.has_timer("memory")
    limit = {"memory_max": 128 * MIB, "restart_delay": 0}
    thin = await supervisor.register(WorkerSpec(name="thin", target=targets.sleep, **limit))
    events = supervisor.events()
    fat = await supervisor.register(
        WorkerSpec(name="fat", target=live_targets.hold, args=(160 * MIB,), **limit)
    )
    async for event in events:
        if isinstance(event, aiobgw.Exited):
            break
    exit = event.status.exit
    assert (event.status.name, exit.kind, exit.code) == ("fat", ExitKind.FAILED, 1)
    assert exit.reason.startswith("resident memory ")
    assert exit.reason.endswith(f" bytes is above memory_max ({128 * MIB})")
    assert int(exit.reason.split()[2]) > 160 * MIB

    async for event in events:
        if isinstance(event, aiobgw.Started):
            break
    assert (event.status.name, event.status.incarnation, event.status.restarts) == ("fat", 2, 1)
    assert (thin.status().state, thin.status().incarnation) == (WorkerState.RUNNING, 1)

    for handle in (thin, fat):
        handle.kill()
        await handle
    watcher._timers["memory"] = (0.0, watcher._timers["memory"][1])  # the second is over
    await (await supervisor.register(WorkerSpec(name="turn", target=targets.nothing)))
    assert not watcher.has_timer("memory")


class Launch:
    """A process that is this one, if it is still there."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there

    def signal(self, signum: int) -> bool:
        return self.is_there


class Worker:
    """As much of a worker as is looked at."""

    def __init__(self, launch: Launch, limit: int | None = 1, pid: int | None = None) -> None:
        self.spec = WorkerSpec(name="w", target="a:b", memory_max=limit)
        self.launch = launch
        self.pid = pid or os.getpid()


def look(watcher: Watcher, after: float) -> None:
    watcher.run_timers(time.monotonic() + after)


def test_many_are_looked_at_some_in_each_turn_and_all_of_them_every_second() -> None:
    watcher, told = Watcher(), []
    memory = Memory(watcher, lambda worker, what: told.append(worker))
    workers = [Worker(Launch()) for _ in range(2 * PER_TURN + 5)]
    for worker in workers:
        memory.watch(worker)  # type: ignore[arg-type]
    look(watcher, 0)
    assert told == []
    for _ in range(2):
        for expected in (PER_TURN, PER_TURN, 5):
            assert watcher.has_timer("memory")
            look(watcher, INTERVAL)
            assert len(told) == expected
            told.clear()
            memory._next_at = 0.0
    watcher.close()


def test_what_is_not_the_worker_any_more_is_neither_judged_nor_looked_at_again() -> None:
    """Race: the pid was another process's when it was read."""
    watcher, told = Watcher(), []

    def post(worker: object, happening: Happening) -> None:
        assert isinstance(happening, OverLimit)
        told.append(worker)

    memory = Memory(watcher, post)
    gone = Worker(Launch(is_there=False))
    nobody = Worker(Launch(), pid=2**22 + 7)
    next_one = Worker(Launch())
    without = Worker(Launch(), limit=None)
    thin = Worker(Launch(), limit=2**50)
    fat = Worker(Launch())
    for worker in (gone, nobody, next_one, without, thin, fat):
        memory.watch(worker)  # type: ignore[arg-type]
    next_one.launch = Launch()
    look(watcher, INTERVAL)
    assert told == [fat]
    assert list(memory._watched) == [thin, fat]
    watcher.close()


def test_psutil_is_not_imported_by_a_supervisor_that_needs_none() -> None:
    source = """
import asyncio, sys, aiobgw
async def main():
    async with aiobgw.Supervisor(name="lean", spares=0) as supervisor:
        spec = aiobgw.WorkerSpec(name="w", target="tests.targets:nothing")
        await (await supervisor.register(spec))
asyncio.run(main())
assert "psutil" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", source], cwd=procs.ROOT, check=True, timeout=30)


async def test_the_old_are_replaced_which_counts_for_nothing_and_others_end(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    events = supervisor.events()
    age = {"target": targets.sleep, "max_age": 0.2, "max_age_jitter": 0.5}
    handle = await supervisor.register(WorkerSpec(name="again", max_restarts=0, **age))
    once = await supervisor.register(WorkerSpec(name="once", restart=Restart.NEVER, **age))
    exit = await once
    assert exit is not None
    assert (exit.kind, exit.reason) == (ExitKind.TERMINATED, "max_age (0.2 s) reached")
    async for event in events:
        if isinstance(event, aiobgw.Started) and event.status.incarnation == 3:
            break
    status = handle.status()
    assert status.restarts == 0
    assert status.exit is not None
    assert (status.exit.kind, status.exit.reason) == (exit.kind, exit.reason)
