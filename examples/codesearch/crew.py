"""The crew: the workers of one index, and the order in which they are needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import aiobgw

from . import index, plan, store, watch
from .options import Options

RESTART_DELAY = 0.1
ATTEMPTS = 20


class Crew:
    """``async with`` it, then ``await index()``, then ``await watch()``.

    ``complete`` tells that all shards are done, ``seconds`` how long that took.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.complete = False
        self.seconds = 0.0
        self._began = 0.0
        self.supervisor = aiobgw.Supervisor(
            name="codesearch", preload=(index.__name__, plan.__name__, watch.__name__)
        )
        args = (options.db, options.root, options.workers)
        self.handles = [self.supervisor.add(_spec("plan", plan.run, *args))]

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(store.create, self.options.db)
        self._began = time.monotonic()
        await self.supervisor.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.supervisor.__aexit__(kind, error, trace)

    async def index(self) -> None:
        """Plan the work and have it done; raises WorkerFailed when it cannot be done."""
        await _finished(self.handles[0])
        todo = iter(await asyncio.to_thread(store.shards_to_do, self.options.db))
        try:
            async with asyncio.TaskGroup() as group:
                # Hands that take the next shard from one pile: so many run at once, no more.
                for _ in range(self.options.workers):
                    group.create_task(self._index_shards(todo))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self.seconds = time.monotonic() - self._began
        self.complete = True

    async def _index_shards(self, todo: Iterator[int]) -> None:
        for shard in todo:
            await _finished(await self.start_index(shard))

    async def start_index(self, shard: int) -> aiobgw.WorkerHandle:
        """Have a shard indexed; returns at once."""
        args = (self.options.db, self.options.root, shard)
        return await self._register(_spec(f"index-{shard}", index.run, *args))

    async def watch(self) -> None:
        """Keep the index up to date until cancelled."""
        handle = await self.start_watch()
        await _finished(handle)

    async def start_watch(self) -> aiobgw.WorkerHandle:
        args = (self.options.db, self.options.root, self.options.watch_every)
        spec = _spec("watch", watch.run, *args, max_restarts=None, restart=aiobgw.Restart.ALWAYS)
        handle = await self._register(spec)
        await handle.wait_for_startup()
        return handle

    async def _register(self, spec: aiobgw.WorkerSpec) -> aiobgw.WorkerHandle:
        handle = await self.supervisor.register(spec)
        self.handles.append(handle)
        return handle

    def workers(self) -> list[aiobgw.WorkerStatus]:
        """Return all workers there are, then those there were, the last first."""
        alive = list(self.supervisor.status().workers)
        ended = [handle.status() for handle in reversed(self.handles)]
        return alive + [status for status in ended if status.state is aiobgw.WorkerState.STOPPED]


def _spec(
    name: str, target: Callable[..., object], *args: object, **rules: Any
) -> aiobgw.WorkerSpec:
    """Describe a worker that is given up after ATTEMPTS: whoever waits for it must learn."""
    rules = {"restart_backoff": 1, "max_restarts": ATTEMPTS, **rules}
    return aiobgw.WorkerSpec(
        name=name, target=target, args=args, restart_delay=RESTART_DELAY, **rules
    )


async def _finished(handle: aiobgw.WorkerHandle) -> None:
    """Wait for the end of a worker's work; raises WorkerFailed if it was given up."""
    status = await handle.wait_for_shutdown()
    if status is not None:
        status.check()
