"""Groups of real processes: what OTP documents of its supervisors, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    ExitKind,
    Latch,
    Readiness,
    Restart,
    Strategy,
    WorkerHandle,
    WorkerSpec,
    WorkerState,
)

from .. import order_targets, procs, targets
from ..conftest import MakeSupervisor, NewLatch

pytestmark = pytest.mark.anyio

BOUND = 30.0


async def member(
    supervisor: aiobgw.Supervisor, name: str, out: Path, **fields: Any
) -> WorkerHandle:
    """Register a member of the group "g" that writes down its starts and ends."""
    spec: dict[str, Any] = {
        "target": order_targets.trace,
        "args": (str(out),),
        "group": "g",
        "ready": Readiness.NOTIFY,
        "restart_delay": 0,
        "restart_jitter": 0,
    }
    return await supervisor.register(WorkerSpec(name=name, **(spec | fields)))


def pid_of(handle: WorkerHandle) -> int:
    pid = handle.status().pid
    assert pid is not None
    return pid


async def ready_again(events: aiobgw.EventStream, name: str, incarnation: int) -> None:
    async with asyncio.timeout(BOUND):
        async for event in events:
            if isinstance(event, aiobgw.Ready):
                status = event.status
                if (status.name, status.incarnation) == (name, incarnation):
                    return


async def test_members_start_from_first_to_last_when_ready_and_end_from_last_to_first(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path
) -> None:
    """OTP's order_of_children; the last one minds no SIGTERM."""
    supervisor = await make_supervisor()
    out = tmp_path / "trace"
    go = {name: new_latch() for name in "abc"}
    up = new_latch()
    handles = {
        name: await member(supervisor, name, out, latches={"go": go[name]}) for name in "abc"
    }
    deaf = await supervisor.register(
        WorkerSpec(
            name="d", target=targets.ignore_term, group="g", latches={"up": up}, stop_timeout=0.2
        )
    )
    async with asyncio.timeout(BOUND):
        for name, follower in zip("abc", "bcd", strict=True):
            await handles[name].wait_for_startup()
            waiting = supervisor.get(follower)
            assert waiting is not None
            assert waiting.status().state is WorkerState.NOT_STARTED
            assert waiting.status().reason == f"waits for '{name}' of its group 'g'"
            go[name].set()
            await handles[name].wait_for_ready()
        await up.wait()
    events = supervisor.events()
    await supervisor.shutdown()
    assert out.read_text().split() == ["+a", "+b", "+c", "-c", "-b", "-a"]
    ends = [event.status async for event in events if isinstance(event, aiobgw.Exited)]
    assert [status.name for status in ends] == ["d", "c", "b", "a"]
    kinds = [status.exit.kind for status in ends if status.exit is not None]
    assert kinds == [ExitKind.FAILED] + [ExitKind.TERMINATED] * 3
    assert deaf.status().reason == "killed: it did not end within stop_timeout (0.2 s)"


@pytest.mark.parametrize(
    ("strategy", "trace"),
    [
        (Strategy.ONE_FOR_ONE, "+b"),
        (Strategy.ONE_FOR_ALL, "-c -t -a +a +b +c"),
        (Strategy.REST_FOR_ONE, "-c -t +b +c"),
    ],
)
async def test_a_killed_member_takes_down_whom_its_group_says(
    make_supervisor: MakeSupervisor, tmp_path: Path, strategy: Strategy, trace: str
) -> None:
    supervisor = await make_supervisor(groups={"g": strategy})
    out = tmp_path / "trace"
    a, b = [await member(supervisor, name, out) for name in "ab"]
    temporary = await member(supervisor, "t", out, restart=Restart.NEVER)
    c = await member(supervisor, "c", out)
    async with asyncio.timeout(BOUND):
        await c.wait_for_ready()
    out.unlink()
    events = supervisor.events()
    os.kill(pid_of(b), signal.SIGKILL)
    one = strategy is Strategy.ONE_FOR_ONE
    await ready_again(events, "b" if one else "c", 2)
    assert out.read_text().split() == trace.split()
    assert [handle.status().restarts for handle in (a, b, c)] == [0, 1, 0]
    if not one:
        exit = await temporary
        assert exit is not None
        assert exit.reason == "its group 'g' restarts: worker 'b' crashed by SIGKILL"


async def test_members_that_die_in_one_instant_have_one_culprit(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(groups={"g": Strategy.ONE_FOR_ALL})
    handles = [await member(supervisor, name, tmp_path / "trace") for name in "abcd"]
    async with asyncio.timeout(BOUND):
        await handles[-1].wait_for_ready()
    pids = {pid_of(handle) for handle in handles}
    events = supervisor.events()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not procs.wait_dead(pids)  # before the supervisor's next turn
    await ready_again(events, "d", 2)
    assert sum(handle.status().restarts for handle in handles) == 1


async def test_members_that_die_while_they_are_ended_are_started_once(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path
) -> None:
    """One that minds no SIGTERM keeps its group waiting; the others are killed meanwhile."""
    supervisor = await make_supervisor(groups={"g": Strategy.ONE_FOR_ALL})
    out = tmp_path / "trace"
    handles = [await member(supervisor, name, out) for name in "ab"]
    up: Latch = new_latch()
    deaf = WorkerSpec(
        name="z", target=targets.ignore_term, group="g", latches={"up": up}, stop_timeout=60
    )
    handles.append(await supervisor.register(deaf))
    async with asyncio.timeout(BOUND):
        await up.wait()
        up.reset()
        events = supervisor.events()
        os.kill(pid_of(handles[0]), signal.SIGKILL)
        async for event in events:
            if isinstance(event, aiobgw.Restarting):
                break
        assert "waits for the end of 'z'" in handles[1].status().reason
        os.kill(pid_of(handles[1]), signal.SIGKILL)
        async for event in events:
            if isinstance(event, aiobgw.Restarting):
                break
        assert out.read_text().split() == ["+a", "+b"], "nobody starts before all have ended"
        os.kill(pid_of(handles[2]), signal.SIGKILL)
        await up.wait()
    assert out.read_text().split() == ["+a", "+b", "+a", "+b"]
    assert [handle.status().restarts for handle in handles] == [1, 0, 0]
    handles[2].kill()


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL])
async def test_members_that_end_by_themselves_while_all_are_stopped_hold_up_nothing(
    make_supervisor: MakeSupervisor, tmp_path: Path, strategy: Strategy
) -> None:
    """OTP's sup_stop_race."""
    supervisor = await make_supervisor(groups={"g": strategy})
    handles = [await member(supervisor, f"w{n}", tmp_path / "trace") for n in range(8)]
    async with asyncio.timeout(BOUND):
        await handles[-1].wait_for_ready()
        pids = [pid_of(handle) for handle in handles]
        stopping = asyncio.ensure_future(supervisor.shutdown())
        await asyncio.sleep(0)
        for pid in pids[::2]:
            os.kill(pid, signal.SIGKILL)
        await stopping
    assert not procs.wait_dead(set(pids))
    assert [handle.status().incarnation for handle in handles] == [1] * 8


async def test_what_is_stopped_while_it_waits_for_a_dependency_leaves_nothing_behind(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path
) -> None:
    """process-compose#530: there, a copy that nobody knew of was started afterwards."""
    supervisor = await make_supervisor()
    out = tmp_path / "trace"
    go = new_latch()
    first = await member(supervisor, "a", out, latches={"go": go}, group=None)
    waits = [await member(supervisor, name, out, after=["a"], group=None) for name in "bcd"]
    async with asyncio.timeout(BOUND):
        await first.wait_for_startup()
        waits[0].terminate()
        assert await waits[0] is None
        waits[1].kill()
        assert await waits[1] is None
        stopping = asyncio.ensure_future(supervisor.shutdown())
        await asyncio.sleep(0)  # the stop has begun
        go.set()  # what it waited for comes right then
        await stopping
    written = out.read_text().split() if out.exists() else []  # "a" may have been too early
    assert set(written) <= {"+a", "-a"}
    assert [handle.status().incarnation for handle in waits] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_groups_whose_members_are_killed_all_the_time_come_to_rest(
    make_supervisor: MakeSupervisor, tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    groups = {strategy.value: strategy for strategy in Strategy}
    supervisor = await make_supervisor(groups=groups, spares=4)
    handles = [
        await member(
            supervisor,
            f"{group}{number}",
            tmp_path / group,
            group=group,
            restart=random.choice([Restart.ALWAYS, Restart.ON_FAILURE]),
            restart_delay=random.choice([0, 0.02]),
            restart_backoff=1,
            max_restarts=None,
        )
        for group in groups
        for number in range(4)
    ]
    killed = 0
    give_up = asyncio.get_running_loop().time() + 10
    while asyncio.get_running_loop().time() < give_up:
        handle = random.choice(handles)
        match random.randrange(12):
            case 0:
                handle.restart()
            case _ if handle.status().pid is not None:
                handle.signal(signal.SIGKILL)
                killed += 1
        await asyncio.sleep(random.choice([0, 0.01, 0.05]))
    assert killed > 100
    async with asyncio.timeout(BOUND):
        for handle in handles:
            await handle.wait_for_ready()
        for handle in handles:  # the last of a group is ready only when all are
            status = await handle.wait_for_ready()
            assert status.state is WorkerState.RUNNING
        pids = {pid_of(handle) for handle in handles}
        assert len(pids) == len(handles)
        await supervisor.shutdown()
    for group in groups:
        lines = (tmp_path / group).read_text().split()
        assert lines[-4:] == [f"-{group}{number}" for number in (3, 2, 1, 0)]
    assert not procs.wait_dead(pids)
