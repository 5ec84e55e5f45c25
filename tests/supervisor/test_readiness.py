"""Readiness: who says that a worker is ready, who hears of it, and what follows if nobody does."""

from __future__ import annotations

import asyncio
import os
import re
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

from .. import notifying
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

BOUND = 20.0
NOTIFY = Readiness.NOTIFY
PROGRAM = [sys.executable, "-ISE", notifying.__file__]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(BOUND):
        while not condition():
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
    return dict(re.split("[= ]", line, maxsplit=1) for line in path.read_text().splitlines())


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
            grouped = await script.wait_for_incarnation("grouped")
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
    with pytest.raises(aiobgw.WorkerFailed):
        exit.check()


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
        Path(tmp_path / "out").unlink()
        handle.restart()
        await written(tmp_path / "out")
        assert handle.status().says in ("", r"loading \x1b[31m")
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
    unasked = await supervisor.register(
        spec("unasked", "say=READY=1", ready=Readiness.NONE, env=None)
    )
    other = await supervisor.register(spec("other", r"synced=MAINPID=1\nREADY=1"))
    assert (await other.wait_for_ready()).pid != 1
    await until(lambda: "is no worker" in caplog.text)
    assert f"a message of pid {os.getpid()}, uid {os.getuid()}, is refused" in caplog.text
    assert f"worker other: pid {other.status().pid} names another main process" in caplog.text
    assert not silent.status().ready

    gates.open("go")
    await silent.wait_for_ready()
    for handle in (silent, unasked, other):
        handle.kill()
        await handle
