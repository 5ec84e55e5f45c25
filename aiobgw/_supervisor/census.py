"""What the open supervisors of this process hold, for those who check that nothing is left.

Reads what the parts own, and changes nothing but through ``end`` and ``kill``.  Only the
pytest plugin asks.
"""

from __future__ import annotations

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
    zygote = core.launcher.keeper.zygote if core.launcher is not None else None
    return zygote.pid if zygote is not None else None


def descriptors(core: Core) -> set[int]:
    """Return those that come and go while it is open: of its zygote, workers and clients."""
    return {fd for fd in _descriptors(core) if fd >= 0}


def _descriptors(core: Core) -> Iterator[int]:
    launcher = core.launcher
    if launcher is not None:
        if launcher.keeper.zygote is not None:
            yield from (launcher.keeper.zygote.control.fd, launcher.keeper.zygote.pidfd)
        for child in launcher._children:
            yield child.pidfd
            if child.channel is not None:
                yield child.channel.fd
    if core.outside._peers is not None:
        yield from (peer.channel.fd for peer in core.outside._peers._peers)
    for worker in core.registry.all():
        yield from worker.fds
        if worker.client_end is not None:
            yield worker.client_end.fd


def end(core: Core) -> bool:
    """Abandon it, from a thread in which no loop runs; return whether it is over."""
    _in_its_thread(core, core.abandon)
    return core.stage not in _OPEN


def kill(core: Core, worker: RegisteredWorker) -> None:
    """Kill a worker for good, from a thread in which no loop runs."""
    _in_its_thread(core, lambda: core.ask(worker, Verb.KILL, 0))


def _in_its_thread(core: Core, act: Callable[[], None]) -> None:
    """Act on a supervisor whose loop may be running in another thread.

    Race: then it is done there, and waited for, PATIENCE seconds at most.
    """
    host = core.loop._host if core.loop is not None else None
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
