"""A Litestar application."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, get

from aiobgw.integrations.asgi import lifespan

from .asgi_apps import OPTIONS, SPECS, inner, registered, seen


@get("/")
async def look(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return seen(request.app.state.supervisor, "green")


@get("/register/{name:str}")
async def register(request: Request[Any, Any, Any], name: str) -> dict[str, Any]:
    return await registered(request.app.state.supervisor, name)


app = Litestar([look, register], lifespan=[lifespan(*SPECS, inner=inner, **OPTIONS)])
