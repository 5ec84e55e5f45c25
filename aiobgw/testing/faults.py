"""Faults: what the world does to processes, done to a worker's, behind its supervisor's back.

``kill``, ``freeze``, ``thaw`` and ``oom`` do it from outside, to whatever runs there.  For
``exit_with``, ``raise_in`` and ``oom`` the worker must help: it must be a Python target, of a
supervisor with ``preload=("aiobgw.testing.inside",)``.  All are plain, and block, most of them
for about a millisecond: the host's event loop stands still meanwhile, and a supervisor in it
learns of the fault afterwards, as it would of a real one.  They are for handles of a supervisor
in this process, and for those of a client that shares its pid namespace.

A worker without a process (it waits for a restart, it is over, it has just ended) makes all of them
raise ProcessLookupError, and nothing was done.  So does one that runs already, and of which its
supervisor has not heard yet: ``await handle.wait_for_startup()`` first.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._client.handle import Handle
from .._process import exits
from ..errors import Unsupported
from ..status import SupervisorStatus
from .asking import ask, order
from .memory import LIMIT, MemoryCgroup
from .process import Process, no_process, process_of

if TYPE_CHECKING:
    from typing import Protocol

    from .._client.blocking import BlockingClient
    from .._client.client import Client

    class HasStatus(Protocol):
        """A Supervisor, a Client or a BlockingClient."""

        def status(self) -> SupervisorStatus: ...


STOP_TIMEOUT = 5.0
LOOK_AGAIN = 0.0005


# From outside.


def kill(handle: Handle, signum: int = signal.SIGKILL) -> None:
    """Send the worker's process a signal, which the supervisor does not know of.

    Returns after sending.  What follows is its restart rule's business (``handle.kill()``
    would end it for good), and the rest of its process group gets SIGKILL, as after each exit.
    """
    with process_of(handle) as process:
        process.send(signum)


def freeze(handle: Handle) -> None:
    """Stop the worker's process (SIGSTOP); returns when all of its threads have stopped.

    Raises TimeoutError, and lets it go on, if that takes more than 5 s.
    """
    with process_of(handle) as process:
        _freeze(process)


def thaw(handle: Handle) -> None:
    """Let the worker's process go on (SIGCONT); nothing if it was not frozen."""
    with process_of(handle) as process:
        process.send(signal.SIGCONT)


@contextmanager
def frozen(handle: Handle) -> Iterator[None]:
    """Freeze the worker's process for the time of a ``with`` block.

    At the end that very process goes on, if it still lives, and no other incarnation.
    """
    with process_of(handle) as process:
        _freeze(process)
        try:
            yield
        finally:
            exits.send(process.pidfd, signal.SIGCONT)


def _freeze(process: Process) -> None:
    process.send(signal.SIGSTOP)
    give_up = time.monotonic() + STOP_TIMEOUT
    while not _is_stopped(process.pid):
        if process.has_ended:
            raise process.gone()
        if time.monotonic() > give_up:
            exits.send(process.pidfd, signal.SIGCONT)  # takes the stop back, too
            raise TimeoutError(f"{process.name} has not stopped within {STOP_TIMEOUT} s")
        time.sleep(LOOK_AGAIN)  # only its parent would be told


def _is_stopped(pid: int) -> bool:
    try:
        threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return False  # it has ended
    states = [exits.stat_of(thread)[:1] for thread in threads]
    return all(state in ([b"T"], [b"t"], []) for state in states)


# From inside.


def exit_with(handle: Handle, code: int, *, timeout: float = 5.0) -> None:
    """Have the worker's process end with an exit code at once: no farewell, no clean-up.

    As C code does it that calls ``_exit``.  Returns when the worker is about to.  Raises
    Unsupported for a command, and without ``preload=("aiobgw.testing.inside",)``; and TimeoutError
    if the worker does not run Python code within *timeout* seconds, because it is in a long
    call of C code, or frozen: then nothing happens later, either.
    """
    if not 0 <= code <= 255:
        raise ValueError(f"an exit code is 0 to 255, not {code}")
    with process_of(handle, started=True) as process:
        order(process, "exit_with", code, timeout)


def raise_in(handle: Handle, error: BaseException, *, timeout: float = 5.0) -> None:
    """Raise an exception in the worker's target.

    In a plain target between two instructions of the main thread, wherever that is; in an async
    target where its main task awaits something, which is cancelled then, or between two
    instructions of that task.  A target may catch it.  Else the worker fails with it: kind
    FAILED, and ``ExitStatus.error`` has its text.  Python ignores exceptions in ``__del__`` and
    some callbacks, this one, too.

    The error is pickled.  Raises ValueError if the worker cannot unpickle it, ProcessLookupError
    if its target is just over, and otherwise what ``exit_with`` raises.
    """
    if not isinstance(error, BaseException):
        raise TypeError(f"an exception is raised, not {error!r}")
    with process_of(handle, started=True) as process:
        order(process, "raise_in", error, timeout)


def oom(handle: Handle, *, limit: int = LIMIT, timeout: float = 10.0) -> None:
    """Have the kernel's OOM killer end the worker's process; returns when it has ended.

    The process is moved into a memory cgroup of its own below the one it is in, with a *limit* in
    bytes and no swap, and allocates more than that.  The cgroup is removed afterwards; if
    anything goes wrong before, the process goes back to where it was.  (If the test itself is
    killed meanwhile, the next ``oom`` removes what is left.)

    Raises Unsupported, with the reason, where no memory cgroup can be made (this takes root, or
    a delegated cgroup), and otherwise what ``exit_with`` raises.
    """
    give_up = time.monotonic() + timeout
    with process_of(handle, started=True) as process, MemoryCgroup(process.pid, limit) as cgroup:
        size = 4 * limit
        answer = ask(process, "allocate", size, timeout, lambda: cgroup.enter(process.pid))
        if answer:
            raise Unsupported(f"the kernel let {process.name} have more memory than its cgroup")
        # Ordering: it has let its end of the connection go, and is about to end.
        if not exits.wait_for(process.pidfd, max(0.0, give_up - time.monotonic())):
            raise TimeoutError(f"{process.name} has not ended within {timeout} s")


# The processes around a worker.


def kill_zygote(supervisor: HasStatus) -> None:
    """Send SIGKILL to the process that forks workers, of a supervisor or of a client's.

    Workers are not touched, and the supervisor starts another one.  Raises ProcessLookupError
    if there is none at this moment.
    """
    status = supervisor.status()
    name = f"zygote of {status.name!r}"
    if status.zygote_pid is None:
        raise no_process(name, "there is none at this moment")
    process = Process(name, status.zygote_pid)
    try:
        # It is the supervisor's child, which reaps it: as long as it is there, it is this one.
        parent = exits.stat_of(process.pid)[1:2]
        if parent != [b"%d" % status.pid] or process.has_ended:
            raise process.gone()
        process.send(signal.SIGKILL)
    finally:
        process.close()


def kill_supervisor(client: Client | BlockingClient) -> None:
    """Send SIGKILL to the process of the supervisor that *client* is attached to.

    The kernel ends its workers.  Raises ValueError if that process is this one, SupervisorDied
    if it is gone already.
    """
    if client.status().pid == os.getpid():
        raise ValueError("the supervisor runs in this very process: use abandon()")
    # Ordering: status() has seen it alive; a client without a supervisor may have no pidfd.
    # The supervisor has sent this pidfd, of itself: it cannot be another process.
    signal.pidfd_send_signal(client._connection.pidfd, signal.SIGKILL)
