"""What the waits of a handle look for; how to wait is another's business.

Each function returns a look: given a status it returns what was waited for, None if it is not
so yet, and raises if it will never be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..errors import NeverStarted
from ..status import ExitKind, ExitStatus, WorkerState, WorkerStatus
from .port import Port

T = TypeVar("T")
Look = Callable[[WorkerStatus], T | None]


def startup(port: Port) -> Look[WorkerStatus]:
    """Look whether it has started at least once."""
    seen = _last_incarnation(port.status())

    def look(status: WorkerStatus) -> WorkerStatus | None:
        if status.started_at is None:
            _raise_unless_pending(status, seen)
            return None
        return status

    return look


def ready(port: Port) -> Look[WorkerStatus]:
    """Look whether it is ready, or has ended well."""
    return partial(look_ready, seen=_last_incarnation(port.status()))


def look_ready(status: WorkerStatus, seen: int) -> WorkerStatus | None:
    """Look whether it is ready, or has ended well, when exits up to *seen* are old news."""
    if status.ready:
        return status
    if status.started_at is None:
        _raise_unless_pending(status, seen)
    elif status.state is WorkerState.STOPPED and status.exit is not None:
        status.exit.check()
        return status
    return None


def exit(port: Port) -> Look[ExitStatus]:
    """Look whether the incarnation of this moment has ended."""
    status = port.status()
    between = status.state in (WorkerState.BACKOFF, WorkerState.STOPPED)
    wanted = 0 if between else max(1, status.incarnation)

    def look(status: WorkerStatus) -> ExitStatus | None:
        if _last_incarnation(status) >= wanted and status.exit is not None:
            return port.exit_of(wanted) or status.exit
        if status.state is WorkerState.STOPPED:
            if status.exit is None:
                raise never_started(status)
            return status.exit
        return None

    return look


def shutdown(status: WorkerStatus) -> tuple[ExitStatus | None] | None:
    """Look whether it is over for good; the exit is wrapped, since there may be none."""
    return (status.exit,) if status.state is WorkerState.STOPPED else None


def never_started(status: WorkerStatus) -> NeverStarted:
    """Return the error for a worker whose launches have led to nothing so far."""
    exit = status.exit
    return NeverStarted(
        status.name,
        str(exit) if exit is not None else status.reason,
        error=exit.error if exit is not None else None,
        next_start_at=status.next_start_at,
    )


def _raise_unless_pending(status: WorkerStatus, seen: int) -> None:
    """Raise NeverStarted if a launch ended since *seen*, or none is to come.

    One that was ended on request (an intended restart, a crash cycle) is followed by another
    at once.
    """
    if status.state is WorkerState.STOPPED:
        raise never_started(status)
    if status.exit is None or status.exit.kind is ExitKind.TERMINATED:
        return
    if status.state is WorkerState.BACKOFF or _last_incarnation(status) > seen:
        raise never_started(status)


def _last_incarnation(status: WorkerStatus) -> int:
    return status.exit.incarnation if status.exit is not None else 0
