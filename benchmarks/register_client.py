"""The other processes of ``benchmarks.register``: supervisors and clients, told what to do.

    python -m benchmarks.register_client supervisor LOOP DIRECTORY SLOTS LIMITS
    python -m benchmarks.register_client client LOOP

A command is a line of JSON on stdin, its answer one on stdout.  They end with their stdin.
Moments are those of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from aiobgw import Client, Phase, Restart, Supervisor, WorkerSpec, attach
from aiobgw._process import probe
from aiobgw._supervisor import peers

from . import targets
from .measure import loop_factory

NO_LIMIT = 1_000_000_000
ANSWER_DELAY = 0.002
"""An answer at once would share the machine with what is measured."""

GATED = WorkerSpec(
    name="gated",
    target=f"{targets.__name__}:nothing",
    start_when=Phase.RUNNING,  # supervisors here stay in the phase before it: it never starts
    restart=Restart.NEVER,
)


def lift_limits() -> None:
    """Let a peer ask as much as it can, in this process."""
    peers.BURST = peers.PER_SECOND = peers.ALL_BURST = peers.ALL_PER_SECOND = NO_LIMIT


def need_no_descriptors() -> None:
    """Allow more slots than descriptors: workers that never start use none."""
    probe._PER_WORKER = 0


# Supervisors.


async def supervise(directory: str, slots: int, unlimited: bool) -> None:
    need_no_descriptors()
    if unlimited:
        lift_limits()
    async with Supervisor(
        name="bench",
        runtime_dir=directory,
        max_workers=slots,
        start_phase=Phase.CONSISTENT_STATE,
        spares=0,
    ) as supervisor:
        say({})
        async for command in commands():
            match command:
                case {"fill": count}:
                    for number in range(count):
                        await supervisor.register(replace(GATED, name=f"taken-{number}"))
                    say({})
                case {"end": token, "after": seconds}:
                    await asyncio.sleep(seconds)  # whoever asked waits for the worker by then
                    handle = supervisor.get(token)
                    assert handle is not None
                    began = time.monotonic_ns()
                    handle.terminate()
                    await asyncio.sleep(ANSWER_DELAY)
                    say({"began": began})
                case _:
                    say({"cpu": time.process_time()})


# Clients.


async def register_until(client: Client, begin: float, end: float) -> int:
    """Register and end workers, one after the other; count those between two moments."""
    count, last = 0, None
    while (now := time.monotonic()) < end:
        handle = await client.register(GATED)
        handle.terminate()
        count += now >= begin
        last = handle
    if last is not None:
        await last.wait_for_shutdown()  # the next measurement finds all slots free again
    return count


async def be_client() -> None:
    say({})
    told = commands()
    async for where in told:
        async with attach(where["directory"]) as client:
            say({})
            when = await anext(told)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(register_until(client, when["begin"], when["end"]))
                    for _ in range(when["at_once"])
                ]
            say({"count": sum(task.result() for task in tasks)})


# Both.


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def commands() -> AsyncIterator[dict[str, Any]]:
    """Yield what comes on stdin, until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        transport.close()


def main(words: list[str]) -> None:
    role, loop, *rest = words
    if role == "supervisor":
        directory, slots, unlimited = rest
        run = supervise(directory, int(slots), unlimited == "unlimited")
    else:
        run = be_client()
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(run)


if __name__ == "__main__":
    main(sys.argv[1:])
