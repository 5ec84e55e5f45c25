"""A worker's process, held by its pidfd while something is done to it.

Invariant: no wrong process is hit.  The pid is the one that the supervisor names, and is
opened as a pidfd.  After that it must still run, lead a session, as every worker does, and be
the one that the supervisor names.  Race: the worker may have died before its pidfd was opened,
and the supervisor not know it yet.  Where the zygote reaps, the number is held until the supervisor
does.  Where the kernel reaps, the number is free; but numbers are given out in turn, so
all others must be used up within that moment, and then by somebody who calls ``setsid``.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .._client.handle import Handle
from .._process import exits
from ..status import WorkerState


class Process:
    """A process that is held by its pidfd: whatever its number means meanwhile, it is this one."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise self.gone() from None

    def gone(self) -> ProcessLookupError:
        return no_process(self.name, f"process {self.pid} has just ended")

    @property
    def has_ended(self) -> bool:
        return exits.wait_for(self.pidfd, 0)

    def send(self, signum: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            raise self.gone() from None

    def close(self) -> None:
        os.close(self.pidfd)


def no_process(name: str, why: str) -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, f"{name}: {why}")


@contextmanager
def process_of(handle: Handle, *, started: bool = False) -> Iterator[Process]:
    """Hold the process of a worker; it must have *started*, if that is needed."""
    name = f"worker {handle.name!r}"
    status = handle.status()
    if status.pid is None:
        raise no_process(name, f"it has no process: {status.state.value} {status.reason}".rstrip())
    if started and status.state is WorkerState.STARTING:
        raise no_process(name, "it has not started: await wait_for_startup() first")

    process = Process(name, status.pid)
    try:
        session = exits.stat_of(process.pid)[3:4]
        if process.has_ended or session != [b"%d" % process.pid]:
            raise process.gone()
        if handle.status().pid != process.pid:
            raise process.gone()
        yield process
    finally:
        process.close()
