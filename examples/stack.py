"""A stack: a real redis-server, a worker that must not be lost, and consumers of a queue.

    python -m examples.stack

They are a group: redis is ready when it says so itself (sd_notify); only then the dispatcher
puts the jobs into a list, and only then the consumers take them.  In the middle of it redis is
killed, and the list is gone with it.  What depends on it starts again when redis is ready again,
in the same order, and goes on: every job is done, and none twice.  The dispatcher is essential:
were it to end for good, the supervisor would fail, since no job would ever come again.

Ends by itself, with exit code 0 if all of this was so; 2 if there is no redis-server.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from aiobgw import (
    Event,
    Exited,
    Latch,
    Readiness,
    Ready,
    Restart,
    Started,
    Strategy,
    Supervisor,
    WorkerEvent,
    WorkerHandle,
    WorkerSpec,
)

from . import stack_workers

JOBS = 60
CONSUMERS = 2
MISSING = """\
redis-server is not installed, and this example runs one:
  apt-get install redis-server    (Debian, Ubuntu)
  dnf install redis               (Fedora)"""


def specs(directory: Path, done: Latch) -> list[WorkerSpec]:
    """Describe the stack, in the order in which it starts."""
    socket, results = directory / "redis.sock", directory / "results"
    redis = WorkerSpec(
        name="redis",
        command=[
            *(
                "redis-server",
                "--supervised",
                "systemd",
                "--port",
                "0",
                "--unixsocket",
                str(socket),
            ),
            *("--save", "", "--appendonly", "no", "--dir", str(directory)),
            *("--logfile", str(directory / "redis.log")),
        ],
        group="stack",
        restart=Restart.ALWAYS,
        restart_delay=0.2,
        ready=Readiness.NOTIFY,
        start_timeout=20,
    )
    dispatcher = WorkerSpec(
        name="dispatcher",
        target=stack_workers.dispatch,
        args=(socket, results, JOBS),
        group="stack",
        after=("redis",),
        ready=Readiness.NOTIFY,
        restart_delay=0.1,
        essential=True,
    )
    consumers = [
        WorkerSpec(
            name=f"consumer-{number}",
            type="consumer",
            target=stack_workers.consume,
            args=(socket, results),
            latches={"done": done},
            group="stack",
            after=("redis", "dispatcher"),
            restart_delay=0.1,
        )
        for number in range(1, CONSUMERS + 1)
    ]
    return [redis, dispatcher, *consumers]


class Witness:
    """Tells what happens, and whether anybody was started before redis was ready."""

    def __init__(self) -> None:
        self.redis_is_ready = False
        self.order_was_kept = True
        self.done_twice = 0
        self._began = time.monotonic()

    async def watch(self, supervisor: Supervisor) -> None:
        async for event in supervisor.events():
            if isinstance(event, WorkerEvent):
                self.note(event)

    def note(self, event: Event) -> None:
        match event:
            case Ready(_, status) if status.name in ("redis", "dispatcher"):
                self.say(status.name, f"is ready, as process {status.pid}")
                self.redis_is_ready = self.redis_is_ready or status.name == "redis"
            case Started(_, status) if status.name != "redis":
                self.say(status.name, f"started, for the {ordinal(status.incarnation)} time")
                self.order_was_kept = self.order_was_kept and self.redis_is_ready
            case Exited(_, status):
                error = (status.exit and status.exit.error) or str(status.exit)
                self.say(status.name, f"ended: {error.splitlines()[-1]}")
                self.done_twice += "FileExistsError" in error
                self.redis_is_ready = self.redis_is_ready and status.name != "redis"

    def say(self, who: str, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.3f} s  {who:<11} {what}", flush=True)


def ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


async def run(directory: Path, done: Latch) -> bool:
    """Have all jobs done, and kill redis in between; return whether all went well."""
    results, witness = directory / "results", Witness()
    results.mkdir()
    async with Supervisor(name="stack", groups={"stack": Strategy.REST_FOR_ONE}) as supervisor:
        watching = asyncio.create_task(witness.watch(supervisor))
        await asyncio.sleep(0)
        async with supervisor.guard():  # if the stack fails, so does this
            handles = [await supervisor.register(spec) for spec in specs(directory, done)]
            at_the_kill = await have_done(JOBS // 2, results, done)
            witness.say("redis", f"is killed, with {at_the_kill} of {JOBS} jobs done")
            handles[0].signal(signal.SIGKILL)
            await have_done(JOBS, results, done)
            witness.say("consumers", f"have done all {JOBS} jobs")
    await watching
    return report(results, witness, handles[0])


async def have_done(jobs: int, results: Path, done: Latch) -> int:
    """Wait until so many jobs are done; return how many are."""
    while True:
        done.reset()  # before looking: what is done in between is not missed
        if (there := count(results)) >= jobs:
            return there
        await done.wait()


def count(results: Path) -> int:
    return len(list(results.iterdir()))


def report(results: Path, witness: Witness, redis: WorkerHandle) -> bool:
    """Print what is true of this run; return whether all of it is as it should be."""
    right = sum(int(path.read_text()) == int(path.name) ** 2 for path in results.iterdir())
    twice = witness.done_twice
    print(f"\n{right} of {JOBS} results are there and right; {twice} jobs were done twice")
    restarts, kept = redis.status().restarts, witness.order_was_kept
    print(f"{restarts} restart of redis")
    print(f"the others were started {'only when' if kept else 'also before'} redis was ready")
    return right == JOBS and twice == 0 and restarts == 1 and kept


def main() -> int:
    if shutil.which("redis-server") is None:
        print(MISSING, file=sys.stderr)
        return 2
    with TemporaryDirectory(prefix="stack-") as directory:
        done = Latch()
        try:
            return 0 if asyncio.run(run(Path(directory), done)) else 1
        finally:
            done.close()


if __name__ == "__main__":
    sys.exit(main())
