"""Applications that tests run in processes of their own.

python -m tests.integrations.aiohttp_hosts RUNNER KIND
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import web

from aiobgw import Phase, WorkerSpec
from aiobgw.integrations.aiohttp import SUPERVISOR, setup

from . import aiohttp_targets as targets

WORKER = WorkerSpec(name="worker", target=targets.stay, start_when=Phase.SUPERVISOR_START)


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"{os.getpid()}\n")


def application(*specs: WorkerSpec, **options: object) -> web.Application:
    app = web.Application()
    app.router.add_get("/", hello)
    setup(app, *specs, spares=0, **options)  # type: ignore[arg-type]
    return app


def bound_socket() -> socket.socket:
    """Return a socket that has its port, and does not listen yet."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


# Starts that fail after the supervisor's.


async def _fail(app: web.Application) -> None:
    await app[SUPERVISOR].handles()[0].wait_for_startup()
    raise LookupError("no database here")


async def _failing_context(app: web.Application) -> AsyncIterator[None]:
    await _fail(app)
    yield


async def _endless(app: web.Application) -> None:
    await asyncio.sleep(3600)


def failing(kind: str) -> web.Application:
    app = application(WORKER, preload=("no_such_module",) if kind == "supervisor" else ())
    if kind == "context":
        app.cleanup_ctx.append(_failing_context)
    elif kind == "handler":
        app.on_startup.append(_fail)
    elif kind == "interrupted":
        app.on_startup.append(_endless)
    elif kind == "subapp":
        outer = web.Application()
        outer.add_subapp("/inner/", app)
        outer.on_startup.append(lambda _: _fail(app))
        return outer
    return app


# Under gunicorn.

serving = application(WorkerSpec(name="worker", target=targets.stay))


# Runners.


async def _set_up_only(app: web.Application) -> None:
    await web.AppRunner(app).setup()


def main() -> None:
    runner, kind = sys.argv[1:]
    sock = bound_socket()
    if kind == "serving":
        port = sock.getsockname()[1]
        app = application(WorkerSpec(name="worker", target=targets.knock_and_stay, args=(port,)))
    elif kind == "stubborn":
        stubborn = targets.stay_whatever_is_asked
        app = application(WorkerSpec(name="worker", target=stubborn, stop_timeout=3600))
    else:
        app = failing(kind)
    if runner == "AppRunner":
        asyncio.run(_set_up_only(app))
    else:
        is_uvloop = os.environ.get("AIOBGW_TEST_LOOP") == "uvloop"
        web.run_app(app, sock=sock, loop=uvloop.new_event_loop() if is_uvloop else None)


if __name__ == "__main__":
    main()
