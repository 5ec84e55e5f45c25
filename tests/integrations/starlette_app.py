"""Starlette applications: with the lifespan, and with one of its own around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aiobgw.integrations.asgi import lifespan

from .asgi_apps import OPTIONS, SPECS, inner, registered, seen


async def look(request: Request) -> Response:
    assert request.state.supervisor is request.app.state.supervisor
    return JSONResponse(seen(request.state.supervisor, request.state.colour))


async def register(request: Request) -> Response:
    return JSONResponse(await registered(request.state.supervisor, request.path_params["name"]))


@asynccontextmanager
async def own_lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    async with lifespan(*SPECS, **OPTIONS)(app) as state:
        yield {**state, "colour": "blue"}


routes = [Route("/", look), Route("/register/{name}", register)]
app = Starlette(routes=routes, lifespan=lifespan(*SPECS, inner=inner, **OPTIONS))
own = Starlette(routes=routes, lifespan=own_lifespan)
