"""What the open supervisors of this process hold, for those who check that nothing is left.

Only the pytest plugin asks.  What it reads belongs to the parts of a supervisor.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

from .._ipc import forks
from .._ipc.verbs import Verb
from ..errors import SupervisorFailed
from .core import Core, Stage
from .registry import RegisteredWorker
from .supervisor import Supervisor

_OPEN = (Stage.STARTING, Stage.OPEN, Stage.STOPPING)
PATIENCE = 5.0


def core_of(supervisor: Supervisor) -> Core:
    return supervisor._core


def open_cores() -> list[Core]:
    """Return the supervisors of this process that were entered and are not over."""
    cores = (owner for owner in forks.owners() if isinstance(owner, Core))
    return [core for core in cores if core.stage in _OPEN]


def unheard_failure(supervisor: Supervisor) -> SupervisorFailed | None:
    """Return why it gave up, if nobody was told: an exception that was raised has a traceback."""
    failure = supervisor._core.failure
    return failure if failure is not None and failure.__traceback__ is None else None


def zygote_pid(core: Core) -> int | None:
    return core.launcher.zygote_pid if core.launcher is not None else None


def descriptors(core: Core) -> set[int]:
    """Return every descriptor that it holds."""
    found = {
        *core.outside.descriptors(),
        *core.cgroups.descriptors(),
        *core.signs.descriptors(),
        *_of_workers(core),
    }
    if core.launcher is not None:
        found.update(core.launcher.descriptors())
    if core.outside.board_fd >= 0:
        found.update(_copies(core.outside.board_fd))
    return {fd for fd in found if fd >= 0}


def _of_workers(core: Core) -> Iterator[int]:
    for worker in core.registry.all():
        yield from worker.fds
        if worker.client_end is not None:
            yield worker.client_end.fd
        if worker.stacks is not None:
            yield worker.stacks.fd


def _copies(fd: int) -> Iterator[int]:
    """Return *fd*, and whatever is the same file: a mapping keeps a copy of its own."""
    mine = os.fstat(fd)
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.path.samestat(os.fstat(number), mine):
                yield number
        except OSError:
            pass  # the descriptor that listdir() itself was using


def end(core: Core) -> bool:
    """Abandon it, from a thread in which no loop runs; return whether it is over."""
    _in_its_thread(core, core.abandon)
    return core.stage not in _OPEN


def kill(core: Core, worker: RegisteredWorker) -> None:
    """Kill a worker for good, from a thread in which no loop runs."""
    _in_its_thread(core, lambda: core.ask(worker, Verb.KILL, 0))


def wait_over(core: Core, worker: RegisteredWorker, seconds: float) -> bool:
    """Have the supervisor's loop run, if nobody runs it, until the worker is over."""
    host = _host(core)
    if host is None or host.is_closed():
        return worker.is_over
    waiting = asyncio.wait_for(_over(worker), seconds)
    try:
        if host.is_running():
            asyncio.run_coroutine_threadsafe(waiting, host).result(seconds + PATIENCE)
        else:
            host.run_until_complete(waiting)
    except TimeoutError:
        pass
    return worker.is_over


async def _over(worker: RegisteredWorker) -> None:
    while not worker.is_over:
        await worker.changes.wait()


def _host(core: Core) -> asyncio.AbstractEventLoop | None:
    return core.loop._host if core.loop is not None else None


def _in_its_thread(core: Core, act: Callable[[], None]) -> None:
    """Act on a supervisor whose loop may be running in another thread.

    Race: then it is done there, and waited for, PATIENCE seconds at most.
    """
    host = _host(core)
    if host is None or not host.is_running():
        act()
        return
    done = threading.Event()

    def act_there() -> None:
        act()
        done.set()

    try:
        host.call_soon_threadsafe(act_there)
    except RuntimeError:
        act()  # the loop was closed meanwhile
    else:
        done.wait(PATIENCE)
