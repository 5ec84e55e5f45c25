"""Registrar: a process that attaches to another one's supervisor, and uses it as its own.

    python -m examples.registrar

This process is the client.  It starts a second one, which runs a supervisor and does nothing
else, and attaches to it; registers a worker that registers two more; and tells what it sees.
Then the supervisor is killed: the client hears of it at once, and no worker is left.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import aiobgw
from aiobgw import Flags, Restart, WorkerSpec

SUPERVISE = "--supervise"


# What the workers run.


async def outer() -> None:
    """Register two workers, and wait for both: what a client can do, a worker can, too."""
    worker = aiobgw.current_worker()
    first = await worker.register(spec("inner-1", inner, 0.2))
    second = await worker.register(spec("inner-2", inner, 0.4))
    await asyncio.gather(first.wait_for_shutdown(), second.wait_for_shutdown())


def inner(seconds: float) -> None:
    time.sleep(seconds)


def spec(
    name: str, target: Callable[..., object], *args: object, flags: Flags = Flags.NONE
) -> WorkerSpec:
    return WorkerSpec(name=name, target=target, args=args, flags=flags, restart=Restart.NEVER)


# The first process.


async def supervise(directory: str) -> None:
    """Run a supervisor until whoever started this process is gone: then stdin ends."""
    gone = asyncio.Event()
    async with aiobgw.Supervisor(name="registrar", runtime_dir=directory):
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), gone.set)
        print("listening", flush=True)  # from here on, attach() finds it
        await gone.wait()


# The second process.


async def attach(directory: str, supervisor: int) -> None:
    async with aiobgw.attach(directory) as client:
        print(f"attached to {client.status().name!r}, process {supervisor}\n", flush=True)
        await register_and_watch(client)
        await lose(client, supervisor)


async def register_and_watch(client: aiobgw.Client) -> None:
    """Register a worker, print what happens, and wait until it is over."""
    events = client.events()  # subscribed before there is anything to miss
    # Only workers with SHMEM_ACCESS have a way to their supervisor.
    handle = await client.register(spec("outer", outer, flags=Flags.SHMEM_ACCESS))
    began = 0.0
    async for event in events:
        if not isinstance(event, aiobgw.WorkerEvent):
            continue
        began = began or event.at
        if isinstance(event, aiobgw.Registered | aiobgw.Started | aiobgw.Exited):
            print(line(event, event.at - began), flush=True)
        if isinstance(event, aiobgw.Retired) and event.status.name == handle.name:
            break
    end = await handle.wait_for_shutdown()  # has ended already: handles remember
    if end is not None:
        end.check()


def line(event: aiobgw.WorkerEvent, seconds: float) -> str:
    worker = event.status
    detail = str(worker.exit or "")
    if isinstance(event, aiobgw.Started):
        detail = f"as process {worker.pid}"
    return f"{seconds:7.3f} s  {worker.name:8} {type(event).__name__.lower():10} {detail}".rstrip()


async def lose(client: aiobgw.Client, supervisor: int) -> None:
    """Kill the supervisor while a worker runs; raises TimeoutError if nobody notices."""
    handle = await client.register(spec("sleeper", inner, 3600.0))
    pid = (await handle.wait_for_startup()).pid
    assert pid is not None
    pidfd = os.pidfd_open(pid)  # stands for this very process, also when it is gone
    print(f"\nsleeper runs as process {pid}; killing its supervisor, {supervisor}", flush=True)

    waiting = asyncio.create_task(handle.wait_for_shutdown())
    await asyncio.sleep(0.1)
    killed = time.monotonic()
    os.kill(supervisor, signal.SIGKILL)
    try:
        async with asyncio.timeout(1):
            await waiting
    except aiobgw.SupervisorDied as error:
        print(f"SupervisorDied after {(time.monotonic() - killed) * 1000:.1f} ms: {error}")

    # A pidfd is readable once its process has ended.
    gone, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], 1.0)
    os.close(pidfd)
    if not gone:
        raise TimeoutError("the worker outlived its supervisor")
    print(f"sleeper was gone {(time.monotonic() - killed) * 1000:.1f} ms after the kill")


# Both.


@contextmanager
def another_process(directory: str) -> Iterator[int]:
    """Run this very command line again, as the supervisor; yields its pid."""
    command = [sys.executable, *sys.orig_argv[1:], SUPERVISE, directory]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "listening\n":
                raise RuntimeError("the supervisor did not start")
            yield process.pid
        finally:
            process.kill()  # however this ends; the kernel ends its workers with it


def main() -> None:
    if SUPERVISE in sys.argv:
        asyncio.run(supervise(sys.argv[-1]))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    with TemporaryDirectory(prefix="registrar-") as directory, another_process(directory) as pid:
        asyncio.run(attach(directory, pid))


if __name__ == "__main__":
    main()
