"""A text pipeline: an aiohttp application, a queue in SQLite, and two kinds of workers.

    python -m examples.aiohttp_app
    curl --data-binary @README.md http://127.0.0.1:8080/documents
    curl http://127.0.0.1:8080/documents/1
    curl http://127.0.0.1:8080/
    curl -X POST http://127.0.0.1:8080/stop

``extract`` workers find the keywords of a document, ``summarise`` workers then the sentence
that has most of them.  Kill any of them while it works, ``kill -9`` included: its job is done
again, and every result is there once.  With ``--database PATH`` the queue outlives the service.

Here is the application: HTTP, and which workers there are.  What they run, and the queue, is in
aiohttp_pipeline.py: they do not import aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass

from aiohttp import web

from aiobgw import Latch, Phase, Restart, WorkerSpec
from aiobgw.integrations.aiohttp import SUPERVISOR, setup

from . import aiohttp_pipeline as pipeline

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Queue:
    """Where the documents are, and who is woken when there are more for a step."""

    path: str
    to_extract: Latch
    to_summarise: Latch


QUEUE = web.AppKey("queue", Queue)


def make_app(queue: Queue, workers: int) -> web.Application:
    """Return the application, with so many workers of each kind."""
    app = web.Application(client_max_size=16 * 1024**2)
    app[QUEUE] = queue
    setup(app, *specs(queue, workers), name="pipeline", preload=(pipeline.__name__,))
    app.cleanup_ctx.append(tables)
    app.add_routes(
        [
            web.post("/documents", post_document),
            web.get("/documents/{id:\\d{1,18}}", get_document),
            web.get("/", get_status),
            web.post("/stop", post_stop),
        ]
    )
    return app


def specs(queue: Queue, workers: int) -> list[WorkerSpec]:
    latches = {
        "extract": {"there_is_work": queue.to_extract, "more_for_the_next": queue.to_summarise},
        "summarise": {"there_is_work": queue.to_summarise},
    }
    return [
        WorkerSpec(
            name=f"{step}-{number}",
            type=step,
            target=pipeline.work,
            args=(step, queue.path),
            latches=latches[step],
            restart=Restart.ALWAYS,
            restart_delay=0.1,
            max_restarts=None,  # there is work for it as long as the application runs
            start_when=Phase.CONSISTENT_STATE,  # when the tables are there
        )
        for step in pipeline.STEPS
        for number in range(1, workers + 1)
    ]


async def tables(app: web.Application) -> AsyncIterator[None]:
    await asyncio.to_thread(pipeline.create, app[QUEUE].path)
    yield


async def post_document(request: web.Request) -> web.Response:
    text = (await request.read()).decode("utf-8", "replace")
    if not text.strip():
        raise web.HTTPBadRequest(text="the body must be the document's text\n")
    queue = request.app[QUEUE]
    document = await asyncio.to_thread(pipeline.put, queue.path, text)
    queue.to_extract.set()  # Ordering: after the document is there to be found
    return web.json_response({"document": document}, status=202)


async def get_document(request: web.Request) -> web.Response:
    document = int(request.match_info["id"])
    found = await asyncio.to_thread(pipeline.look_up, request.app[QUEUE].path, document)
    if found is None:
        raise web.HTTPNotFound(text="no such document\n")
    return web.json_response(found)


async def get_status(request: web.Request) -> web.Response:
    documents = await asyncio.to_thread(pipeline.counts, request.app[QUEUE].path)
    workers = {
        worker.name: {
            "state": worker.state.value,
            "pid": worker.pid,
            "restarts": worker.restarts,
            "exit": None if worker.exit is None else str(worker.exit),
        }
        for worker in request.app[SUPERVISOR].status().workers
    }
    return web.json_response({"documents": documents, "workers": workers})


async def post_stop(request: web.Request) -> web.Response:
    signal.raise_signal(signal.SIGTERM)  # aiohttp's own way to end, this answer included
    return web.Response(text="stopping\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.aiohttp_app")
    parser.add_argument("--database", metavar="PATH", help="default: a temporary one")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--workers", type=int, default=2, help="how many of each kind")
    given = parser.parse_args()
    with (
        # Left last: by then all who use the database have ended.
        tempfile.TemporaryDirectory(prefix="aiohttp_app-") as folder,
        closing(Latch()) as to_extract,
        closing(Latch()) as to_summarise,
    ):
        path = os.path.abspath(given.database or os.path.join(folder, "queue.db"))
        app = make_app(Queue(path, to_extract, to_summarise), given.workers)
        web.run_app(app, host=HOST, port=given.port)


if __name__ == "__main__":
    main()
