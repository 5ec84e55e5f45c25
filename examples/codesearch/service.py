"""The service: aiohttp around the crew, which lives as long as the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib import resources

from aiohttp import web

import aiobgw

from . import find, page, store
from .crew import Crew
from .options import Options

HOST = "127.0.0.1"
LONGEST_QUERY = 200
MOST_HITS = 1000
CLOSE_TIMEOUT = 2.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:;"
    " script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

CREW = web.AppKey("crew", Crew)
WORK = web.AppKey("work", asyncio.Task[None])


def make_app(options: Options) -> web.Application:
    """Return the service; ``app[WORK]`` ends only by what made it impossible."""
    app = web.Application()
    app[CREW] = Crew(options)
    app.cleanup_ctx.append(_at_work)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/state", _state),
            web.get("/api/search", _api_search),
            web.get("/api/status", _api_status),
            web.get("/{name:page\\.css|page\\.js}", _asset),
        ]
    )
    return app


async def _at_work(app: web.Application) -> AsyncIterator[None]:
    """Own the crew: started before the first request is served, ended after the last."""
    async with app[CREW] as crew:
        app[WORK] = asyncio.create_task(_work(crew))
        yield
        app[WORK].cancel()
        # Whoever awaits app[WORK] sees its error; here only its end matters.
        await asyncio.wait([app[WORK]])


async def _work(crew: Crew) -> None:
    await crew.index()
    await crew.watch()


async def serve(options: Options, port: int) -> None:
    """Serve until cancelled, or until the crew fails, which is raised."""
    app = make_app(options)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
    try:
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
        print(f"indexing {options.root}", flush=True)
        print(f"serving http://{HOST}:{runner.addresses[0][1]}/ (Ctrl-C ends it)", flush=True)
        await app[WORK]
    finally:
        await runner.cleanup()


async def _page(request: web.Request) -> web.Response:
    query = _query(request)
    result = await _search(request, query)
    state = await _state_html(request)
    html = page.page(query, result, state, complete=request.app[CREW].complete)
    return web.Response(text=html, content_type="text/html")


async def _state(request: web.Request) -> web.Response:
    """Answer with the part of the page that changes by itself."""
    return web.Response(text=await _state_html(request), content_type="text/html")


async def _state_html(request: web.Request) -> str:
    crew = request.app[CREW]
    progress = await asyncio.to_thread(store.progress, crew.options.db)
    return page.state(crew.complete, crew.seconds, progress, crew.workers())


async def _api_search(request: web.Request) -> web.Response:
    query = _query(request)
    limit = _limit(request)
    result = await _search(request, query, limit=limit, per_file=limit)
    complete = request.app[CREW].complete
    return web.json_response({"query": query, "complete": complete, **asdict(result)})


async def _search(
    request: web.Request,
    query: str,
    *,
    limit: int = find.LIMIT,
    per_file: int = find.PER_FILE,
) -> find.Result:
    db = request.app[CREW].options.db
    return await asyncio.to_thread(find.search, db, query, limit=limit, per_file=per_file)


def _query(request: web.Request) -> str:
    """Return what is looked for, as text that can be shown: no halves of characters."""
    text = request.query.get("q", "")[:LONGEST_QUERY]
    return text.encode("utf-8", "replace").decode()


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(find.LIMIT))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST_HITS):
        raise web.HTTPBadRequest(text=f"limit must be 1 to {MOST_HITS}\n")
    return int(text)


async def _api_status(request: web.Request) -> web.Response:
    crew = request.app[CREW]
    progress = await asyncio.to_thread(store.progress, crew.options.db)
    status = crew.supervisor.status()
    return web.json_response(
        {
            "complete": crew.complete,
            "seconds": round(crew.seconds, 3),
            "index": asdict(progress),
            "supervisor": {"name": status.name, "pid": status.pid, "zygote": status.zygote_pid},
            "workers": [_worker(worker) for worker in crew.workers()],
        }
    )


def _worker(status: aiobgw.WorkerStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "state": status.state.value,
        "pid": status.pid,
        "incarnation": status.incarnation,
        "restarts": status.restarts,
        "exit": None if status.exit is None else str(status.exit),
        "reason": status.reason,
    }


async def _asset(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    text = (resources.files(__package__) / name).read_text()
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return web.Response(text=text, content_type=kind)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
