"""aiohttp: a supervisor that comes and goes with an application.

    setup(app, WorkerSpec(name="mailer", target="shop.mail:send"), preload=("shop",))
    handle = await request.app[SUPERVISOR].register(WorkerSpec(...))

Phases.  ``setup`` puts its cleanup context first: the supervisor, and the workers with
``start_when=SUPERVISOR_START``, come before the application's own start-up.  CONSISTENT_STATE
opens when all cleanup contexts, and the ``on_startup`` handlers that were there before
``setup``, are through; RUNNING, the default, when the application serves.  A start-up handler
that waits for a worker of a later phase waits for ever.

Failing.  A supervisor that cannot start fails the application's start, with its reason.  When
a later part of the start fails, aiohttp's ``run_app`` calls no clean-up: then the event loop
closes our context, an async generator, and with it the supervisor.  One that fails while the
application runs is logged, and raised by the application's clean-up.

The end.  Requests in flight may wait for workers, and aiohttp lets them finish first: so the
workers are stopped after the drain, and after the cleanup contexts that came after ours.  But
what waits for a worker that never ends would hold the drain for aiohttp's ``shutdown_timeout``
(60 s): so after ``drain_timeout`` the stop begins beside the drain.  Because of us a shutdown
thus takes at most ``drain_timeout``, the longest ``stop_timeout``, and what ``shutdown`` adds.
Signals stay aiohttp's: a second one cancels its clean-up, which makes the stop IMMEDIATE.

Each server process has a supervisor of its own, made when the application starts in it: an
application that gunicorn has imported before it forks is fine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, NoReturn

from aiohttp import web

from .._supervisor.supervisor import Supervisor
from ..errors import InvalidSpec, ShuttingDown, SupervisorDied, SupervisorFailed
from ..spec import DAY, Phase, WorkerSpec
from .serving import Serving

log = logging.getLogger("aiobgw")

SUPERVISOR = web.AppKey("aiobgw_supervisor", Supervisor)
"""Where an application has its supervisor, from the start on; in a sub-application
``request.config_dict[SUPERVISOR]`` also finds that of the application around it."""

DRAIN_TIMEOUT = 5.0


def setup(
    app: web.Application,
    *specs: WorkerSpec,
    drain_timeout: float = DRAIN_TIMEOUT,
    **options: Any,
) -> None:
    """Run a supervisor, and these workers, for as long as *app* runs.

    The options are those of Supervisor, without ``start_phase`` and ``handle_signals``.
    *drain_timeout* are the seconds that requests in flight have before their workers are
    stopped; no worker is stopped earlier.  Raises what is wrong with options and specs here,
    and RuntimeError for an application that has a supervisor, or has been started, or has
    been made part of another one.
    """
    _check(specs, options)
    if not isinstance(drain_timeout, (int, float)) or not 0 <= drain_timeout <= DAY:
        raise InvalidSpec(f"drain_timeout must be 0 to 86400 seconds, not {drain_timeout!r}")
    if _open_consistent_state in app.on_startup:
        _refuse_second(app)
    if app.on_startup.frozen:
        raise RuntimeError(f"{app!r} has been started or added: call setup() before")

    async def begin_drain(app: web.Application) -> None:
        lifetime = app.get(_LIFETIME)
        if lifetime is not None and lifetime.is_on:
            lifetime.begin_drain(drain_timeout)

    app.cleanup_ctx.insert(0, _context(specs, options, Phase.SUPERVISOR_START))
    app.on_startup.append(_open_consistent_state)
    app.on_shutdown.insert(0, begin_drain)


def cleanup_context(
    *specs: WorkerSpec, **options: Any
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return the same for ``app.cleanup_ctx.append``: a supervisor with a place of your own.

    At its place both SUPERVISOR_START and CONSISTENT_STATE open, since what was put before it
    is up; RUNNING opens when the application serves.  The workers are stopped at its place,
    too, after the drain: a request that waits for a worker which never ends holds the drain
    for aiohttp's ``shutdown_timeout``, unless an ``on_shutdown`` handler ends that worker.
    Options, and what is raised, are those of ``setup``.
    """
    _check(specs, options)
    return _context(specs, options, Phase.CONSISTENT_STATE)


def _context(
    specs: tuple[WorkerSpec, ...], options: dict[str, Any], phase: Phase
) -> Callable[[web.Application], AsyncIterator[None]]:
    # Ownership: an async generator, and only one.  When a start fails, and nobody calls the
    # clean-up, the event loop closes generators; but it closes all of them at once, and one
    # that is inside of another one could not be.
    async def context(app: web.Application) -> AsyncIterator[None]:
        async with _Lifetime(app, specs, options, phase):
            yield

    return context


def _check(specs: tuple[WorkerSpec, ...], options: dict[str, Any]) -> None:
    """Raise what a supervisor with these options would say of these specs."""
    if options.get("handle_signals"):
        raise InvalidSpec(
            "handle_signals must be left out: the application's server handles signals",
            hint="SIGTERM and SIGINT end the server, and the supervisor with it",
        )
    if "start_phase" in options:
        raise InvalidSpec(
            "start_phase must be left out: it follows the application",
            hint="give each worker its start_when",
        )
    rehearsal = Supervisor(**options)
    try:
        for spec in specs:
            rehearsal.add(spec)
    finally:
        rehearsal.abandon()


def _refuse_second(app: web.Application) -> NoReturn:
    raise RuntimeError(f"{app!r} has a supervisor: give all specs to one setup()")


async def _open_consistent_state(app: web.Application) -> None:
    await app[_LIFETIME].advance(Phase.CONSISTENT_STATE)


class _Lifetime:
    """The supervisor of an application from its start to its end, as a context."""

    def __init__(
        self,
        app: web.Application,
        specs: tuple[WorkerSpec, ...],
        options: dict[str, Any],
        phase: Phase,
    ) -> None:
        self._app = app
        self._supervisor = Supervisor(**options, start_phase=phase)
        for spec in specs:
            self._supervisor.add(spec)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_on = False

    async def __aenter__(self) -> None:
        app = self._app
        earlier = app.get(_LIFETIME)
        if earlier is not None and earlier.is_on:
            _refuse_second(app)
        # Ordering: last what must be undone; nothing after it fails.
        app[SUPERVISOR], app[_LIFETIME] = self._supervisor, self
        await self._supervisor.__aenter__()
        self.is_on = True
        self._serving = Serving(self._is_serving, is_up=lambda: app.frozen)
        self._start(self._tell_failure())

    def _is_serving(self) -> None:
        self._start(self.advance(Phase.RUNNING))

    async def advance(self, phase: Phase) -> None:
        """Open the gates of *phase*, unless the application itself is further already."""
        if self._supervisor.status().phase < phase:
            try:
                await self._supervisor.advance(phase)
            except ShuttingDown:
                pass  # the application has shut it down, or it has failed and says so itself

    async def _tell_failure(self) -> None:
        try:
            async with self._supervisor.guard():
                await self._supervisor.wait_closed()
        except SupervisorFailed as error:
            log.error("%s; its workers are stopped, the application runs on", error)
        except SupervisorDied:
            pass  # the application has abandoned it

    # The end.

    def begin_drain(self, timeout: float) -> None:
        """Let requests in flight finish; begin the stop when that takes long."""
        self._serving.close()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout, lambda: self._start(self._stop()))

    async def _stop(self) -> None:
        try:
            await self._supervisor.shutdown()
        except SupervisorDied:
            pass

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._serving.close()
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._supervisor.__aexit__(kind, error, trace)
        finally:
            self.is_on = False
            # All of them wait for what is over now, and end in a turn of the loop.
            await asyncio.wait(self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # Ownership: until the end, which waits for it; a loop holds its tasks weakly.  A host
        # that waits for all tasks (aiohttp 3.9) waits for none of them longer than for the stop.
        self._tasks.add(asyncio.get_running_loop().create_task(work))


_LIFETIME = web.AppKey("aiobgw_lifetime", _Lifetime)
