"""Who is measured: aiobgw in several settings, and its peers, all in one shape.

The peers get their best case.  fork: a host that holds asyncio, multiprocessing and aiobgw, but
no data of its own (18 us more for each touched megabyte).  forkserver: asyncio and the target's
module preloaded, its server up.  forkserver and spawn: no main module that the child would have
to load again.  subprocess: exits by pidfd also on Python 3.11.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any, Protocol

from aiobgw import Restart, Supervisor, WorkerSpec

from . import targets

PAUSE = 0.01
TARGETS = targets.__name__


class Running(Protocol):
    """A worker that was asked for.  What it waits for returns something nobody looks at."""

    def wait_for_startup(self) -> Awaitable[object]: ...

    def wait_for_shutdown(self) -> Awaitable[object]: ...


Begin = Callable[[str | None], Awaitable[Running]]
"""Asks for a worker that rings at a FIFO, or returns at once."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that starts processes; *share* of the samples, fewer if it is slow."""

    name: str
    entered: Callable[[str], AbstractAsyncContextManager[Begin]]
    pause: float = PAUSE
    share: float = 1.0
    knows_start: bool = False


# aiobgw.


def supervised(name: str, target: str = "", *, pause: float = PAUSE, **options: Any) -> Contender:
    """A supervisor with these options, and a plain target or an "_async" one."""

    @asynccontextmanager
    async def entered(bell: str) -> AsyncIterator[Begin]:
        returns = _spec(f"{TARGETS}:nothing{target}")
        rings = _spec(f"{TARGETS}:ring{target}", bell)
        async with Supervisor(name="bench", preload=(TARGETS,), **options) as supervisor:
            yield lambda path: supervisor.register(returns if path is None else rings)

    return Contender(f"aiobgw {name}", entered, pause=pause, knows_start=True)


def _spec(target: str, *args: str) -> WorkerSpec:
    return WorkerSpec(name="bench", target=target, args=args, restart=Restart.NEVER)


# Peers.


def processes(method: str, share: float = 1.0) -> Contender:
    """A multiprocessing.Process for each worker."""
    context: Any = multiprocessing.get_context(method)

    @asynccontextmanager
    async def entered(bell: str) -> AsyncIterator[Begin]:
        async def begin(path: str | None) -> Running:
            target, args = (targets.nothing, ()) if path is None else (targets.ring, (path,))
            process = context.Process(target=target, args=args)
            process.start()
            return _Process(process)

        yield begin

    return Contender(f"multiprocessing {method}", entered, share=share)


class _Process:
    """A multiprocessing.Process, awaited without a thread."""

    def __init__(self, process: multiprocessing.Process) -> None:
        self._process = process

    async def wait_for_startup(self) -> None:
        """Nobody tells: only the target's first line does."""

    async def wait_for_shutdown(self) -> None:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.add_reader(self._process.sentinel, settle, over)
        await over
        loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._process.close()


def settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def interpreters(share: float) -> Contender:
    """``python -c`` in a subprocess for each worker."""

    @asynccontextmanager
    async def entered(bell: str) -> AsyncIterator[Begin]:
        async def begin(path: str | None) -> Running:
            program = "" if path is None else targets.RING.format(path=path)
            command = (sys.executable, "-c", program)
            return _Subprocess(await asyncio.create_subprocess_exec(*command))

        yield begin

    return Contender("asyncio subprocess python -c", entered, share=share)


class _Subprocess:
    """A subprocess under the names of a handle."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def wait_for_startup(self) -> None:
        """Nobody tells: only the program's first line does."""

    async def wait_for_shutdown(self) -> None:
        await self._process.wait()


@contextmanager
def best_case() -> Iterator[None]:
    """Give the peers their best case; to be entered in a running loop."""
    multiprocessing.set_forkserver_preload(["asyncio", TARGETS])
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)

    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        _stop_helpers()


def _stop_helpers() -> None:
    """End multiprocessing's servers, and wait: else they outlive this process by a moment."""
    helpers: tuple[Any, ...] = (forkserver._forkserver, resource_tracker._resource_tracker)
    for helper in helpers:
        helper._stop()


CONTENDERS = (
    processes("fork"),
    supervised("spares=0, plain", spares=0),
    supervised("spares=0, plain, lean", spares=0, preload_asyncio=False),
    supervised("spares=0, async", "_async", spares=0),
    supervised("spares=4, plain", spares=4),
    supervised("spares=4, plain, lean", spares=4, preload_asyncio=False),
    supervised("spares=4, plain, back to back", spares=4, pause=0.0),
    supervised("spares=4, async", "_async", spares=4),
    processes("forkserver"),
    interpreters(0.5),
    processes("spawn", 0.15),
)
