"""Handles: one worker, as those see it who wait for it or ask something of it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar, final

from ..errors import NeverStarted, SupervisorDied, WorkerFailed
from ..spec import TOKEN_PREFIX
from ..status import ExitStatus, WorkerState, WorkerStatus
from .changes import Changes
from .guard import Guard

T = TypeVar("T")


class Request(enum.Enum):
    """What can be asked of a worker."""

    TERMINATE = "terminate"
    KILL = "kill"
    SIGNAL = "signal"
    RESTART = "restart"
    WAKE = "wake"


class Port(Protocol):
    """The way from a handle to its worker."""

    @property
    def changes(self) -> Changes:
        """Told whenever the worker's status may have changed."""

    def status(self) -> WorkerStatus:
        """Return how it is; its last state for ever, once it is over.

        Raises SupervisorDied if that cannot be known, WrongProcess in a fork.
        """

    def exit_of(self, incarnation: int) -> ExitStatus | None:
        """Return how an incarnation ended, or the last one if that is forgotten."""

    def request(self, request: Request, argument: int = 0) -> None:
        """Pass a request on; one that comes too late does nothing."""


@final
class WorkerHandle:
    """A worker; ``await handle`` means ``await handle.wait_for_shutdown()``.

    A handle goes on across restarts, and never speaks for another worker: once its own is
    over it says STOPPED, and requests do nothing.  Requests are plain and idempotent, and
    pass on what was asked before they return; all waits take ``asyncio.timeout`` and lose
    nothing when they are cancelled.
    """

    __slots__ = ("__weakref__", "_port", "epoch", "generation", "name", "slot")

    def __init__(self, port: Port, name: str, epoch: int, slot: int, generation: int) -> None:
        self._port = port
        self.name = name
        self.epoch = epoch
        self.slot = slot
        self.generation = generation

    @property
    def token(self) -> str:
        """The handle as text, for ``get()`` in any process of the same supervisor."""
        return f"{TOKEN_PREFIX}{self.epoch:x}:{self.slot}:{self.generation}"

    def status(self) -> WorkerStatus:
        """Return how the worker is now."""
        return self._port.status()

    def terminate(self) -> None:
        """End it for good: SIGTERM, ``stop_timeout`` to comply, SIGKILL; never restarted.

        PostgreSQL's TerminateBackgroundWorker, with an end.
        """
        self._port.request(Request.TERMINATE)

    def kill(self) -> None:
        """End it for good, at once: SIGKILL to its process group; never restarted."""
        self._port.request(Request.KILL)

    def signal(self, signum: int) -> None:
        """Send it a signal, and leave the rest to its restart rule."""
        self._port.request(Request.SIGNAL, int(signum))

    def restart(self) -> None:
        """End it as ``terminate`` does and start it again; in BACKOFF, start it now.

        Counts for nothing.
        """
        self._port.request(Request.RESTART)

    def wake(self) -> None:
        """Set the worker's own latch.  A command has none, and notices nothing."""
        self._port.request(Request.WAKE)

    async def wait_for_startup(self) -> WorkerStatus:
        """Wait until it has started at least once: its target is about to be called.

        For a command: until its exec succeeded.  Returns also if it has already ended.
        Raises NeverStarted when a launch ended before that (``next_start_at`` says whether
        there will be another), or when there will be none.
        """
        seen = _last_incarnation(self.status())

        def started(status: WorkerStatus) -> WorkerStatus | None:
            if status.started_at is None:
                self._raise_unless_pending(status, seen)
                return None
            return status

        return await self._wait(started)

    async def wait_for_ready(self) -> WorkerStatus:
        """Wait until it said that it is ready, or has started if it needs not say so.

        Returns also if it has ended well meanwhile.  Raises NeverStarted as
        ``wait_for_startup`` does, and WorkerFailed if it is over in another way.
        """
        seen = _last_incarnation(self.status())

        return await self._wait(lambda status: self._look_ready(status, seen))

    async def wait_for_exit(self) -> ExitStatus:
        """Wait until the incarnation of this moment has ended.

        Between two lives, and after the last one, returns the last exit at once; before the
        first one, waits for its end.  Raises NeverStarted if there will be none.
        """
        status = self.status()
        between = status.state in (WorkerState.BACKOFF, WorkerState.STOPPED)
        wanted = 0 if between else max(1, status.incarnation)
        if status.state is WorkerState.NOT_STARTED:
            wanted = status.incarnation + 1

        def exited(status: WorkerStatus) -> ExitStatus | None:
            if _last_incarnation(status) >= wanted and status.exit is not None:
                return self._port.exit_of(wanted) or status.exit
            if status.state is WorkerState.STOPPED:
                return status.exit or self._raise_never(status)
            return None

        return await self._wait(exited)

    async def wait_for_shutdown(self) -> ExitStatus | None:
        """Wait until it is over for good and its slot is free; None if it never ran."""

        def over(status: WorkerStatus) -> tuple[ExitStatus | None] | None:
            return (status.exit,) if status.state is WorkerState.STOPPED else None

        return (await self._wait(over))[0]

    def __await__(self) -> Generator[object, None, ExitStatus | None]:
        return self.wait_for_shutdown().__await__()

    def guard(self) -> Guard:
        """Return an ``async with`` block that is cancelled when this worker has failed.

        That is when it is over for good, and neither cleanly nor on request; then
        WorkerFailed or NeverStarted is raised, or SupervisorDied.
        """
        return Guard(self._port.changes, self._failure)

    def _failure(self) -> Exception | None:
        try:
            status = self.status()
        except SupervisorDied as error:
            return error
        if status.state is not WorkerState.STOPPED:
            return None
        if status.exit is None:
            return self._never(status)
        return None if status.exit.ok else WorkerFailed(self.name, status.exit)

    async def _wait(self, find: Callable[[WorkerStatus], T | None]) -> T:
        """Look; if it is not so yet, wait for a change and look again."""
        while True:
            found = find(self._port.status())
            if found is not None:
                return found
            await self._port.changes.wait()

    def _look_ready(self, status: WorkerStatus, seen: int) -> WorkerStatus | None:
        """Return *status* once it is ready, or has ended well; raise if it ended otherwise."""
        if status.ready:
            return status
        if status.started_at is None:
            self._raise_unless_pending(status, seen)
        elif status.state is WorkerState.STOPPED and status.exit is not None:
            status.exit.check()
            return status
        return None

    def _raise_unless_pending(self, status: WorkerStatus, seen: int) -> None:
        """Raise NeverStarted if a launch ended since *seen*, or none is to come."""
        waiting = status.state is WorkerState.BACKOFF and status.exit is not None
        if waiting or status.state is WorkerState.STOPPED or _last_incarnation(status) > seen:
            self._raise_never(status)

    def _raise_never(self, status: WorkerStatus) -> ExitStatus:
        raise self._never(status)

    def _never(self, status: WorkerStatus) -> NeverStarted:
        exit = status.exit
        reason = str(exit) if exit is not None else status.reason
        return NeverStarted(
            self.name,
            reason,
            error=exit.error if exit is not None else None,
            next_start_at=status.next_start_at,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkerHandle):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int, int]:
        return (self.epoch, self.slot, self.generation)

    def __repr__(self) -> str:
        try:
            status = self.status()
        except Exception:
            return f"<WorkerHandle {self.name!r} slot={self.slot} gen={self.generation}>"
        pid = f" pid={status.pid}" if status.pid else ""
        return (
            f"<WorkerHandle {self.name!r} slot={self.slot} gen={self.generation}"
            f" {status.state.name}{pid}>"
        )


def _last_incarnation(status: WorkerStatus) -> int:
    return status.exit.incarnation if status.exit is not None else 0
