"""The stop protocol, clause by clause.

Shown elsewhere: SIGKILL after ``stop_timeout`` (test_handles, T48), all members of a group, and
whoever is left of it after an exit (test_exits), stops that become stricter (test_lifecycle).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Restart, WorkerSpec, WorkerState

from .. import live_targets, procs, targets
from ..conftest import MakeSupervisor, NewLatch

pytestmark = pytest.mark.anyio

FREEZER = Path("/sys/fs/cgroup/freezer")


async def up(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch, **fields: Any
) -> aiobgw.WorkerHandle:
    """Start a worker, and wait until it says that it is where it shall be."""
    latch = new_latch()
    fields.setdefault("name", "w")
    fields.setdefault("stop_timeout", 60)
    fields.setdefault("restart", Restart.NEVER)
    handle = await supervisor.register(WorkerSpec(latches={"up": latch}, **fields))
    await latch.wait()
    return handle


async def command(
    supervisor: aiobgw.Supervisor, script: str, out: Path, **fields: Any
) -> aiobgw.WorkerHandle:
    """Start a shell script that writes a line to *out* when its traps stand."""
    words = ["/bin/sh", "-c", script, "script", str(out)]
    fields.setdefault("stop_timeout", 60)
    handle = await supervisor.register(
        WorkerSpec(name="c", command=words, restart=Restart.NEVER, **fields)
    )
    await until(lambda: out.exists() and out.read_text().endswith("\n"))
    return handle


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def trap(name: str) -> str:
    return f"trap 'exit 3' {name}; echo up >\"$1\"; while :; do sleep 0.02; done"


async def test_who_ends_in_time_is_terminated_whatever_its_code(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    handles = [
        await up(supervisor, new_latch, name="plain", target=live_targets.end_with, args=(3,)),
        await up(
            supervisor, new_latch, name="async", target=live_targets.end_with_async, args=(3,)
        ),
        await command(supervisor, trap("TERM"), tmp_path / "default"),
        await command(supervisor, trap("HUP"), tmp_path / "hup", stop_signal=signal.SIGHUP),
    ]
    for handle in handles:
        handle.terminate()
        exit = await handle
        assert exit is not None
        told = (exit.kind, exit.code, exit.signal, exit.reason)
        assert told == (ExitKind.TERMINATED, 3, None, "terminated"), handle.name
        exit.check()


async def test_a_stop_signal_is_all_that_a_command_gets_until_its_time_is_over(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = 'trap "echo term >>$1" TERM; trap "echo int >>$1" INT; trap "echo cont >>$1" CONT;'
    script += ' echo up >"$1"; while :; do sleep 0.02; done'
    supervisor = await make_supervisor()
    handle = await command(supervisor, script, out, stop_signal=signal.SIGINT, stop_timeout=0.5)
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGKILL)
    assert "did not end within stop_timeout (0.5 s)" in exit.reason
    assert sorted(out.read_text().split()) == ["cont", "int", "up"]


async def test_who_is_stopped_hears_that_it_shall_end(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path
) -> None:
    """Without SIGCONT each of them would be killed after a minute."""
    supervisor = await make_supervisor()
    handles = [
        await up(supervisor, new_latch, name="plain", target=live_targets.end_with, args=(3,)),
        await up(
            supervisor, new_latch, name="async", target=live_targets.end_with_async, args=(3,)
        ),
        await command(supervisor, trap("TERM"), tmp_path / "up"),
    ]
    for handle in handles:
        procs.stop((await handle.wait_for_startup()).pid)
    async with asyncio.timeout(20):
        await supervisor.shutdown()
    for handle in handles:
        exit = handle.status().exit
        assert exit is not None
        assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 3), handle.name


async def test_sigkill_reaches_the_children_too(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, tmp_path: Path, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    out = tmp_path / "child"
    handle = await up(
        supervisor,
        new_latch,
        target=live_targets.ignore_term_with_a_child,
        args=(str(out),),
        stop_timeout=0.1,
    )
    child = int(out.read_text())
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGKILL)
    assert not procs.wait_dead({child})


async def test_all_stop_at_the_same_time(
    make_supervisor: MakeSupervisor, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(max_workers=20)
    fields: dict[str, Any] = {"target": live_targets.end_slowly, "args": (1.0,)}
    handles = [await up(supervisor, new_latch, name=f"w{n}", **fields) for n in range(20)]
    begun = time.monotonic()
    await supervisor.shutdown()
    assert 1.0 <= time.monotonic() - begun < 10.0  # one after the other: 20 s
    for handle in handles:
        exit = handle.status().exit
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED


# What cannot be killed: processes in a frozen cgroup of version 1.


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Have SIGKILL not end a process, for the time of the block."""
    path = FREEZER / f"aiobgw-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of the freezer (version 1) can be made here: {error}")
    try:
        (path / "cgroup.procs").write_text(str(pid))
        (path / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (path / "freezer.state").write_text("THAWED")
        procs.wait_dead({pid})
        path.rmdir()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on what cannot be killed earlier than after seconds."""
    monkeypatch.setattr("aiobgw._policy.ending.KILL_TIMEOUT", 0.3)
    monkeypatch.setattr("aiobgw._supervisor.closing.STEP_TIMEOUT", 0.3)


@pytest.mark.usefixtures("short")
async def test_what_cannot_be_killed_is_reported_by_pid_and_holds_the_stop_to_its_bound(
    make_supervisor: MakeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor()
    spec = WorkerSpec(name="stuck", target=targets.sleep, stop_timeout=0.2)
    stuck = await supervisor.register(spec)
    other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    pid = (await stuck.wait_for_startup()).pid or 0
    await other.wait_for_startup()
    with frozen(pid):
        async with asyncio.timeout(20):
            await supervisor.shutdown()
        assert procs.is_alive(pid)
        exit = await stuck
        assert exit is not None
        assert (exit.kind, exit.signal) == (ExitKind.UNKNOWN, None)
        assert exit.reason == f"SIGKILL does not end it (pid {pid})"
        exit = other.status().exit
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED
    assert not procs.wait_dead({pid})
    assert (logging.ERROR, f"worker stuck: SIGKILL does not end pid {pid}") in [
        (record.levelno, record.getMessage()) for record in caplog.records
    ]


@pytest.mark.usefixtures("short")
async def test_what_cannot_be_killed_keeps_its_slot_until_it_is_over_after_all(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    spec = WorkerSpec(name="stuck", target=targets.sleep, stop_timeout=0.1, restart_delay=0)
    stuck = await supervisor.register(spec)
    pid = (await stuck.wait_for_startup()).pid or 0
    with frozen(pid):
        stuck.restart()
        await until(lambda: stuck.status().reason == "SIGKILL does not end it")
        status = stuck.status()
        assert (status.state, status.pid) == (WorkerState.STOPPING, pid)
    async with asyncio.timeout(20):
        exit = await stuck.wait_for_exit()
    assert (exit.incarnation, exit.signal, exit.kind) == (1, signal.SIGKILL, ExitKind.FAILED)
