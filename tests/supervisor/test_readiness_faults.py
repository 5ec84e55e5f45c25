"""Readiness when something goes wrong: floods, deaths, forks, stops."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiobgw import ExitKind, Readiness, Restart, WorkerSpec, WorkerState
from aiobgw._ipc.notify import DATAGRAM_BYTES
from aiobgw._process.watcher import Watcher
from aiobgw._supervisor import census, notify
from aiobgw._supervisor.registry import Registry

from .. import notifying, procs
from ..conftest import MakeSupervisor
from .test_readiness import Gates, gates, spec, told, until, written

__all__ = ["gates"]
pytestmark = pytest.mark.anyio

BOUND = 20.0


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a handler failed, which the loop only logs."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_flood_of_a_stranger_holds_up_neither_the_loop_nor_the_others(
    make_supervisor: MakeSupervisor, tmp_path: Path, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor()
    out = tmp_path / "out"
    handle = await supervisor.register(spec("w", f"file={out}", gates("go"), "say=READY=1"))
    address = (await written(out))["NOTIFY_SOCKET"]
    flood = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-ISE", notifying.__file__, "flood=READY=1"],
        env={"NOTIFY_SOCKET": address},
    )
    try:
        await until(lambda: "is refused" in caplog.text)
        async with asyncio.timeout(BOUND):
            for _ in range(200):
                await asyncio.sleep(0)
            gates.open("go")
            await handle.wait_for_ready()
            handle.restart()
            await handle.wait_for_exit()
            await handle.wait_for_ready()
        assert caplog.text.count("is refused") <= notify.LINES + 2
    finally:
        flood.kill()
        flood.wait()


async def test_what_is_no_message_is_survived_and_what_is_too_long_is_refused(
    make_supervisor: MakeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor()
    before = set(procs.open_fds())
    steps = ["say=", "say==", r"say=\xff\0", "say=READY=1" + "x" * DATAGRAM_BYTES]
    handle = await supervisor.register(spec("w", *steps, "fds=READY=1"))
    await handle.wait_for_ready()
    assert f"sent more than {DATAGRAM_BYTES} bytes" in caplog.text
    new = {fd: what for fd, what in procs.open_fds().items() if fd not in before}
    assert not [what for what in new.values() if "pipe" in what or "notifying" in what], new
    handle.kill()
    await handle


async def test_who_dies_right_after_its_word_has_died_and_what_it_said_is_kept(
    make_supervisor: MakeSupervisor, reaper: str, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor(reaper=reaper, max_workers=32)
    events = supervisor.events()
    steps = [r"say=STATUS=last words\nREADY=1", f"kill={int(signal.SIGKILL)}"]
    handles = [await supervisor.register(spec(f"w{number}", *steps)) for number in range(16)]
    for exit in await asyncio.gather(*handles):
        assert exit is not None
        assert (exit.kind, exit.signal) == (ExitKind.CRASHED, signal.SIGKILL)
    assert {handle.status().says for handle in handles} <= {"last words", ""}
    assert not any(handle.status().ready for handle in handles)
    assert told(events).count(("Exited", False)) == 16
    assert "is refused" not in caplog.text  # also if it was read after the end


async def test_a_message_that_comes_before_the_hello_was_read_waits_for_it(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the datagram had been read in the turn in which the hello came too late."""
    supervisor = await make_supervisor()
    by_pid = supervisor._core.registry.by_pid
    asked: list[int] = []

    def not_at_first(pid: int) -> object:
        asked.append(pid)
        return by_pid(pid) if len(asked) > 2 else None

    monkeypatch.setattr(supervisor._core.registry, "by_pid", not_at_first)
    handle = await supervisor.register(spec("w", "synced=READY=1"))
    async with asyncio.timeout(BOUND):
        await handle.wait_for_ready()
    assert asked[:2] == [handle.status().pid] * 2


async def test_a_fork_of_the_host_holds_nothing_that_waits_for_readiness(
    make_supervisor: MakeSupervisor, tmp_path: Path, gates: Gates
) -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    supervisor = await make_supervisor()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    sleep = ["/bin/sleep", "1000"]
    specs = [
        WorkerSpec(name="probed", command=sleep, ready=Readiness.PROBE, probe=url),
        spec("tells", gates("1"), "say=READY=1"),
        spec("writes", gates("2"), r"write=7:\n", notification_fd=7),
    ]
    handles = [await supervisor.register(one) for one in specs]
    await asked.wait()
    await until(lambda: all(one.status().state is WorkerState.RUNNING for one in handles))
    held = set(supervisor._core.signs.descriptors()) - {-1}
    assert len(held) == 3
    assert held <= census.descriptors(supervisor._core)

    out = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        out.write_text(json.dumps(sorted(held & set(procs.open_fds()))))
        os._exit(0)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - the fork ends by itself
    assert json.loads(out.read_text()) == []
    for gate, handle in zip("12", handles[1:], strict=True):
        gates.open(gate)
        await handle.wait_for_ready()
    await supervisor.shutdown()
    server.close()
    await server.wait_closed()


HOST = """
import asyncio, sys, aiobgw
from aiobgw import Readiness, WorkerSpec

async def main():
    path, program, *words = sys.argv[1:]
    async with aiobgw.Supervisor(name="host") as supervisor:
        hang = f"sleep 1000 & echo $! >> {path}; echo $$ >> {path}; wait"
        probed = WorkerSpec(name="p", command=["/bin/sleep", "1000"], ready=Readiness.PROBE,
                            probe=["/bin/sh", "-c", hang])
        specs = [probed] + [
            WorkerSpec(name=str(fd), command=[program, *words, f"write={fd}:\\\\n"],
                       ready=Readiness.NOTIFY, notification_fd=fd)
            for fd in range(3, 8)
        ]
        handles = [await supervisor.register(spec) for spec in specs]
        for handle in handles[1:]:
            await handle.wait_for_ready()
        print(*(handle.status().pid for handle in handles), flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_nobody_outlives_a_supervisor_that_is_killed_while_it_looks(
    tmp_path: Path, loop_of_the_host: None
) -> None:
    """Also not those whose notification took the number of the lifeline."""
    out = tmp_path / "pids"
    program = [sys.executable, "-ISE", notifying.__file__]
    with procs.start_script(HOST, str(out), *program) as host:
        assert host.stdout is not None
        workers = set(map(int, (await asyncio.to_thread(host.stdout.readline)).split()))
        assert len(workers) == 6
        await until(lambda: out.exists() and len(out.read_text().split()) == 2)
        looking = set(map(int, out.read_text().split()))
        assert all(map(procs.is_alive, workers | looking))
        host.kill()
    assert not procs.wait_dead(workers | looking)


async def test_a_supervisor_that_is_abandoned_leaves_nobody_who_told_of_himself(
    make_supervisor: MakeSupervisor, gates: Gates
) -> None:
    supervisor = await make_supervisor()
    specs = [
        spec("tells", gates("1"), "say=READY=1", restart=Restart.ALWAYS),
        spec("writes", gates("2"), r"write=7:\n", notification_fd=7),
    ]
    handles = [await supervisor.register(one) for one in specs]
    for handle in handles:
        await handle.wait_for_startup()
    pids = {handle.status().pid or 0 for handle in handles}
    supervisor.abandon()
    assert not set(supervisor._core.signs.descriptors())
    assert not procs.wait_dead(pids)


@pytest.mark.skipif(os.getuid() != 0, reason="needs the right to switch users")
async def test_a_worker_of_another_user_tells_of_itself_and_is_looked_at_as_that_user(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    sleep = "exec sleep 1000"
    is_it = ["/bin/sh", "-c", 'test "$(id -u)" = 65534 && test "$(pwd)" = /tmp && test $A = b']
    commands: list[dict[str, Any]] = [
        {"command": ["/bin/sh", "-c", f"echo >&3; exec 3>&-; {sleep}"], "notification_fd": 3},
        {"command": ["/bin/sleep", "1000"], "ready": Readiness.PROBE, "probe": is_it},
    ]
    if shutil.which("systemd-notify"):
        tells = f"systemd-notify --ready; {sleep}"
        commands.append({"command": ["/bin/sh", "-c", tells]})
    for number, fields in enumerate(commands):
        fields.setdefault("ready", Readiness.NOTIFY)
        options = {"user": 65534, "cwd": "/tmp", "env": {"A": "b"}, "restart": Restart.NEVER}
        handle = await supervisor.register(WorkerSpec(name=str(number), **options, **fields))
        async with asyncio.timeout(BOUND):
            await handle.wait_for_ready()
        handle.kill()
        await handle


async def test_a_turn_reads_so_many_messages_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast others send."""
    watcher = Watcher()
    heard = notify.NotifySocket(Registry(1, 0), watcher, lambda *said: None)
    read: list[object] = []

    def always(self: notify.NotifySocket) -> object:
        read.append(self)
        assert len(read) < 1000
        return datagram

    datagram = notify._Datagram(b"READY=1", True, 2**22, 0, 0, -1, ())
    monkeypatch.setattr(notify.NotifySocket, "_receive", always)
    try:
        for turn in range(1, 4):
            heard._note()
            heard.hear()
            assert len(read) == turn * notify.DATAGRAMS_PER_TURN
            assert len(heard._unknown) <= notify.DATAGRAMS_PER_TURN
            assert watcher.wake_at() is not None, "it would wait for the next message"
    finally:
        heard.close()
        watcher.close()
