"""Groups: several workers for one job, taken as a parallel leader takes them.

PostgreSQL's parallel.c is the model: LaunchParallelWorkers (as many as there is room for),
WaitForParallelWorkersToAttach, WaitForParallelWorkersToFinish, DestroyParallelContext.  What
differs: every wait has a bound or can be cancelled, and nothing polls.

A group has no task.  It observes its members from their registration on, within the turns of
the supervisor, so that it knows which of them failed first whoever waits, and whenever; what
waits is woken, and looks.  So entering, waiting and leaving may happen in different tasks.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self, final

from ..errors import InvalidSpec, NoFreeSlot, SupervisorDied, TooManyParallelWorkers
from ..spec import DAY, WorkerSpec
from ..status import ExitStatus
from .changes import Changes
from .handle import WorkerHandle
from .member import Member

CLOSE_SLACK = 5.0
"""Seconds beyond the members' ``stop_timeout``, in which the supervisor's SIGKILL works."""

KILL_TIMEOUT = 5.0

log = logging.getLogger("aiobgw")


Specs = WorkerSpec | Callable[[int], WorkerSpec]


class Registrar(Protocol):
    """Where workers are registered: a supervisor, or a client of one."""

    async def register(self, spec: WorkerSpec, /) -> WorkerHandle:
        """Register a worker; cancelled or refused, it has registered nothing."""


class _Stage(enum.Enum):
    NEW = "not entered"
    ENTERING = "being entered"
    OPEN = "open"
    LEFT = "left"


@final
class WorkerGroup:
    """Several workers for one job: as many as there is room for, all ended on leaving.

        async with WorkerGroup(supervisor, spec, 4) as group:
            came_up = await group.ready()   # 0 to 4; at 0 do the work yourself
            exits = await group.wait()

    *spec* is a WorkerSpec, whose name and a number from "#1" on make the members' names, or a
    callable that makes the spec of each number.  Their flags are usually CLASS_PARALLEL.

    Entering registers up to *planned* workers, in order.  The first refusal for want of room
    (NoFreeSlot, TooManyParallelWorkers) ends the attempts, and is no error: see ``refused``.
    Whatever else goes wrong is raised, when those already registered have ended.

    Leaving ends whoever still runs: SIGTERM, up to *close_timeout* seconds (default: the
    largest ``stop_timeout`` of the members, and 5 s), SIGKILL, up to 5 s more.  Cancelled, it
    kills at once, and waits for that.  So their slots and quota are free after the block.

    The failure of each member is raised once: by ``ready``, ``wait``, or by leaving a block
    that raised nothing itself.  Otherwise it is a note on what the block raised.  What ends
    because the block is left has not failed.  Raises InvalidSpec for nonsense.
    """

    def __init__(
        self,
        registrar: Registrar,
        spec: Specs,
        planned: int,
        *,
        close_timeout: float | None = None,
    ) -> None:
        _check_planned(planned)
        _check_close_timeout(close_timeout)
        _check_specs(spec, planned)
        # Ownership: let go when entered.  The supervisor's core knows us as an observer, and
        # would keep the supervisor, which ends everything when it is dropped.
        self._source: tuple[Registrar, Specs] | None = (registrar, spec)
        self._planned = planned
        self._close_timeout = close_timeout
        self._stage = _Stage.NEW
        self._stop_timeout = 0.0
        self._refused: NoFreeSlot | TooManyParallelWorkers | None = None
        self._lost: SupervisorDied | None = None
        self._changes = Changes()
        self._members: list[Member] = []
        self._coming: set[Member] = set()
        self._living: set[Member] = set()
        # Failures that nobody was told of, the first one first.
        self._unheard: dict[Member, Exception] = {}

    @property
    def planned(self) -> int:
        """How many workers were wanted."""
        return self._planned

    @property
    def handles(self) -> tuple[WorkerHandle, ...]:
        """The members that were registered, in order."""
        return tuple(member.handle for member in self._members)

    @property
    def refused(self) -> NoFreeSlot | TooManyParallelWorkers | None:
        """Why there are fewer members than planned; None if there are not."""
        return self._refused

    # Entering.

    async def __aenter__(self) -> Self:
        if self._stage is not _Stage.NEW or self._source is None:
            raise RuntimeError(f"this worker group is {self._stage.value}: make a new one")
        self._stage = _Stage.ENTERING
        source, self._source = self._source, None
        try:
            await self._register(*source)
        except BaseException:
            self._stage = _Stage.LEFT
            await self._end()
            raise
        self._stage = _Stage.OPEN
        return self

    async def _register(self, registrar: Registrar, specs: Specs) -> None:
        for number in range(1, self._planned + 1):
            spec = _spec_of(specs, number)
            try:
                handle = await registrar.register(spec)
            except (NoFreeSlot, TooManyParallelWorkers) as refusal:
                self._refused = refusal.with_traceback(None)
                return
            self._stop_timeout = max(self._stop_timeout, spec.stop_timeout)
            self._add(handle)

    def _add(self, handle: WorkerHandle) -> None:
        member = Member(handle)
        self._members.append(member)
        self._coming.add(member)
        self._living.add(member)
        # Ordering: observe, then look, so that a change in between is not lost.
        member.observe(partial(self._look, member))
        self._look(member)

    # Observing.

    def _look(self, member: Member) -> None:
        """See how a member is; called at every change, from inside the supervisor's turn."""
        try:
            failure = member.look()
        except SupervisorDied as error:
            self._lost = error.with_traceback(None)
            member.forget()
        else:
            self._note(member, failure)
        self._changes.tell()

    def _note(self, member: Member, failure: Exception | None) -> None:
        if failure is not None and self._stage is not _Stage.LEFT:
            self._unheard.pop(member, None)
            self._unheard[member] = failure
        elif member.came_up:
            self._unheard.pop(member, None)  # an earlier launch failed, and was made good
        if member.came_up or member.is_over:
            self._coming.discard(member)
        if member.is_over:
            self._living.discard(member)
            member.forget()

    def _look_again(self) -> None:
        """Raise WrongProcess in a fork, where nobody would wake us."""
        if self._stage in (_Stage.NEW, _Stage.ENTERING):
            raise RuntimeError("the worker group has not been entered: use 'async with'")
        for member in self._members:
            if not member.is_over:
                self._look(member)

    # Waiting.

    async def ready(self) -> int:
        """Return how many members came up, when all are ready or have ended well.

        PostgreSQL's WaitForParallelWorkersToAttach, without its busy loop.  At once raises
        NeverStarted or WorkerFailed for the first that ended before it was ready, and
        SupervisorDied.  Asked again after that, it counts those that did come up.
        """
        self._look_again()
        while True:
            self._raise_first(lambda member: not member.came_up)
            if not self._coming:
                return sum(member.came_up for member in self._members)
            if self._lost is not None:
                raise self._lost
            await self._changes.wait()

    async def wait(self) -> list[ExitStatus]:
        """Return how the members ended, in order, when all are over and their slots free.

        PostgreSQL's WaitForParallelWorkersToFinish.  Raises the first failure of a member as
        soon as it is known (NeverStarted, WorkerFailed), and SupervisorDied.  Asked again
        after that, it goes on to wait, and the list says how that member ended; one that
        never ran, with UNKNOWN and incarnation 0.
        """
        self._look_again()
        while True:
            self._raise_first(lambda member: member.is_over)
            if not self._living:
                return [member.exit for member in self._members]
            if self._lost is not None:
                raise self._lost
            await self._changes.wait()

    def _raise_first(self, concerns: Callable[[Member], bool]) -> None:
        for member, failure in self._unheard.items():
            if concerns(member):
                del self._unheard[member]  # told once
                raise failure

    # Leaving.

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Ordering: what failed is settled before anybody is asked to end because of us.
        self._look_again()
        self._stage = _Stage.LEFT
        failures = [failure for member, failure in self._unheard.items() if member.is_over]
        self._unheard.clear()
        if error is not None:
            _attach(error, failures)

        await self._end()
        if error is None and self._lost is not None:
            failures.insert(0, self._lost)
        if error is None and failures:
            first, *others = failures
            _attach(first, others)
            raise first

    async def _end(self) -> None:
        """End whoever still runs; bounded.  A cancellation hastens it, and is raised at the end.

        Returns early if the supervisor died: then the kernel ends them.
        """
        patience = self._close_timeout
        if patience is None:
            patience = self._stop_timeout + CLOSE_SLACK
        try:
            self._ask(WorkerHandle.terminate)
            await self._over_by(asyncio.get_running_loop().time() + patience)
        except asyncio.CancelledError:
            await self._kill()
            raise
        await self._kill()

    async def _kill(self) -> None:
        """Kill what still runs, and wait for it: not even a cancellation cuts that short."""
        self._ask(WorkerHandle.kill)
        until = asyncio.get_running_loop().time() + KILL_TIMEOUT
        cancelled: asyncio.CancelledError | None = None
        while self._has_living:
            try:
                if not await self._over_by(until):
                    self._give_up()
                    break
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _ask(self, request: Callable[[WorkerHandle], None]) -> None:
        for member in self._members:
            if member.is_over:
                continue
            try:
                request(member.handle)
            except SupervisorDied as error:
                self._lost = error.with_traceback(None)

    @property
    def _has_living(self) -> bool:
        return bool(self._living) and self._lost is None

    async def _over_by(self, when: float) -> bool:
        """Wait until nobody lives, or it is too late; return whether it was in time."""
        try:
            async with asyncio.timeout_at(when):
                while self._has_living:
                    await self._changes.wait()
        except TimeoutError:
            return False
        return True

    def _give_up(self) -> None:
        for member in self._members:
            if not member.is_over:
                log.error("worker %s: its group is left, and it lives", member.handle.name)

    def __repr__(self) -> str:
        return (
            f"<WorkerGroup {self._stage.value}: {len(self._members)} of {self._planned},"
            f" {len(self._living)} living>"
        )


def _spec_of(specs: Specs, number: int) -> WorkerSpec:
    if isinstance(specs, WorkerSpec):
        return replace(specs, name=f"{specs.name}#{number}")
    return specs(number)


def _check_specs(specs: object, planned: int) -> None:
    """Refuse a name that leaves no room for the numbers before anything is registered."""
    if isinstance(specs, WorkerSpec):
        _spec_of(specs, planned)
    elif not callable(specs):
        raise InvalidSpec(f"a WorkerSpec, or a callable, is wanted, not {specs!r}")


def _check_planned(planned: object) -> None:
    if not isinstance(planned, int) or isinstance(planned, bool) or planned < 0:
        raise InvalidSpec(f"a worker group has a number of workers from 0 on, not {planned!r}")


def _check_close_timeout(seconds: object) -> None:
    good = isinstance(seconds, (int, float)) and 0 <= seconds <= DAY  # NaN is neither
    if seconds is not None and (not good or isinstance(seconds, bool)):
        raise InvalidSpec(f"close_timeout must be 0 to 86400 seconds, not {seconds!r}")


def _attach(error: BaseException, failures: list[Exception]) -> None:
    """Note on *error* who else failed: the first in full, the others in a line each."""
    for number, failure in enumerate(failures):
        notes = getattr(failure, "__notes__", []) if number == 0 else []
        error.add_note("\n".join([f"worker group: {failure}", *notes]))
