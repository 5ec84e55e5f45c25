"""What workers run in the tests of clients, and the processes that those tests start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import aiobgw
from aiobgw import WorkerSpec

from . import procs
from .targets import write

BOUND = 20.0

# Targets.


def wake_up(path: str) -> None:
    """Say when the worker's own latch can be set, and when it was."""
    worker = aiobgw.current_worker()
    latch = worker.latch
    worker.latches["up"].set()
    latch.wait_blocking()
    write(path, "woken")


def note_arguments(path: str, data: bytes) -> None:
    write(path, f"{len(data)} {data[:1]!r}")


def fail_once(path: str) -> None:
    """Fail in the first life; wait for the end in the second."""
    if aiobgw.current_worker().incarnation == 1:
        raise ValueError("the first life")
    write(path, "the second life")
    time.sleep(3600)


def pass_on() -> None:
    """Set the latch "there" once "here" is set."""
    latches = aiobgw.current_worker().latches
    latches["here"].wait_blocking()
    latches["there"].set()


def look_around(child: Any) -> dict[str, Any]:
    """Return what a worker sees of its supervisor, and of a worker that it registered."""
    worker = aiobgw.current_worker()
    return {
        "kind": type(child).__name__,
        "alive": child.status().pid is not None,
        "handles": [handle.name for handle in worker.handles()],
        "by name": worker.get("child") == child,
        "by token": worker.get(child.token) == child,
        "nobody": worker.get("nobody"),
        "status": [one.name for one in worker.status().workers],
        "supervisor": worker.status().name,
    }


async def use_the_client(path: str) -> None:
    """Do what a client can do, from an async worker with SHMEM_ACCESS."""
    worker = aiobgw.current_worker()
    child = await worker.register(WorkerSpec(name="child", target="tests.targets:sleep_async"))
    await child.wait_for_startup()
    found = look_around(child)
    child.terminate()
    found["exit"] = (await child).kind.value
    write(path, json.dumps(found))


def use_the_blocking_client(path: str) -> None:
    """Do the same, from a plain one."""
    worker = aiobgw.current_worker()
    child = worker.register(WorkerSpec(name="child", target="tests.targets:sleep"))
    child.wait_for_startup(60)
    found = look_around(child)
    child.terminate()
    found["exit"] = child.wait_for_shutdown(60).kind.value
    write(path, json.dumps(found))


def use_no_client(path: str) -> None:
    """Ask for what only SHMEM_ACCESS gives, and say how it is refused."""
    worker = aiobgw.current_worker()
    refusals = []
    spec = WorkerSpec(name="child", target="tests.targets:nothing")
    for ask in (worker.status, worker.handles, lambda: worker.register(spec)):
        try:
            ask()
        except aiobgw.AiobgwError as error:
            refusals.append([type(error).__name__, *error.__notes__])
    write(path, json.dumps(refusals))


def use_it_in_a_fork(path: str, attached: bool) -> None:
    """Use what belongs to the worker in a fork of it, before or after it was used here."""
    worker = aiobgw.current_worker()
    calls: list[Callable[[], object]] = [worker.status, worker.handles, aiobgw.current_worker]
    if attached:
        calls += [worker.client.status, worker.client.handles, worker.handles()[0].status]
    found = {"fork": in_a_fork(*calls), "here": [one.name for one in worker.handles()]}
    write(path, json.dumps(found))


async def breed(path: str, depth: int) -> None:
    """Register a worker that registers a worker, and so on; wait for the next one only."""
    worker = aiobgw.current_worker()
    if depth:
        child = await worker.register(
            WorkerSpec(
                name=f"generation {depth - 1}",
                target="tests.client_targets:breed",
                args=(path, depth - 1),
                flags=aiobgw.Flags.SHMEM_ACCESS,
                restart=aiobgw.Restart.NEVER,
            )
        )
        (await child).check()
    write(path, f"{worker.name}: {', '.join(handle.name for handle in worker.handles())}")


async def leave_one_behind(path: str) -> None:
    """Register a worker, and end without waiting for it."""
    await aiobgw.current_worker().register(
        WorkerSpec(name="left", target="tests.targets:write", args=(path, "ran"))
    )


# Processes.


def in_a_fork(*calls: Callable[[], object]) -> list[str]:
    """Make each call in a fork of this process; return what each one raised, by its name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps([_outcome(call) for call in calls]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    found: list[str] = json.loads(text)
    return found


def _outcome(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()!r}"
    except BaseException as error:
        return type(error).__name__


def first_step(coroutine: Any) -> object:
    """Run a coroutine up to where it waits, without a loop."""
    try:
        return coroutine.send(None)
    finally:
        coroutine.close()


HOST = """
import asyncio, json, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    options = json.loads(sys.argv[2])
    targets = json.loads(sys.argv[3])
    async with aiobgw.Supervisor(
        name="host", spares=0, runtime_dir=sys.argv[1], **options
    ) as supervisor:
        for name, target in targets.items():
            up = aiobgw.Latch()
            handle = await supervisor.register(
                WorkerSpec(name=name, target=target, latches={"up": up}, stop_timeout=3600)
            )
            await handle.wait_for_startup()
            if target.endswith(":ignore_term"):
                await up.wait()
            up.close()
        pids = [status.pid for status in supervisor.status().workers]
        print(json.dumps({"pids": pids, "zygote": supervisor.status().zygote_pid}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


class Host:
    """Another process with a supervisor, and workers by name and target."""

    def __init__(self, place: str, *, options: Any = None, **targets: str) -> None:
        self.process = procs.start_script(
            HOST, place, json.dumps(options or {}), json.dumps(targets)
        )
        line = json.loads(self.line())
        self.workers: set[int] = set(line["pids"])
        self.all: set[int] = {*self.workers, line["zygote"]}

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End it at once, and see everybody go."""
        close_script(self.process)
        assert not procs.wait_dead(self.all)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def close_script(process: Any) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()


async def in_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call something that waits for the supervisor of this very loop."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


async def until(condition: Callable[[], object], bound: float = BOUND) -> None:
    """Poll for what nobody tells."""
    give_up = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < give_up, f"not within {bound} s"
        await asyncio.sleep(0.005)
