"""The public face of a supervisor: checks who calls, and passes on."""

from __future__ import annotations

import asyncio
import signal
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, final

from .._client.changes import Changes
from .._client.events import EventStream
from .._client.guard import Guard
from .._client.handle import WorkerHandle
from .._ipc.verbs import Verb
from .._names import TOKEN_PREFIX
from ..errors import SupervisorDied, SupervisorFailed
from ..settings import Settings
from ..spec import Phase, ShutdownMode, WorkerSpec
from ..status import ExitStatus, SupervisorStatus, WorkerStatus
from . import entry
from .core import Core, Stage
from .registry import RegisteredWorker
from .starting import start

YIELD_AFTER = 0.002

P = ParamSpec("P")
S = TypeVar("S")


def _takes_settings(
    of: Callable[P, Settings],
) -> Callable[[Callable[[S, Settings], None]], Callable[Concatenate[S, P], None]]:
    """Give a constructor the options of Settings, which are written once, there."""

    def decorate(init: Callable[[S, Settings], None]) -> Callable[Concatenate[S, P], None]:
        def __init__(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, of(*args, **kwargs))

        return __init__

    return decorate


@final
class Supervisor:
    """Start worker processes, track their exits, and restart them by their rules.

    ``async with Supervisor(...) as supervisor:`` starts it, all or nothing, and ends in
    ``shutdown(FAST)``; for the options see Settings.  It belongs to one event loop and its
    thread.  Entering and leaving may happen in different tasks.  No worker outlives it: when
    its process ends, by SIGKILL too, the kernel ends them.
    """

    @_takes_settings(Settings)
    def __init__(self, settings: Settings) -> None:
        self._core = Core(settings)
        self._held = 0.0
        self._signals: list[int] = []
        # Also at the end of the interpreter: finalisers that were not run are run then.
        self._finaliser = weakref.finalize(self, Core.abandon, self._core)

    @property
    def name(self) -> str:
        return self._core.settings.name

    @property
    def epoch(self) -> int:
        """The number of this instance, in tokens and on the board; never used again."""
        return self._core.epoch

    # Entering and leaving.

    async def __aenter__(self) -> Self:
        core = self._core
        core.check()
        if core.stage is not Stage.NEW:
            raise RuntimeError(f"the supervisor is {core.stage.value}: make a new one")
        try:
            await start(core)
            self._handle_signals()
            core.stage = Stage.OPEN
            core.advance(core.settings.start_phase)
            for worker in core.registry.all():
                core.consider(worker)
            core.outside.listen()
        except BaseException:
            self.abandon()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.shutdown(ShutdownMode.FAST)
        except asyncio.CancelledError:
            # Whoever cancels a leave wants it over: not asked any more, but still awaited.
            await self._close_at_once()
            raise
        failure = self._core.failure
        if failure is None or isinstance(error, SupervisorFailed):
            return
        if error is None or isinstance(error, Exception):
            raise failure

    async def _close_at_once(self) -> None:
        closing = asyncio.ensure_future(self.shutdown(ShutdownMode.IMMEDIATE))
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                if closing.cancelled():
                    break  # the whole loop is being torn down

    async def shutdown(self, mode: ShutdownMode = ShutdownMode.FAST) -> None:
        """Stop, and return when everything has ended; idempotent.

        A later call with a stricter mode hastens a stop, one with a weaker mode waits for the
        same end.  Cancelling the call leaves the stop going on.  FAST and IMMEDIATE are
        bounded by the workers' ``stop_timeout`` and 5 s more (FAST: by their sum along a group
        and what depends on it, the longest of all); SMART waits for the workers.
        """
        core = self._core
        core.check()
        core.stop(mode)
        await self._closed()
        self._restore_signals()

    async def wait_closed(self) -> None:
        """Return when the supervisor has ended; raise SupervisorFailed if it gave up."""
        self._core.check()
        await self._closed()
        if self._core.failure is not None:
            raise self._core.failure

    async def _closed(self) -> None:
        core = self._core
        while core.stage in (Stage.STARTING, Stage.OPEN, Stage.STOPPING):
            await core.changes.wait()
        # It would keep the core, and with it a failure whose traceback may lead back here.
        self._finaliser.detach()
        if core.stage is Stage.ABANDONED:
            raise SupervisorDied(f"supervisor {self.name!r} was abandoned")

    def abandon(self) -> None:
        """End everything at once, without a loop: the kernel kills all workers.

        Plain and idempotent.  Every wait ends with SupervisorDied.  Blocks until the zygote
        has ended, a second at most.
        """
        self._restore_signals()
        self._core.abandon()
        self._finaliser.detach()

    def guard(self) -> Guard:
        """Return an ``async with`` block that is cancelled when the supervisor fails.

        SupervisorFailed is raised in its place.
        """
        return Guard(self._core.changes, lambda: self._core.failure)

    # Workers.

    def add(self, spec: WorkerSpec) -> WorkerHandle:
        """Register a static worker, before the start; the first in is the first started.

        PostgreSQL's RegisterBackgroundWorker, with a handle.  Raises NoFreeSlot when there
        are too many, InvalidSpec, and RuntimeError after the start.
        """
        core = self._core
        core.check()
        if core.stage is not Stage.NEW:
            raise RuntimeError("add() is for the time before the start: await register()")
        return self._handle(entry.admit(core, spec))

    async def register(self, spec: WorkerSpec) -> WorkerHandle:
        """Register a worker, to be started as soon as its gate is open.

        PostgreSQL's RegisterDynamicBackgroundWorker.  Raises NoFreeSlot,
        TooManyParallelWorkers, AlreadyRegistered, ShuttingDown, PayloadTooLarge or
        InvalidSpec; then nothing was used up.  Cancelled, it has registered nothing.
        Lets others run when it has held the loop for 2 ms.
        """
        if self._held > YIELD_AFTER:
            self._held = 0.0
            await asyncio.sleep(0)
        began = time.monotonic()
        core = self._core
        core.check_open()
        worker = entry.admit(core, spec)
        core.consider(worker)
        self._held += time.monotonic() - began
        return self._handle(worker)

    def handles(self) -> list[WorkerHandle]:
        """Return the workers that hold a slot, the first registered first."""
        self._core.check()
        return [self._handle(worker) for worker in self._core.registry.all()]

    def get(self, name_or_token: str) -> WorkerHandle | None:
        """Return the newest worker of that name, or the one of that token; None if gone."""
        self._core.check()
        if name_or_token.startswith(TOKEN_PREFIX):
            worker = self._by_token(name_or_token)
        else:
            worker = self._core.registry.newest(name_or_token)
        return None if worker is None else self._handle(worker)

    def _by_token(self, token: str) -> RegisteredWorker | None:
        try:
            epoch, slot, generation = token[len(TOKEN_PREFIX) :].split(":")
            worker = self._core.registry.at(int(slot))
            same = int(epoch, 16) == self.epoch and worker is not None
            return worker if same and worker and worker.generation == int(generation) else None
        except ValueError:
            return None

    def status(self) -> SupervisorStatus:
        """Return how the supervisor and its workers are now."""
        self._core.check()
        return self._core.status()

    def type_by_pid(self, pid: int) -> str | None:
        """Return the type of the worker with that pid (GetBackgroundWorkerTypeByPid)."""
        self._core.check()
        worker = self._core.registry.by_pid(pid)
        return None if worker is None else worker.spec.type

    def terminate_where(self, predicate: Callable[[WorkerStatus], bool]) -> list[WorkerHandle]:
        """Terminate all workers for which *predicate* is true; return their handles."""
        self._core.check()
        chosen = [worker for worker in self._core.registry.all() if predicate(worker.status())]
        handles = [self._handle(worker) for worker in chosen]
        for handle in handles:
            handle.terminate()
        return handles

    async def advance(self, phase: Phase) -> None:
        """Open the start gates of *phase*; going back closes gates and stops nobody."""
        self._core.check_open()
        self._core.advance(Phase(phase))
        await asyncio.sleep(0)

    def events(self) -> EventStream:
        """Subscribe to what happens from now on; iterate with ``async for``."""
        self._core.check()
        return self._core.news.subscribe()

    def _handle(self, worker: RegisteredWorker) -> WorkerHandle:
        port = _LocalPort(self._core, worker)
        return WorkerHandle(port, worker.spec.name, self.epoch, worker.slot, worker.generation)

    # Signals of the host, only if it asked for it.

    def _handle_signals(self) -> None:
        if not self._core.settings.handle_signals:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._on_signal, number)
            self._signals.append(number)

    def _on_signal(self, number: int) -> None:
        stopping = self._core.stage is Stage.STOPPING
        at_once = number == signal.SIGQUIT or stopping
        self._core.stop(ShutdownMode.IMMEDIATE if at_once else ShutdownMode.FAST)

    def _restore_signals(self) -> None:
        signals, self._signals = self._signals, []
        for number in signals:
            try:
                asyncio.get_running_loop().remove_signal_handler(number)
            except RuntimeError:
                pass  # no loop runs any more, and its handlers went with it

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} {self._core.stage.value}>"


class _LocalPort:
    """The way from a handle to a worker in this process; knows its last state for ever."""

    __slots__ = ("_core", "_worker")

    def __init__(self, core: Core, worker: RegisteredWorker) -> None:
        self._core = core
        self._worker = worker

    @property
    def changes(self) -> Changes:
        return self._worker.changes

    def status(self) -> WorkerStatus:
        if not self._worker.is_over:
            self._core.check_alive()
        return self._worker.status()

    look = status

    def exit_of(self, incarnation: int) -> ExitStatus | None:
        exits = self._worker.exits
        return next((exit for exit in exits if exit.incarnation == incarnation), None)

    def request(self, verb: Verb, argument: int = 0) -> None:
        core, worker = self._core, self._worker
        core.check()
        if core.stage is Stage.NEW and not worker.is_over:
            raise RuntimeError("the supervisor has not been started")
        core.ask(worker, verb, argument)
