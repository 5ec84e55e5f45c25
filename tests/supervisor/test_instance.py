"""One living supervisor for each runtime directory, whoever dies, and however."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any

import pytest

import aiobgw
from aiobgw import Latch, WorkerSpec

from .. import client_targets, procs, targets
from ..client_targets import Host
from ..conftest import MakeSupervisor

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loop_of_the_host")]

STARTER = """
import asyncio, sys
import aiobgw

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        async with aiobgw.Supervisor(name="one of many", spares=0, runtime_dir=sys.argv[1]):
            print("won", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    except aiobgw.AlreadyRunning as error:
        print(f"AlreadyRunning: {error}", flush=True)

asyncio.run(main())
"""


async def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    first = await make_supervisor(runtime_dir=place)
    with pytest.raises(aiobgw.AlreadyRunning, match=rf"\(pid {os.getpid()}\)") as caught:
        await make_supervisor(runtime_dir=place)
    assert caught.value.__notes__
    async with aiobgw.attach(place) as client:
        assert client.epoch == first.epoch, "the first one was not touched"


async def test_a_supervisor_of_another_process_is_named_too(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    with Host(place) as host:
        named = rf"\(pid {host.process.pid}\)"
        with pytest.raises(aiobgw.AlreadyRunning, match=named):
            await make_supervisor(runtime_dir=place)
        async with aiobgw.attach(place) as client:
            assert client.status().pid == host.process.pid


def test_of_twenty_starts_at_once_exactly_one_wins(anyio_backend: Any, place: str) -> None:
    starters = [procs.start_script(STARTER, place) for _ in range(20)]
    try:
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("go\n")
            starter.stdin.flush()
        said = [starter.stdout.readline() for starter in starters if starter.stdout]
        [winner] = [
            starter for starter, line in zip(starters, said, strict=True) if line == "won\n"
        ]
        said.remove("won\n")
        pattern = rf"AlreadyRunning: a supervisor runs at {re.escape(place)} \(pid {winner.pid}\)\n"
        assert [line for line in said if not re.fullmatch(pattern, line)] == []
        with aiobgw.attach_blocking(place) as client:
            assert client.status().pid == winner.pid
    finally:
        for starter in starters:
            client_targets.close_script(starter)


async def test_after_kill_9_a_successor_starts_beside_no_worker_of_the_dead_one(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    names = {f"w{number}": "tests.targets:ignore_term" for number in range(12)}
    with Host(place, **names) as host:
        host.kill()
        procs.wait_dead({host.process.pid})  # a zombie by now, which nobody has reaped
        supervisor = await make_supervisor(runtime_dir=place)
        alive = {pid for pid in host.all if procs.is_alive(pid)}
        assert not alive & host.workers
        async with aiobgw.attach(place) as client:
            assert client.epoch == supervisor.epoch
            assert client.handles() == []


async def test_a_stopped_zygote_of_a_dead_supervisor_does_not_keep_the_directory(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """It shares the lock, and cannot do anything about it."""
    with Host(place, worker="tests.targets:ignore_term") as host:
        [zygote] = host.all - host.workers
        procs.stop(zygote)
        host.kill()
        procs.wait_dead({host.process.pid})
        await make_supervisor(runtime_dir=place)
        assert not {pid for pid in host.all if procs.is_alive(pid)}


async def test_a_shutdown_takes_the_socket_away_and_frees_the_directory(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    first = await make_supervisor(runtime_dir=place)
    assert {"control", "lock"} <= set(os.listdir(place))
    await first.shutdown()
    assert "control" not in os.listdir(place)
    with pytest.raises(aiobgw.NotAttached):
        async with aiobgw.attach(place):
            pass
    second = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        assert client.epoch == second.epoch != first.epoch


async def test_abandon_takes_the_socket_away_and_frees_the_directory(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    first = await make_supervisor(runtime_dir=place)
    up = Latch()
    for number in range(5):
        await first.register(
            WorkerSpec(name=f"w{number}", target=targets.ignore_term, latches={"up": up})
        )
        await up.wait()
        up.reset()
    up.close()
    async with aiobgw.attach(place) as client:
        handle = client.handles()[0]
        first.abandon()
        assert "control" not in os.listdir(place)
        with pytest.raises(aiobgw.SupervisorDied):
            await handle
    second = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        assert client.epoch == second.epoch


async def test_a_start_that_fails_frees_the_directory(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    with pytest.raises(aiobgw.AiobgwError):
        await make_supervisor(runtime_dir=place, python="/bin/false")
    with pytest.raises(Exception, match="no_such_module"):
        await make_supervisor(runtime_dir=place, preload=("no_such_module",))
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        assert client.epoch == supervisor.epoch


async def test_a_cancelled_wait_for_the_directory_leaves_nothing(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """The lock is held by nobody who can be named: a successor in the same moment."""
    import fcntl

    os.mkdir(place, 0o700)
    lock = os.open(f"{place}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await make_supervisor(runtime_dir=place)
    os.close(lock)
    await make_supervisor(runtime_dir=place)


async def test_a_fork_of_the_host_that_lives_on_does_not_hold_the_directory(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    first = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        await first.shutdown()
        with pytest.raises(aiobgw.SupervisorDied):  # its end was not hidden by the fork
            async with asyncio.timeout(5):
                while True:
                    client.status()
                    await client._connection.changes.wait()
    try:
        second = await make_supervisor(runtime_dir=place)
        async with aiobgw.attach(place) as client:
            assert client.epoch == second.epoch
        assert procs.is_alive(child)
    finally:
        os.close(writer)
        procs.wait_dead({child})
        procs.reap({child})


async def test_a_lock_that_is_held_for_a_moment_longer_is_waited_for(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """By a fork that has not had a turn to close it, or by the zygote."""
    first = await make_supervisor(runtime_dir=place)
    held = os.dup(first._core.outside.lock)
    await first.shutdown()
    starting = asyncio.ensure_future(make_supervisor(runtime_dir=place))
    await asyncio.sleep(0.1)
    assert not starting.done()
    os.close(held)
    second = await starting
    async with aiobgw.attach(place) as client:
        assert client.epoch == second.epoch


async def test_a_fork_that_ends_takes_nothing_from_the_supervisor(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """Neither its socket's name, nor its lock."""
    supervisor = await make_supervisor(runtime_dir=place)
    assert client_targets.in_a_fork(supervisor.abandon, supervisor.status)[1] == "WrongProcess"
    with pytest.raises(aiobgw.AlreadyRunning):
        await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        assert client.epoch == supervisor.epoch
