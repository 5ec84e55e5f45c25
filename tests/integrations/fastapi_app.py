"""FastAPI applications: a supervisor as a dependency, and what its users ask for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from aiobgw import WorkerSpec
from aiobgw.integrations.asgi import lifespan
from aiobgw.integrations.once import SharedSupervisor

from . import asgi_targets as targets
from .asgi_apps import DIRECTORY, OPTIONS, SPECS, inner, registered, seen


def get_supervisor(request: Request) -> SharedSupervisor:
    supervisor: SharedSupervisor = request.state.supervisor
    assert supervisor is request.app.state.supervisor
    return supervisor


Workers = Annotated[SharedSupervisor, Depends(get_supervisor)]
app = FastAPI(lifespan=lifespan(*SPECS, inner=inner, **OPTIONS))


@app.get("/")
async def look(request: Request, workers: Workers) -> dict[str, Any]:
    return seen(workers, request.state.colour)


@app.get("/register/{name}")
async def register(name: str, workers: Workers) -> dict[str, Any]:
    return await registered(workers, name)


# Work for the start-up, and a task that is repeated.
START_UP = WorkerSpec(name="start-up", target=targets.once, args=(DIRECTORY,))
TICKER = WorkerSpec(name="ticker", target=targets.tick, args=(DIRECTORY, 0.05))
busy = FastAPI(lifespan=lifespan(START_UP, TICKER, **OPTIONS))


@busy.get("/")
async def look_at_the_busy_one(workers: Workers) -> dict[str, Any]:
    return seen(workers)
