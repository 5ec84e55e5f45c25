"""Handles: one worker, as those see it who wait for it or ask something of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar, final

from .._ipc.verbs import Verb
from .._names import TOKEN_PREFIX
from ..errors import SupervisorDied, WorkerFailed
from ..status import ExitStatus, WorkerState, WorkerStatus
from . import waits
from .guard import Guard
from .port import Port

T = TypeVar("T")


class Handle:
    """A worker, as those see it who ask something of it: what both kinds of handles share."""

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
        self._port.request(Verb.TERMINATE)

    def kill(self) -> None:
        """End it for good, at once: SIGKILL to its process group; never restarted.

        With ``crash_scope=CrashScope.ALL`` this is a crash, as everything is that leaves
        it no time for a farewell.
        """
        self._port.request(Verb.KILL)

    def signal(self, signum: int) -> None:
        """Send it a signal, and leave the rest to its restart rule."""
        self._port.request(Verb.SIGNAL, int(signum))

    def restart(self) -> None:
        """End it as ``terminate`` does and start it again; in BACKOFF, start it now.

        Counts for nothing.
        """
        self._port.request(Verb.RESTART)

    def wake(self) -> None:
        """Set the worker's own latch.  A command has none, and notices nothing."""
        self._port.request(Verb.WAKE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
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
            return f"<{type(self).__name__} {self.name!r} slot={self.slot} gen={self.generation}>"
        pid = f" pid={status.pid}" if status.pid else ""
        return (
            f"<{type(self).__name__} {self.name!r} slot={self.slot} gen={self.generation}"
            f" {status.state.name}{pid}>"
        )


@final
class WorkerHandle(Handle):
    """A worker; ``await handle`` means ``await handle.wait_for_shutdown()``.

    A handle goes on across restarts, and never speaks for another worker: once its own is
    over it says STOPPED, and requests do nothing.  Requests are plain and idempotent, and
    pass on what was asked before they return; all waits take ``asyncio.timeout`` and lose
    nothing when they are cancelled.
    """

    __slots__ = ()

    async def wait_for_startup(self) -> WorkerStatus:
        """Wait until it has started at least once: its target is about to be called.

        For a command: until its exec succeeded.  Returns also if it has already ended.
        Raises NeverStarted when a launch ended before that (``next_start_at`` says whether
        there will be another), or when there will be none.
        """
        return await self._wait(waits.startup(self._port))

    async def wait_for_ready(self) -> WorkerStatus:
        """Wait until it said that it is ready, or has started if it needs not say so.

        Returns also if it has ended well meanwhile.  Raises NeverStarted as
        ``wait_for_startup`` does, and WorkerFailed if it is over in another way.
        """
        return await self._wait(waits.ready(self._port))

    async def wait_for_exit(self) -> ExitStatus:
        """Wait until the incarnation of this moment has ended.

        Between two lives, and after the last one, returns the last exit at once; before the
        first one, waits for its end.  Raises NeverStarted if there will be none.
        """
        return await self._wait(waits.exit(self._port))

    async def wait_for_shutdown(self) -> ExitStatus | None:
        """Wait until it is over for good and its slot is free; None if it never ran."""
        return (await self._wait(waits.shutdown))[0]

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
            return waits.never_started(status)
        return None if status.exit.ok else WorkerFailed(self.name, status.exit)

    async def _wait(self, look: Callable[[WorkerStatus], T | None]) -> T:
        """Look; if it is not so yet, wait for a change and look again."""
        while True:
            status = self._port.look()
            found = look(status) if status is not None else None
            if found is not None:
                return found
            await self._port.changes.wait()
