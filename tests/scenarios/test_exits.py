"""How workers end, and that nobody misses it: both ways of learning it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Latch, Restart, WorkerSpec, WorkerState

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def register(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("restart", Restart.NEVER)
    return await supervisor.register(WorkerSpec(**options))


CASES: list[tuple[dict[str, Any], ExitKind, int | None, int | None]] = [
    ({"target": targets.nothing}, ExitKind.CLEAN, 0, None),
    ({"target": targets.nothing_async}, ExitKind.CLEAN, 0, None),
    ({"target": targets.fail}, ExitKind.FAILED, 1, None),
    ({"target": targets.fail_async}, ExitKind.FAILED, 1, None),
    ({"target": targets.exit_with, "args": (0,)}, ExitKind.CLEAN, 0, None),
    ({"target": targets.exit_with, "args": (3,)}, ExitKind.FAILED, 3, None),
    ({"target": targets.exit_rudely, "args": (0,)}, ExitKind.CLEAN, 0, None),
    ({"target": targets.exit_rudely, "args": (1,)}, ExitKind.FAILED, 1, None),
    ({"target": targets.exit_rudely, "args": (3,)}, ExitKind.CRASHED, 3, None),
    ({"target": targets.kill_self, "args": (9,)}, ExitKind.CRASHED, None, 9),
    ({"target": targets.kill_self, "args": (11,)}, ExitKind.CRASHED, None, 11),
    ({"command": ["/bin/true"]}, ExitKind.CLEAN, 0, None),
    ({"command": ["/bin/sh", "-c", "exit 7"]}, ExitKind.FAILED, 7, None),
    ({"command": ["/bin/sh", "-c", "kill -9 $$"]}, ExitKind.CRASHED, None, 9),
]


async def test_exits_mean_what_the_table_says(make_supervisor: MakeSupervisor, reaper: str) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    assert supervisor.status().reaper == reaper
    handles = [await register(supervisor, **options) for options, *_ in CASES]
    for handle, (options, kind, code, signum) in zip(handles, CASES, strict=True):
        await handle.wait_for_startup()
        exit = await handle
        assert exit is not None
        assert (exit.kind, exit.code, exit.signal) == (kind, code, signum), options


async def test_the_exception_of_a_worker_comes_back_as_text(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    exit = await (await register(supervisor, target=targets.fail, args=("the reason",)))
    assert exit is not None
    assert "ValueError: the reason" in (exit.error or "")
    with pytest.raises(aiobgw.WorkerFailed, match="failed with exit code 1") as caught:
        exit.check()
    assert "the reason" in caught.value.__notes__[0]


async def test_two_hundred_exits_in_one_instant_are_all_told_once_and_rightly(
    make_supervisor: MakeSupervisor, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper, max_workers=200)
    go = Latch()
    events = supervisor.events()
    handles = [
        await register(
            supervisor,
            name=f"w{n}",
            target=targets.wait_then_exit,
            args=(n % 256,),
            latches={"go": go},
        )
        for n in range(200)
    ]
    for handle in handles:
        await handle.wait_for_startup()
    go.set()
    exits = await asyncio.gather(*handles)
    assert [exit.code for exit in exits if exit is not None] == [n % 256 for n in range(200)]
    await supervisor.shutdown()
    told = [event async for event in events if isinstance(event, aiobgw.Exited)]
    assert sorted(event.status.name for event in told) == sorted(f"w{n}" for n in range(200))


async def test_the_rest_of_a_group_goes_with_its_leader(
    make_supervisor: MakeSupervisor, tmp_path: Path, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    out = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {out}"
    for options in (
        {"command": ["/bin/sh", "-c", script]},
        {"target": leave_a_child, "args": (str(out),)},
    ):
        await (await register(supervisor, **options))
        left = int(out.read_text())
        assert not procs.wait_dead({left}, 1.0)
        out.unlink()


def leave_a_child(path: str) -> None:
    """Start a subprocess and forget it."""
    import subprocess

    child = subprocess.Popen(["/bin/sleep", "1000"])
    targets.write(path, str(child.pid))
    child.returncode = 0  # no warning about it


async def test_a_worker_reads_the_right_codes_of_its_own_children(
    make_supervisor: MakeSupervisor, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    exit = await (await register(supervisor, target=run_a_child))
    assert exit is not None
    exit.check()


def run_a_child() -> None:
    import subprocess

    assert subprocess.run(["/bin/sh", "-c", "exit 5"], check=False).returncode == 5


async def test_statuses_are_right_after_the_zygotes_death(
    make_supervisor: MakeSupervisor, reaper: str
) -> None:
    """This process is the new parent, a subreaper that never reaps."""
    supervisor = await make_supervisor(reaper=reaper, max_workers=51)
    go = Latch()
    handles = [
        await register(
            supervisor,
            name=f"w{n}",
            target=targets.wait_then_exit,
            args=(n,),
            latches={"go": go},
        )
        for n in range(50)
    ]
    for handle in handles:
        await handle.wait_for_startup()
    events = supervisor.events()
    procs.kill(supervisor.status().zygote_pid)
    async with asyncio.timeout(2):  # a start asked meanwhile succeeds
        await (await register(supervisor, name="late", target=targets.nothing))
    assert isinstance(await anext(events), aiobgw.Registered | aiobgw.ZygoteRestarted)
    assert all(handle.status().state is WorkerState.RUNNING for handle in handles)

    go.set()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    exits = await asyncio.gather(*handles)
    assert [exit.code for exit in exits if exit is not None] == list(range(50))
    await asyncio.sleep(0.3)  # a spin would show in the processor time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - used < 0.25


async def test_a_zygote_that_dies_again_and_again_loses_no_start(
    make_supervisor: MakeSupervisor, tmp_path: Path, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper, max_workers=200)
    out = tmp_path / "runs"
    handles = []
    for number in range(120):
        handles.append(
            await register(
                supervisor, name=f"w{number}", target=targets.write, args=(str(out), str(number))
            )
        )
        zygote = supervisor.status().zygote_pid
        if number % 30 == 15 and zygote is not None:
            os.kill(zygote, signal.SIGKILL)
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        exits = await asyncio.gather(*handles)
    ran = sorted(map(int, out.read_text().split()))
    assert ran == sorted(set(ran)), "a start happened twice"
    clean = [n for n, exit in enumerate(exits) if exit is not None and exit.ok]
    assert ran == clean
    assert len(clean) >= 110  # three zygotes in a row may die with one order in hand


async def test_the_hosts_own_subprocess_gets_its_right_code(
    make_supervisor: MakeSupervisor, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper, spares=2)
    code = "import sys; sys.exit(int(sys.argv[1]))"
    for number in range(1, 6):
        theirs = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(number))
        ours = await register(supervisor, target=targets.exit_with, args=(number + 10,))
        exit = await ours
        assert exit is not None
        assert exit.code == number + 10
        assert await theirs.wait() == number


async def test_a_host_that_steals_statuses_harms_nobody(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    handle = await register(supervisor, target=targets.exit_with, args=(4,))
    procs.kill(supervisor.status().zygote_pid)
    waiting = asyncio.ensure_future(handle.wait_for_shutdown())
    while not waiting.done():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - it is what we test
        await asyncio.sleep(0)
    exit = await waiting
    assert exit is not None
    assert exit.code == 4


async def test_a_kernel_without_pidfd_statuses_is_found_out_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiobgw._process.exits.reaped_status", lambda pidfd: None)
    async with aiobgw.Supervisor(name="old", spares=0) as supervisor:
        assert supervisor.status().reaper == "zygote"
        exit = await (await register(supervisor, target=targets.exit_with, args=(4,)))
        assert exit is not None
        assert exit.code == 4
    with pytest.raises(aiobgw.Unsupported, match="does not keep exit statuses"):
        await aiobgw.Supervisor(name="old", reaper="kernel").__aenter__()


async def test_a_thousand_cycles_leave_no_descriptor_no_zombie_and_no_memory(
    make_supervisor: MakeSupervisor, anyio_backend: Any
) -> None:
    supervisor = await make_supervisor()

    async def cycles(count: int) -> None:
        for _ in range(count):
            await (await register(supervisor, target=targets.nothing))

    await cycles(100)
    fds, memory = len(procs.open_fds()), _resident()
    await cycles(1000)
    assert len(procs.open_fds()) == fds
    assert _resident() - memory < 1_000_000
    zygote = supervisor.status().zygote_pid
    assert not [pid for pid in procs.children(zygote) if procs.state(pid) == "Z"]
    assert len(procs.open_fds()) == fds


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
