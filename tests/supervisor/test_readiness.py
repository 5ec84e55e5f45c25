"""Readiness: who says that a worker is ready, who hears of it, and what follows if nobody does."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Readiness, Restart, WorkerSpec, WorkerState
from aiobgw.testing import FakeLauncher, ManualClock, Script

from .. import notifying, procs
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

BOUND = 20.0
NOTIFY = Readiness.NOTIFY
PROGRAM = [sys.executable, "-ISE", notifying.__file__]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(BOUND):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Gates:
    """FIFOs at which programs wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[int] = []

    def __call__(self, name: str) -> str:
        path = self._path / name
        os.mkfifo(path)
        return f"gate={path}"

    def open(self, name: str) -> None:
        """Let the program pass; it finds the gate open whenever it comes."""
        self._open.append(os.open(self._path / name, os.O_RDWR))

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    made = Gates(tmp_path)
    yield made
    made.close()


def spec(name: str, *steps: str, **options: Any) -> WorkerSpec:
    options.setdefault("ready", NOTIFY)
    options.setdefault("restart", Restart.NEVER)
    return WorkerSpec(name=name, command=[*PROGRAM, *steps], **options)


async def written(path: Path) -> dict[str, str]:
    """Wait for what a program's step "file" writes, and return it."""
    await until(path.exists)
    return read(path)


def read(path: Path) -> dict[str, str]:
    """Return what was written, and have it written again."""
    lines = path.read_text().splitlines()
    path.unlink()
    return dict(re.split("[= ]", line, maxsplit=1) for line in lines)


def told(events: aiobgw.EventStream) -> list[tuple[str, bool]]:
    """Return the events of workers that have come, and whether each was ready then."""
    found = []
    while (event := events.take()) is not None:
        if isinstance(event, aiobgw.WorkerEvent):
            found.append((type(event).__name__, event.status.ready))
    return found


A_LIFE = [("Started", False), ("Ready", True), ("Exited", False)]


# Python targets.


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_target_is_ready_when_it_says_so_in_each_of_its_lives(
    make_supervisor: MakeSupervisor, kind: Any
) -> None:
    supervisor = await make_supervisor()
    events = supervisor.events()
    async with Script() as script:
        handle = await supervisor.register(script.spec("w", kind=kind, ready=NOTIFY))
        for number in (1, 2):
            life = await script.wait_for_incarnation()
            assert (handle.status().state, handle.status().ready) == (WorkerState.RUNNING, False)
            waiting = asyncio.ensure_future(handle.wait_for_ready())
            await life.ready()
            await life.ready()
            assert (await waiting).incarnation == number
            if number == 1:
                handle.restart()
                await handle.wait_for_exit()
    handle.kill()
    await handle
    assert told(events) == [
        ("Registered", False),
        *A_LIFE,
        ("Restarting", False),
        *A_LIFE,
        ("Retired", False),
    ]


async def test_everybody_who_waits_hears_of_it_when_it_becomes_ready(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    group = aiobgw.WorkerGroup
    async with Script() as script, aiobgw.attach(place) as client:
        handle = await supervisor.register(script.spec("w", ready=NOTIFY))
        remote = client.get("w")
        assert remote is not None
        life = await script.wait_for_incarnation()
        await until(lambda: remote.status().state is WorkerState.RUNNING)
        waits = [
            asyncio.ensure_future(handle.wait_for_ready()),
            asyncio.ensure_future(remote.wait_for_ready()),
            asyncio.ensure_future(asyncio.to_thread(wait_in_plain_code, place)),
        ]
        async with group(client, script.spec("grouped", ready=NOTIFY), 1) as members:
            waits.append(asyncio.ensure_future(members.ready()))
            grouped = await script.wait_for_incarnation()
            await asyncio.wait(waits, timeout=0.1)
            assert not any(wait.done() for wait in waits)
            await life.ready()
            await grouped.ready()
            async with asyncio.timeout(BOUND):
                ready = await asyncio.gather(*waits)
            assert [getattr(one, "ready", one) for one in ready] == [True, True, True, 1]


def wait_in_plain_code(place: str) -> aiobgw.WorkerStatus:
    with aiobgw.attach_blocking(place) as client:
        handle = client.get("w")
        assert handle is not None
        return handle.wait_for_ready(BOUND)


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("restart", Restart)
async def test_who_is_not_ready_in_time_has_failed_and_its_rule_says_what_follows(
    make_supervisor: MakeSupervisor, restart: Restart, obeys: bool
) -> None:
    launcher, clock = FakeLauncher(obey=obeys), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    handle = await supervisor.register(
        WorkerSpec(name="w", target="none:none", ready=NOTIFY, restart=restart)
    )
    clock.advance(89.9)
    assert launcher["w"].signals == []
    clock.advance(0.1)
    assert launcher["w"].signals == [signal.SIGTERM] + [signal.SIGCONT] * (not obeys)
    clock.advance(0 if obeys else 10)
    exit = handle.status().exit
    assert exit is not None
    assert exit.kind is ExitKind.FAILED
    assert exit.reason.startswith("not ready within start_timeout (90 s)")
    again = restart is not Restart.NEVER
    assert handle.status().state is (WorkerState.BACKOFF if again else WorkerState.STOPPED)
    if again:
        clock.advance(2)
        assert launcher["w"].incarnation == 2
        launcher["w"].ready()
        clock.advance(1000)
        assert handle.status().ready
    handle.kill()


# Commands: sd_notify.


async def test_a_command_tells_what_it_does_and_whether_it_is_ready(
    make_supervisor: MakeSupervisor, gates: Gates, tmp_path: Path, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    events = supervisor.events()
    async with aiobgw.attach(place) as client:
        handle = await supervisor.register(
            spec(
                "w",
                f"file={tmp_path / 'out'}",
                r"synced=STATUS=loading \x1b[31m\nX_UNKNOWN=1\nREADY=0",
                gates("1"),
                r"say=READY=1\nSTATUS=at work",
                gates("2"),
                "say=RELOADING=1",
                gates("3"),
                "say=READY=1",
                gates("4"),
                "exit=0",
                watchdog=1.5,
                restart=Restart.ALWAYS,
                restart_delay=3600,
            )
        )
        remote = client.get("w")
        assert remote is not None
        found = await written(tmp_path / "out")
        assert found["NOTIFY_SOCKET"].startswith("@aiobgw-")
        assert found["WATCHDOG_USEC"] == "1500000"
        assert found["WATCHDOG_PID"] == found["PID"] == str(handle.status().pid)
        await until(lambda: remote.status().says == r"loading \x1b[31m")
        assert not handle.status().ready

        for gate, is_ready in (("1", True), ("2", False), ("3", True)):
            gates.open(gate)
            await until(lambda: remote.status().ready is is_ready)  # noqa: B023
            assert handle.status().ready is is_ready
            assert remote.status().says == handle.status().says == "at work"
        gates.open("4")
        assert (await handle.wait_for_exit()).kind is ExitKind.CLEAN
        assert handle.status().says == "at work"
        handle.restart()
        assert (handle.status().incarnation, handle.status().says) == (2, "")
    handle.kill()
    await handle
    assert told(events)[:6] == [
        ("Registered", False),
        ("Started", False),
        ("Ready", True),
        ("Ready", True),
        ("Exited", False),
        ("Restarting", False),
    ]


async def test_a_process_of_its_group_may_speak_for_a_command_and_nobody_else(
    make_supervisor: MakeSupervisor, gates: Gates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor()
    out = tmp_path / "out"
    silent = await supervisor.register(
        spec("silent", f"file={out}", gates("go"), "child=synced=READY=1")
    )
    address = (await written(out))["NOTIFY_SOCKET"].replace("@", "\0", 1)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        await asyncio.to_thread(stranger.sendto, b"READY=1", address)
    with_address = {"NOTIFY_SOCKET": address.replace("\0", "@")}
    unasked = await supervisor.register(
        spec("unasked", "say=STATUS=x", ready=Readiness.NONE, env=with_address)
    )
    other = await supervisor.register(spec("other", r"synced=MAINPID=1\nREADY=1"))
    assert (await other.wait_for_ready()).pid != 1
    await until(lambda: "is no worker" in caplog.text)
    assert f"a message of pid {os.getpid()}, uid {os.getuid()}, is refused" in caplog.text
    assert f"worker other: pid {other.status().pid} names another main process" in caplog.text
    await until(lambda: "worker 'unasked' was not asked to notify" in caplog.text)
    assert not silent.status().ready
    assert unasked.status().says == ""

    gates.open("go")
    await silent.wait_for_ready()
    for handle in (silent, unasked, other):
        handle.kill()
        await handle


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="systemd-notify is not installed")
async def test_systemd_notify_speaks_for_a_shell_script_and_does_not_wait_in_vain(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    script = "systemd-notify --ready --status=up && exec sleep 1000"
    command = ["/bin/sh", "-c", script]
    handle = await supervisor.register(WorkerSpec(name="w", command=command, ready=NOTIFY))
    assert (await handle.wait_for_ready()).says == "up"
    await until(lambda: "sleep" in procs.title(handle.status().pid or 0))


async def test_who_needs_more_time_says_so_for_its_start_and_for_its_end(
    make_supervisor: MakeSupervisor, gates: Gates, tmp_path: Path
) -> None:
    clock, out = ManualClock(), tmp_path / "out"
    supervisor = await make_supervisor(clock=clock)
    late = spec("late", "say=STATUS=x", start_timeout=10)
    slow = spec(
        "slow",
        f"ignore={int(signal.SIGTERM)}",
        "synced=EXTEND_TIMEOUT_USEC=50000000",
        f"file={out}",
        gates("start"),
        "synced=READY=1",
        gates("end"),
        "synced=EXTEND_TIMEOUT_USEC=50000000",
        f"file={out}",
        start_timeout=10,
        stop_timeout=10,
    )
    handles = [await supervisor.register(one) for one in (late, slow)]
    await written(out)
    clock.advance(10)
    exit = await handles[0]
    assert exit is not None
    assert (exit.kind, exit.reason) == (ExitKind.FAILED, "not ready within start_timeout (10 s)")
    clock.advance(39)
    gates.open("start")
    await handles[1].wait_for_ready()
    clock.advance(1000)
    handles[1].terminate()
    gates.open("end")
    await written(out)
    clock.advance(49)
    assert handles[1].status().state is WorkerState.STOPPING
    clock.advance(1)
    exit = await handles[1]
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGKILL)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_command_that_stops_by_itself_has_its_stop_timeout_and_its_own_exit(
    make_supervisor: MakeSupervisor, gates: Gates, ends: bool
) -> None:
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    steps = ["synced=READY=1", gates("1"), "synced=STOPPING=1", "say=READY=1"]
    handle = await supervisor.register(
        spec("w", *steps, gates("2"), "exit=3", restart=Restart.ALWAYS, stop_timeout=10)
    )
    await handle.wait_for_ready()
    gates.open("1")
    await until(lambda: not handle.status().ready)
    assert handle.status().state is WorkerState.RUNNING
    if ends:
        gates.open("2")
    else:
        clock.advance(10)
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code) == (ExitKind.FAILED, 3 if ends else None)
    assert ends or "stop_timeout" in exit.reason
    assert handle.status().state is WorkerState.BACKOFF
    handle.kill()


# Commands: s6.


async def test_a_newline_on_its_descriptor_says_that_a_command_is_ready(
    make_supervisor: MakeSupervisor, gates: Gates, tmp_path: Path
) -> None:
    """Whatever number that is: also that of its lifeline, which then has another one."""
    supervisor = await make_supervisor()
    lifelines = set()
    for number in [*range(3, 20), 500]:
        before, after = tmp_path / f"before{number}", tmp_path / f"after{number}"
        steps = [f"file={before}", f"write={number}:loading", gates(f"g{number}")]
        steps += [rf"write={number}:...\nand more\n", f"write={number}:x", f"close={number}"]
        fields = spec("w", *steps, f"file={after}", notification_fd=number)
        handle = await supervisor.register(fields)
        found = await written(before)
        assert found["NOTIFY_SOCKET"] == ""
        fds = {int(name): what for name, what in found.items() if name.isdigit()}
        (lifeline,) = (fd for fd in fds if fd > 2 and fd != number and "/proc/" not in fds[fd])
        lifelines.add(lifeline)
        assert len(set(fds.values())) == len(fds)
        assert not handle.status().ready
        gates.open(f"g{number}")
        await handle.wait_for_ready()
        assert str(number) not in await written(after)
        handle.kill()
        await handle
    assert len(lifelines) > 1, "no number was the lifeline's"
    assert not set(supervisor._core.signs.descriptors())


async def test_a_command_that_cannot_be_run_says_so_whatever_its_descriptor_is(
    make_supervisor: MakeSupervisor,
) -> None:
    """Also if that has the number of the channel, on which it says so."""
    supervisor = await make_supervisor()
    for number in [*range(3, 20), 1023]:
        handle = await supervisor.register(
            WorkerSpec(
                name="w",
                command=["/no/such/program"],
                ready=NOTIFY,
                notification_fd=number,
                restart=Restart.NEVER,
            )
        )
        with pytest.raises(aiobgw.NeverStarted, match="/no/such/program"):
            await handle.wait_for_startup()
    assert not set(supervisor._core.signs.descriptors())


async def test_the_end_of_its_descriptor_says_nothing_and_a_restart_has_a_new_one(
    make_supervisor: MakeSupervisor, gates: Gates, tmp_path: Path
) -> None:
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    steps = ["write=4:not yet", "close=4", f"file={tmp_path / 'out'}"]
    fails = spec("w", *steps, notification_fd=4, start_timeout=5, restart=Restart.ALWAYS)
    handle = await supervisor.register(fails)
    before = len(procs.open_fds())
    for number in (1, 2):
        assert "4" not in await written(tmp_path / "out")
        assert not handle.status().ready
        clock.advance(5)
        exit = await handle.wait_for_exit()
        assert (exit.incarnation, exit.reason) == (number, "not ready within start_timeout (5 s)")
        clock.advance(10)
    await written(tmp_path / "out")
    assert len(procs.open_fds()) <= before
    handle.kill()
    await handle
