"""Processes that share a supervisor, as server processes do; each tells who owns it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import aiobgw
from aiobgw import WorkerSpec
from aiobgw.integrations.once import SharedSupervisor

from .. import procs
from .asgi_targets import alone, say
from .ear import BOUND, Ear

SCRIPT = """
import asyncio, json, sys
import tests.integrations.members as members

async def main():
    await members.live(sys.argv[1], json.loads(sys.argv[2]))

asyncio.run(main())
"""


def specs(directory: str) -> list[WorkerSpec]:
    return [WorkerSpec(name=name, target=alone, args=(directory,)) for name in ("a", "b")]


def shared(directory: str | os.PathLike[str], *more: WorkerSpec, **options: Any) -> Any:
    """Return a shared supervisor of the test whose files are in *directory*."""
    options = {"name": "once", "spares": 0, "runtime_dir": f"{directory}/run", **options}
    return SharedSupervisor(*more, **options)


async def live(directory: str, options: dict[str, Any]) -> None:
    """Be one of them until stdin ends."""
    loop = asyncio.get_running_loop()
    async with shared(directory, *specs(directory), **options) as supervisor:
        telling = asyncio.create_task(tell(directory, supervisor))
        await loop.run_in_executor(None, os.read, 0, 1)
        telling.cancel()
        say(directory, "leaves")


async def tell(directory: str, supervisor: SharedSupervisor) -> None:
    """Say who owns it, whenever that has changed."""
    epoch = 0
    while True:
        status = await supervisor.wait_for_supervisor()
        if status.epoch != epoch:
            epoch = status.epoch
            say(directory, "owner", owner=status.pid, epoch=epoch, mine=supervisor.is_owner)
        try:
            async for _ in supervisor.events():
                pass
        except aiobgw.SupervisorDied:
            pass
        await asyncio.sleep(0)


class Members:
    """The processes of one test."""

    def __init__(self, directory: Path, ear: Ear) -> None:
        self._directory = directory
        self._ear = ear
        self.living: dict[int, subprocess.Popen[str]] = {}
        self.epoch = 0

    def start(self, number: int = 1, **options: Any) -> None:
        for _ in range(number):
            process = procs.start_script(SCRIPT, str(self._directory), json.dumps(options))
            self.living[process.pid] = process

    def owner(self, other_than: int = 0) -> int:
        """Return the owner's pid when all living members know the same one.

        Its epoch, which *other_than* excludes, is in ``epoch``.
        """
        while True:
            last = {one["pid"]: one for one in self._ear.heard if one["what"] == "owner"}
            said = [last.get(pid, {"epoch": 0, "mine": False}) for pid in self.living]
            self.epoch = said[0]["epoch"]
            if self.epoch not in (0, other_than) and {one["epoch"] for one in said} == {self.epoch}:
                break
            self._ear.next()
        [owner] = {int(one["owner"]) for one in said}
        assert [one["pid"] for one in said if one["mine"]] == [owner]
        return owner

    def kill(self, pid: int) -> None:
        """Kill one with SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        self._forget(pid)

    def leave(self, *pids: int) -> None:
        """Have them leave in order, all at once, and wait for their ends."""
        leaving = [self.living[pid] for pid in pids]
        for process in leaving:
            assert process.stdin is not None
            process.stdin.close()
        for process in leaving:
            assert process.wait(BOUND) == 0
            self._forget(process.pid)

    def _forget(self, pid: int) -> None:
        process = self.living.pop(pid)
        process.wait(BOUND)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def close(self) -> None:
        for pid in list(self.living):
            self.kill(pid)
