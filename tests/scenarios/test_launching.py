"""Launching: what a worker gets, and what it does not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import Flags, Latch, Restart, WorkerSpec, WorkerState
from aiobgw._policy.happenings import Consider, GroupEnds

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def run(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.ExitStatus:
    options.setdefault("name", "worker")
    options.setdefault("restart", Restart.NEVER)
    exit = await (await supervisor.register(WorkerSpec(**options)))
    assert exit is not None
    return exit


async def spares_are_there(supervisor: aiobgw.Supervisor, count: int) -> None:
    """Wait until spares are ready; no event tells of them."""
    while supervisor.status().spares < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def has_a_process(handle: aiobgw.WorkerHandle) -> None:
    while handle.status().pid is None:  # noqa: ASYNC110 - before it starts, no event tells
        await asyncio.sleep(0.01)


def listed(path: Path) -> list[str]:
    """Return what a worker found open, but for the listing's own descriptor."""
    lines = [line.split(" ", 1)[1] for line in path.read_text().splitlines() if " " in line]
    return [what for what in lines if not what.startswith(("/proc/", "/dev/pts"))]


@pytest.mark.parametrize("spares", [0, 1])
async def test_a_plain_worker_has_its_three_streams_its_channel_and_its_lifeline(
    make_supervisor: MakeSupervisor, tmp_path: Path, spares: int
) -> None:
    supervisor = await make_supervisor(spares=spares)
    latch = Latch()
    os.set_inheritable(latch.fileno(), True)  # an inheritable descriptor of the host
    (await run(supervisor, target=targets.fds, args=(str(tmp_path / "fds"),))).check()
    found = listed(tmp_path / "fds")
    assert len(found) <= 5, found
    assert [what.split(":")[0] for what in found[3:]] == ["socket", "pipe"] or [
        what.split(":")[0] for what in found[3:]
    ] == ["pipe", "socket"]


async def test_what_a_spec_names_is_added_and_nothing_else(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    (
        await run(
            supervisor,
            target=targets.fds,
            args=(str(tmp_path / "fds"),),
            latches={"go": Latch(), "stop": Latch()},
            flags=Flags.SHMEM_ACCESS,
        )
    ).check()
    kinds = sorted(what.split(":")[0].split(" ")[0] for what in listed(tmp_path / "fds")[3:])
    assert kinds == ["anon_inode", "anon_inode", "pipe", "socket", "socket"]


async def test_an_async_worker_adds_only_its_event_loop(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    (await run(supervisor, target=targets.fds_async, args=(str(tmp_path / "fds"),))).check()
    kinds = sorted(what.split(":")[0] for what in listed(tmp_path / "fds")[3:])
    assert kinds == ["anon_inode", "pipe", "socket", "socket", "socket"]


async def test_a_command_has_its_three_streams_and_its_lifeline(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    out = tmp_path / "fds"
    script = f"ls -l /proc/self/fd > {out}; grep -E 'Sig(Ign|Blk)' /proc/self/status >> {out}"
    (await run(supervisor, command=["/bin/sh", "-c", script])).check()
    text = out.read_text()
    assert "socket:" not in text
    assert "memfd" not in text
    assert text.count("pipe:") <= 1 + sum("pipe:" in what for what in _outputs())
    assert "0 -> /dev/null" in text
    assert "SigBlk:\t0000000000000000" in text
    # 32 and 33 are glibc's own; a parent of ours may have them ignored, and nobody can reset them.
    ignored = int(text.partition("SigIgn:\t")[2].split()[0], 16)
    assert not ignored & ~(0b11 << 31)


def _outputs() -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)]


async def test_a_worker_imports_neither_the_supervisor_nor_what_it_does_not_need(
    tmp_path: Path,
) -> None:
    out = tmp_path / "lean"
    async with aiobgw.Supervisor(name="test", preload_asyncio=False, spares=0) as supervisor:
        (await run(supervisor, target=targets.modules, args=(str(out),))).check()
    found = set(out.read_text().split())
    ours = {name for name in found if name.startswith("aiobgw.")}
    assert not {name for name in ours if "_supervisor" in name or "_policy" in name}
    assert not found & {"aiohttp", "click", "msgspec", "uvloop", "psutil", "setproctitle"}


async def test_a_lean_plain_worker_imports_no_asyncio(tmp_path: Path) -> None:
    out = tmp_path / "lean"
    code = "import sys; open(sys.argv[-1], 'w').write(' '.join(sys.modules))"
    spec = WorkerSpec(
        name="lean", target="builtins:exec", args=(code.replace("sys.argv[-1]", repr(str(out))),)
    )
    # Not the fixtures' supervisor, which preloads what tests need.
    async with aiobgw.Supervisor(name="test", preload_asyncio=False, spares=0) as supervisor:
        exit = await (await supervisor.register(spec))
    assert exit is not None
    exit.check()
    found = set(out.read_text().split())
    assert not found & {"asyncio", "logging", "threading", "dataclasses", "typing", "inspect"}
    assert len(found) < 110, sorted(found)


async def test_arguments_go_to_the_worker_whatever_their_size(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    for size in (0, 8_000, 9_000, 1_000_000):
        out = tmp_path / str(size)
        exit = await run(
            supervisor, target=targets.echo, args=(str(out), "x" * size), kwargs={"n": size}
        )
        exit.check()
        assert out.read_text() == f"(({'x' * size!r},), {{'n': {size}}})\n"


async def test_large_arguments_reach_every_incarnation(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    out = tmp_path / "out"
    handle = await supervisor.register(
        WorkerSpec(
            name="again",
            target=targets.echo,
            args=(str(out), "x" * 20_000),
            restart=Restart.ALWAYS,
            restart_delay=0,
        )
    )
    while handle.status().incarnation < 3:
        await handle.wait_for_exit()
        await asyncio.sleep(0)
    handle.terminate()
    await handle
    assert out.read_text().count("x" * 20_000) >= 2


async def test_arguments_that_are_too_large_or_cannot_be_pickled_use_nothing_up(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=1, max_payload=10_000)
    with pytest.raises(aiobgw.PayloadTooLarge, match="10000 are allowed") as caught:
        await supervisor.register(WorkerSpec(name="big", target=targets.echo, args=("x" * 20_000,)))
    assert caught.value.size > 20_000
    with pytest.raises(aiobgw.InvalidSpec, match="cannot be pickled"):
        await supervisor.register(WorkerSpec(name="odd", target=targets.echo, args=(lambda: None,)))
    (await run(supervisor, target=targets.nothing)).check()


class Explosive:
    """Unpickles into an action: only the worker may do that."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (targets.write, (self.path,))


async def test_only_the_worker_unpickles_arguments(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    out, echo = tmp_path / "pids", tmp_path / "echo"
    exit = await run(supervisor, target=targets.echo, args=(str(echo), Explosive(str(out))))
    exit.check()
    pids = out.read_text().split()
    assert len(pids) == 1
    assert pids != [str(os.getpid())]


async def test_a_target_that_cannot_be_found_or_fed_never_starts_and_says_why(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    for target, why in (
        ("no.such.module:func", "ModuleNotFoundError"),
        ("tests.targets:no_such_function", "AttributeError"),
    ):
        handle = await supervisor.register(
            WorkerSpec(name="lost", target=target, restart=Restart.NEVER)
        )
        with pytest.raises(aiobgw.NeverStarted, match="failed with exit code 1") as caught:
            await handle.wait_for_startup()
        assert why in (caught.value.error or "")
        assert caught.value.next_start_at is None


async def test_a_command_that_does_not_exist_never_starts_and_says_when_it_is_tried_again(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    handle = await supervisor.register(
        WorkerSpec(name="none", command=["/no/such/program"], restart_delay=100)
    )
    with pytest.raises(aiobgw.NeverStarted, match="No such file") as caught:
        await handle.wait_for_startup()
    assert caught.value.next_start_at is not None
    with pytest.raises(aiobgw.NeverStarted):
        await handle.wait_for_startup()  # asked late: told at once
    assert handle.status().state is WorkerState.BACKOFF


async def test_a_latch_of_the_registrant_wakes_a_worker(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    go, done = Latch(), Latch()
    handle = await supervisor.register(
        WorkerSpec(name="relay", target=relay, latches={"go": go, "done": done})
    )
    await handle.wait_for_startup()
    assert not done.is_set()
    go.set()
    await done.wait()
    exit = await handle
    assert exit is not None
    exit.check()


def relay() -> None:
    """Answer one latch with another."""
    latches = aiobgw.current_worker().latches
    latches["go"].wait_blocking()
    latches["done"].set()


async def test_a_spare_that_dies_with_its_order_in_hand_was_no_incarnation(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(spares=1)
    await spares_are_there(supervisor, 1)
    launcher = supervisor._core.launcher
    assert launcher is not None
    (spare,) = [child.pid for child in launcher.spares._waiting]
    procs.stop(spare)
    out = tmp_path / "pids"
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.write, args=(str(out),), restart=Restart.NEVER)
    )
    assert handle.status().pid == spare
    os.kill(spare, signal.SIGKILL)
    exit = await handle
    assert exit is not None
    exit.check()
    assert exit.incarnation == 1
    assert len(out.read_text().split()) == 1
    assert out.read_text().split() != [str(spare)]


async def test_spares_that_are_killed_all_the_time_lose_no_start(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(spares=4)
    out = tmp_path / "runs"
    handles = []
    for number in range(60):
        for spare in procs.children(supervisor.status().zygote_pid):
            if procs.title(spare).endswith("spare") and number % 2:
                os.kill(spare, signal.SIGKILL)
        handles.append(
            await supervisor.register(
                WorkerSpec(
                    name=f"w{number}",
                    target=targets.write,
                    args=(str(out), str(number)),
                    restart=Restart.NEVER,
                )
            )
        )
        await handles[-1]
    exits = [handle.status().exit for handle in handles]
    assert all(exit is not None for exit in exits)
    clean = [n for n, exit in enumerate(exits) if exit is not None and exit.ok]
    assert sorted(map(int, out.read_text().split())) == clean


@pytest.mark.parametrize("where", ["after_fork", "before_hello"])
async def test_children_that_die_before_hello_are_launched_again_three_times_at_most(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("AIOBGW_INJECT", f"{where}:die@{token}")
    supervisor = await make_supervisor()
    token.touch()
    exit = await run(supervisor, target=targets.nothing)
    exit.check()
    assert not token.exists()


async def test_a_launch_that_never_reaches_a_process_ends_as_unknown(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = await make_supervisor()
    monkeypatch.setenv("AIOBGW_INJECT", "after_fork:die")
    procs.kill(supervisor.status().zygote_pid)  # the next one is armed
    events = supervisor.events()
    async for event in events:
        if isinstance(event, aiobgw.ZygoteRestarted):
            break
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.nothing, restart=Restart.NEVER)
    )
    with pytest.raises(aiobgw.NeverStarted, match="3 launches reached no process"):
        await handle.wait_for_startup()
    exit = await handle
    assert exit is not None
    assert exit.kind is aiobgw.ExitKind.UNKNOWN


SCRIPT = """
import asyncio, os, sys
import aiobgw

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x

def show(point):
    with open(sys.argv[-1], "a") as file:
        file.write(f"{point.x} {point == Point(point.x)} {__name__}\\n")

async def main():
    async with aiobgw.Supervisor(name="main", spares=0) as supervisor:
        spec = aiobgw.WorkerSpec(name="show", target=show, args=(Point(7),))
        exit = await (await supervisor.register(spec))
        exit.check()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["script", "module", "zipapp", "folder"])
def test_functions_of_the_main_script_run_in_workers(tmp_path: Path, how: str) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__main__.py").write_text(SCRIPT)
    out = tmp_path / "out"
    archive = tmp_path / "app.pyz"
    zipapp.create_archive(package, archive)
    arguments = {
        "script": [str(package / "__main__.py")],
        "module": ["-m", "pkg"],
        "zipapp": [str(archive)],
        "folder": [str(package)],
    }[how]
    subprocess.run(
        [sys.executable, *arguments, str(out)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(procs.ROOT)},
        check=True,
        timeout=60,
    )
    assert out.read_text() == "7 True __mp_main__\n"


async def test_numpy_preloaded_in_the_zygote_works_in_a_worker(
    make_supervisor: MakeSupervisor,
) -> None:
    pytest.importorskip("numpy")
    supervisor = await make_supervisor(preload=("numpy",))
    for _ in range(3):
        (await run(supervisor, target=multiply)).check()


def multiply() -> None:
    """Do what hangs in a child that was made by a raw clone."""
    import numpy

    matrix = numpy.ones((300, 300))
    assert (matrix @ matrix)[0, 0] == 300


async def test_a_debugger_has_time_to_attach_before_the_target_is_imported(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOBGW_START_DELAY", "3600")
    supervisor = await make_supervisor()
    handle = await supervisor.register(WorkerSpec(name="slow", target=targets.nothing))
    await has_a_process(handle)
    assert handle.status().state is WorkerState.STARTING
    handle.terminate()
    with pytest.raises(aiobgw.NeverStarted, match="terminated"):
        await handle.wait_for_startup()


@pytest.mark.skipif(os.getuid() != 0, reason="needs the right to become another user")
async def test_a_worker_of_another_user_has_its_groups_and_no_way_back(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o777)
    for folder in tmp_path.parents[:2]:
        os.chmod(folder, 0o755)
    supervisor = await make_supervisor()
    out = tmp_path / "ids"
    script = f"id -u > {out}; id -G >> {out}"
    (await run(supervisor, command=["/bin/sh", "-c", script], user="nobody")).check()
    assert out.read_text().split() == ["65534", "65534"]
    exit = await run(supervisor, target=targets.nothing, user="no-such-user")
    assert "cannot become user" in (exit.error or "")


@pytest.mark.parametrize("kind", ["command", "target"])
async def test_of_a_launch_that_is_taken_back_nothing_runs_on(
    make_supervisor: MakeSupervisor, tmp_path: Path, reaper: str, kind: str
) -> None:
    """Taken back before anybody has heard its hello, which it had said long ago."""
    supervisor = await make_supervisor(spares=0, reaper=reaper)
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    if kind == "command":
        command = ["sh", "-c", f"echo $$ >{pids}; exec sleep 1000"]
        what: dict[str, Any] = {"command": command}
    else:
        what = {"target": targets.write_pid_and_sleep, "args": (str(pids),)}
    handle = await supervisor.register(WorkerSpec(name="w", **what))
    first = int(pids.read_text())  # the host's loop does not run meanwhile
    core = supervisor._core
    worker = core.registry.newest("w")
    assert worker is not None and core.loop is not None and handle.status().pid is None
    core.loop.post(worker, GroupEnds("it is taken back", for_good=False))
    assert procs.wait_dead({first}) == set()
    core.loop.post(worker, Consider())
    second = int(pids.read_text())
    await handle.wait_for_startup()
    assert handle.status().pid == second != first
    assert handle.status().incarnation == 1
