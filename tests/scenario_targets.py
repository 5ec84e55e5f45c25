"""What workers run in the numbered scenarios, and the processes that those tests start."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import aiobgw
from aiobgw import Latch, WorkerSpec

from .targets import say_up, write


def initialise(path: str) -> None:
    """Start, and be done with the own initialisation only when the latch "go" is set."""
    latches = aiobgw.current_worker().latches
    latches["go"].wait_blocking()
    write(path, "initialised")
    latches["up"].set()
    time.sleep(3600)


def work_when_woken(inbox: str, outbox: str) -> None:
    """Idle on a long timer; once woken, process what is in the inbox and idle again.

    SIGHUP wakes it, too: a worker that wants PostgreSQL's reload says so in one line.
    """
    worker = aiobgw.current_worker()
    latch = worker.latch
    signal.signal(signal.SIGHUP, lambda *_: latch.set())
    say_up()
    while True:
        latch.wait_blocking(3600)
        latch.reset()
        with open(inbox, encoding="utf-8") as file:
            write(outbox, f"{worker.name} {file.read()}")
        worker.latches["done"].set()


def note(path: str, *index: int) -> None:
    """Write down who this is and what came along, and stay."""
    spec = aiobgw.current_worker().spec
    write(path, f"{spec.name} {spec.type} {index} {spec.extra.decode()}")
    say_up()
    time.sleep(3600)


def refusing() -> str:
    """Connect to what takes no connections, unless the extra says to pass."""
    if aiobgw.current_worker().spec.extra != b"bypass":
        raise ConnectionRefusedError("this database takes no connections")
    return "connected"


def show_connection(path: str) -> None:
    write(path, aiobgw.current_worker().connection)


def stay() -> None:
    say_up()
    time.sleep(3600)


def follow_the_registrant(path: str, pid: int) -> None:
    """Work for one process, and end when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        write(path, "was gone")
        return
    write(path, "follows")
    select.select([pidfd], [], [])
    os.close(pidfd)
    write(path, "went")


def fail_first() -> None:
    """Fail in the first life, stay in the second."""
    if aiobgw.current_worker().incarnation == 1:
        sys.exit(1)
    stay()


def fail_when_told() -> None:
    aiobgw.current_worker().latches["go"].wait_blocking()
    sys.exit(1)


def end_when_told() -> None:
    """Mind no SIGTERM, and end when the latch "go" is set."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_up()
    aiobgw.current_worker().latches["go"].wait_blocking()


def stay_until_told() -> None:
    say_up()
    aiobgw.current_worker().latches["go"].wait_blocking()
    sys.exit(1)


def close_everything() -> None:
    """Leave only the second line to end this process: nobody else has a hold on it."""
    os.closerange(0, 1000)
    while True:
        time.sleep(3600)


def with_helper(path: str) -> None:
    """Have a helper of its own, and one of the helper's."""
    script = "sleep 3600 & echo $! ; exec sleep 3600"
    helper = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert helper.stdout is not None
    write(path, f"{helper.pid} {helper.stdout.readline().strip()}")
    stay()


REGISTRANT = """
import os, sys
import aiobgw
from aiobgw import Latch, WorkerSpec
from aiobgw import WorkerSpec

with aiobgw.attach_blocking(sys.argv[1]) as client:
    spec = WorkerSpec(name="left", target=sys.argv[2], args=(sys.argv[3], os.getpid()))
    handle = client.register(spec)
    print("registered", flush=True)
    if sys.argv[4] == "waits":
        handle.wait_for_startup()
"""

IN_A_HURRY = """
import asyncio, os, signal, sys
import aiobgw
from aiobgw import Latch, WorkerSpec
from aiobgw import WorkerSpec

async def main():
    async with aiobgw.attach(sys.argv[1]) as client:
        print("attached", flush=True)
        sys.stdin.readline()
        registering = asyncio.ensure_future(client.register(
            WorkerSpec(name="left", target="tests.targets:write", args=(sys.argv[2], "ran"))
        ))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

HALTED_HOST = """
import asyncio, os, sys
import aiobgw
from aiobgw import Latch, WorkerSpec
from aiobgw import WorkerSpec

async def main():
    gate, token = sys.argv[2:]
    os.environ["AIOBGW_INJECT"] = f"before_started:wait={gate}@{token}"
    async with aiobgw.Supervisor(name="halted", spares=0, runtime_dir=sys.argv[1]) as supervisor:
        open(token, "w").close()
        print(supervisor.status().zygote_pid, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""

HOST = """
import asyncio, json, sys
import aiobgw
from aiobgw import Latch, WorkerSpec

async def main():
    options = json.loads(sys.argv[2])
    async with aiobgw.Supervisor(
        name="host", spares=0, runtime_dir=sys.argv[1], **options
    ) as supervisor:
        print(supervisor.status().zygote_pid, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


async def up(registrar: Any, latch: Latch, **options: Any) -> aiobgw.WorkerHandle:
    """Register a worker, and wait until its target says that it is up."""
    options.setdefault("name", "w")
    options.setdefault("target", stay)
    spec = WorkerSpec(latches={"up": latch, **options.pop("latches", {})}, **options)
    handle: aiobgw.WorkerHandle = await registrar.register(spec)
    await latch.wait()
    await handle.wait_for_startup()  # it is up; now its supervisor knows it, too
    return handle
