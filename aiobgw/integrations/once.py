"""One supervisor for all processes of an application on this host.

A server runs an application in several processes.  Each enters a SharedSupervisor: the first
that gets the runtime directory owns the supervisor, the others attach to it.  When the owner
goes, however it goes, the others compete for the directory; one wins, and starts the
supervisor's successor.

Invariant: no worker runs twice at a time.  The instance lock decides who owns, and it is free
only when the last worker of the predecessor is gone.  So a successor starts the same specs
again, with a new epoch; what was registered while the predecessor ran ended with it.

Ownership: a process owns the supervisor in it, or its client's connection, never both, and
one task, which waits for the end of that.  There is no other waiting while all is well; who
finds neither a supervisor nor the directory free looks again soon, from 10 to 50 ms.  Nothing
is made before ``async with``, so that one made before a fork is entered in every child.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from types import TracebackType
from typing import Any, Self, final

from .._client.client import Client
from .._client.events import EventStream
from .._client.handle import WorkerHandle
from .._supervisor.supervisor import Supervisor
from ..errors import (
    NotAttached,
    ShuttingDown,
    SupervisorDied,
    SupervisorFailed,
    WrongProcess,
)
from ..spec import Phase, WorkerSpec
from ..status import SupervisorStatus
from .election import Candidate, Patience

log = logging.getLogger("aiobgw")


@final
class SharedSupervisor:
    """The supervisor that all processes of an application on this host share.

        async with SharedSupervisor(spec, name="shop") as supervisor:
            handle = await supervisor.register(another)

    Entered in each process: one of them owns the supervisor and starts *specs*, the others
    attach.  *options* are those of Settings; ``name`` or ``runtime_dir`` says which processes
    belong together, and ``runtime_dir`` is True by default.  Raises InvalidSpec for nonsense.

    Entering waits until this process owns the supervisor, or is attached; it raises what the
    owner's start would raise, in every process that tries it.  When the owner dies, another
    process takes over as fast as a supervisor starts: in a few tenths of a second, and the
    time to import ``preload``.  When a supervisor fails, all wait before that, 0.1 s to 5 s,
    longer each time.

    Leaving: an owner shuts down (FAST); after a second, in which the others of a server that
    stops leave, too, another one takes over.  One that is attached detaches.

    Handles, events and epochs are those of one owner: handles of a gone one raise
    SupervisorDied.  Not guaranteed: an owner that is frozen (SIGSTOP) stays the owner, and
    nobody can register, or enter, until it goes on or is gone; during a deployment the
    owner's specs hold, old or new, until it goes.
    """

    def __init__(self, *specs: WorkerSpec, **options: Any) -> None:
        self._candidate = Candidate(specs, options)
        self._phase = self._candidate.settings.start_phase
        self._current: Supervisor | Client | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed: asyncio.Event | None = None
        self._left = False
        self._pid = self._thread = 0

    # Entering and leaving.

    async def __aenter__(self) -> Self:
        if self._changed is not None:
            raise RuntimeError(f"{self!r} is entered once: make a new one")
        self._changed = asyncio.Event()
        self._pid, self._thread = os.getpid(), threading.get_ident()
        try:
            self._replace(await self._candidate.elect(self._phase))
        except BaseException:
            self._left = True
            self._replace(None)
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"aiobgw: {self.name} is watched")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._check_place()
        self._left = True
        try:
            if self._watcher is not None:
                self._watcher.cancel()
                await asyncio.wait([self._watcher])
        finally:
            current = self._replace(None)
            if isinstance(current, Client):
                current.close()
            elif current is not None:
                await self._end(current)

    async def _end(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.__aexit__(None, None, None)
        except SupervisorFailed as error:
            log.error("%s", error)  # as any other failure of it: logged, and survived

    # What it passes on.

    @property
    def name(self) -> str:
        return self._candidate.settings.name

    @property
    def is_owner(self) -> bool:
        """Whether the supervisor runs in this process; this may change at any await."""
        return isinstance(self._current, Supervisor)

    @property
    def epoch(self) -> int:
        """The number of the supervisor's instance, another one for each owner.

        Raises SupervisorDied while there is none.
        """
        return self._supervisor().epoch

    async def register(self, spec: WorkerSpec) -> WorkerHandle:
        """Register a worker with whoever owns the supervisor; waits while nobody does.

        Raises what ``Supervisor.register`` and ``Client.register`` raise, but ShuttingDown:
        it waits for the successor.  SupervisorDied means that the owner died when the request
        was on its way: the worker may have run, and does not any more.
        """
        refused = None
        while True:
            refused = supervisor = await self._next(refused)
            try:
                return await supervisor.register(spec)
            except ShuttingDown:
                continue  # it has registered nothing
            except SupervisorDied as error:
                error.add_note("hint: the worker may have run; register it again if it may twice")
                raise

    def handles(self) -> list[WorkerHandle]:
        """Return the workers that hold a slot, the first registered first.

        This, ``get``, ``status`` and ``events`` raise SupervisorDied while there is no
        supervisor: see ``wait_for_supervisor``.
        """
        return self._supervisor().handles()

    def get(self, name_or_token: str) -> WorkerHandle | None:
        """Return the newest worker of that name, or the one of that token; None if gone."""
        return self._supervisor().get(name_or_token)

    def status(self) -> SupervisorStatus:
        """Return how the supervisor and its workers are now; ``pid`` is the owner's."""
        return self._supervisor().status()

    def events(self) -> EventStream:
        """Subscribe to what happens from now on, as long as there is this owner.

        The stream ends after Closed, or with SupervisorDied; the successor has its own.
        """
        return self._supervisor().events()

    async def wait_for_supervisor(self) -> SupervisorStatus:
        """Return the status of the supervisor, as soon as there is one."""
        while True:
            try:
                return (await self._next()).status()
            except SupervisorDied:
                continue  # Race: it died between the two

    async def advance(self, phase: Phase) -> None:
        """Say how far this process is: opens the start gates if it owns the supervisor.

        Also when it becomes the owner later; what other processes say counts for nothing.
        """
        self._check()
        self._phase = Phase(phase)
        if isinstance(self._current, Supervisor):
            try:
                await self._current.advance(self._phase)
            except ShuttingDown:
                pass  # it counts for the next one

    # Who asks, and what of.

    def _supervisor(self) -> Supervisor | Client:
        """Return the supervisor, or the way to it; raises while there is none."""
        self._check()
        if self._current is None:
            raise SupervisorDied(
                f"supervisor {self.name!r} is gone, and has no successor yet",
                hint="await wait_for_supervisor()",
            )
        return self._current

    async def _next(self, refused: Supervisor | Client | None = None) -> Supervisor | Client:
        """Return a supervisor that is alive, and is not *refused*; waits for it."""
        while True:
            self._check()
            assert self._changed is not None
            current = self._current
            if current is not None and current is not refused and _is_alive(current):
                return current
            await self._changed.wait()

    def _check(self) -> None:
        if self._changed is None or self._left:
            how = "has been left" if self._left else "has not been entered: use 'async with'"
            raise NotAttached(f"the shared supervisor {self.name!r} {how}")
        self._check_place()

    def _check_place(self) -> None:
        """Raise where one of both kinds cannot be used, so that the other cannot either."""
        if os.getpid() != self._pid:
            raise WrongProcess(f"the shared supervisor {self.name!r}")
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"the shared supervisor {self.name!r} was used from another thread than its event"
                " loop's; make the function that uses it an 'async def'"
            )

    def _replace(self, current: Supervisor | Client | None) -> Supervisor | Client | None:
        """Change who is current, tell all who wait, and return who was it."""
        before, self._current = self._current, current
        if self._changed is not None:
            self._changed.set()
            self._changed = asyncio.Event()
        return before

    # Succession.

    async def _watch(self) -> None:
        """Wait for the end of each supervisor, and then for its successor.  Never returns."""
        patience = Patience()
        while True:
            await self._succeed(patience, await self._outlive(patience))

    async def _outlive(self, patience: Patience) -> float:
        """Return when the current supervisor has ended: the pause before this process owns."""
        current, began = self._current, time.monotonic()
        assert current is not None
        try:
            await current.wait_closed()
            log.info("supervisor %r has ended", self.name)
            pause_after = patience.after_leaving
        except SupervisorDied as error:
            log.warning("supervisor %r: %s", self.name, error)
            pause_after = patience.after_death
        except Exception as error:
            log.error("supervisor %r: %s", self.name, error)
            pause_after = patience.after_failure

        self._replace(None)
        if isinstance(current, Client):
            current.close()
        return pause_after(time.monotonic() - began)

    async def _succeed(self, patience: Patience, pause: float) -> None:
        """Attach to the successor, or own it, however often it takes."""
        while self._current is None:
            phase = self._phase
            try:
                self._replace(await self._candidate.elect(phase, pause))
            except Exception as error:
                log.error("supervisor %r has no successor yet: %s", self.name, error)
                pause = 0.0
                await asyncio.sleep(patience.after_failure())
        if phase is not self._phase:  # Race: this process got further during the start
            await self.advance(self._phase)

    def __repr__(self) -> str:
        if self._left or self._changed is None:
            how = "left" if self._left else "not entered"
        elif self._current is None:
            how = "without supervisor"
        else:
            how = "owner" if self.is_owner else "attached"
        return f"<SharedSupervisor {self.name!r} {how}>"


def _is_alive(supervisor: Supervisor | Client) -> bool:
    """Look whether it lives: a client may be the first to notice."""
    try:
        return supervisor.epoch is not None
    except SupervisorDied:
        return False
