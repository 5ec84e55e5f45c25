"""For ASGI applications (Starlette, FastAPI, Litestar): a lifespan with a supervisor in it.

    app = FastAPI(lifespan=lifespan(WorkerSpec(...), name="shop"))          # and Starlette
    app = Litestar([...], lifespan=[lifespan(WorkerSpec(...), name="shop")])

The server's processes share one supervisor (``once``): workers run once per host.  Handlers
find it in ``request.state.supervisor`` (Starlette, FastAPI) and ``request.app.state.supervisor``
(all three); a FastAPI dependency is two lines:

    def get_supervisor(request: Request) -> SharedSupervisor:
        return request.state.supervisor

It belongs to the event loop, so that handlers that use it are ``async def``.  No framework is
imported here: a lifespan is a function from the application to an async context manager.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from inspect import isasyncgenfunction
from typing import Any

from ..errors import InvalidSpec
from ..spec import Phase, WorkerSpec
from .once import SharedSupervisor
from .serving import Serving

State = dict[str, Any]
InnerLifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def lifespan(
    *specs: WorkerSpec, inner: InnerLifespan | None = None, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[State]]:
    """Return a lifespan that runs *specs*, once per host, for as long as the application.

    *options* are those of SharedSupervisor; ``name`` or ``runtime_dir`` is needed.  *inner* is
    the application's own lifespan, which runs inside: it finds the supervisor in ``app.state``,
    and what it yields is joined to ``{"supervisor": ...}``.  Within a lifespan of one's own:
    ``async with lifespan(spec, name="shop")(app) as state:``.

    Start gates open with the owner's application: SUPERVISOR_START before *inner*,
    CONSISTENT_STATE when that is up, RUNNING when the process serves.  Where nothing ever
    listens (test clients), ``await supervisor.advance(Phase.RUNNING)`` opens the last one.

    Raises InvalidSpec for nonsense, at once.  What fails at the start, the supervisor or
    *inner*, fails the application's start, and leaves nothing behind.
    """
    if "start_phase" in options:
        raise InvalidSpec(
            "the lifespan sets the start phase: it opens the gates as the application starts",
            hint="leave start_phase out; use SharedSupervisor to open them yourself",
        )
    if inner is not None and (isasyncgenfunction(inner) or not callable(inner)):
        raise InvalidSpec(
            f"inner must be a lifespan, not {inner!r}",
            hint="a function of the application, decorated with contextlib.asynccontextmanager",
        )
    within = _nothing if inner is None else inner
    options["start_phase"] = Phase.SUPERVISOR_START
    SharedSupervisor(*specs, **options)  # refuses nonsense here, where it was written

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[State]:
        async with SharedSupervisor(*specs, **options) as supervisor:
            if hasattr(app, "state"):
                app.state.supervisor = supervisor
            async with within(app) as state:
                await supervisor.advance(Phase.CONSISTENT_STATE)
                with _running_when_it_serves(supervisor):
                    yield {**(state or {}), "supervisor": supervisor}

    return run


@asynccontextmanager
async def _nothing(app: Any) -> AsyncIterator[None]:
    """Be the lifespan of an application that has none of its own."""
    yield


@contextmanager
def _running_when_it_serves(supervisor: SharedSupervisor) -> Iterator[None]:
    """Open the last gate as soon as the process serves: start-up is over when this is left."""
    tasks: list[asyncio.Task[None]] = []

    def advance() -> None:
        tasks.append(asyncio.create_task(supervisor.advance(Phase.RUNNING)))

    serving = Serving(advance, is_up=lambda: True)
    try:
        yield
    finally:
        serving.close()
        for task in tasks:
            task.cancel()
