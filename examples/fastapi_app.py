"""A FastAPI application under several server processes, and its workers, once per host.

    python -m examples.fastapi_app
    uvicorn examples.fastapi_app:app --workers 2

    curl -d '{"text": "a rose is a rose"}' -H 'Content-Type: application/json' \
        http://127.0.0.1:8000/reports
    curl http://127.0.0.1:8000/workers

POST /reports has a worker count the words of a text; GET /reports/NUMBER returns the result.
One housekeeper removes old reports, however many server processes there are.  Ask for /workers
several times: other processes answer, and all know the same workers.  Kill the owner of the
supervisor, and another process takes over; reports in the making are lost with it.

The environment may have REPORTS, the directory of the reports, where the processes also meet,
and PORT.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Annotated, Any

import fastapi
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import aiobgw
from aiobgw import WorkerSpec
from aiobgw.integrations.asgi import lifespan
from aiobgw.integrations.once import SharedSupervisor

from . import fastapi_tasks as tasks

KEEP_SECONDS = 3600.0
DEFAULT = Path(tempfile.gettempdir(), f"aiobgw-reports-{os.getuid()}")
DIRECTORY = Path(os.environ.get("REPORTS", DEFAULT))

app = FastAPI(
    title="Reports",
    lifespan=lifespan(
        WorkerSpec(
            name="housekeeper",
            target=tasks.keep_house,
            args=(str(DIRECTORY), KEEP_SECONDS),
            restart=aiobgw.Restart.ALWAYS,
        ),
        name="reports",
        runtime_dir=DIRECTORY / "run",
    ),
)


def get_supervisor(request: Request) -> SharedSupervisor:
    supervisor: SharedSupervisor = request.state.supervisor
    return supervisor


Workers = Annotated[SharedSupervisor, Depends(get_supervisor)]
Number = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{16}$")]


class Text(BaseModel):
    text: str


@app.post("/reports", status_code=202)
async def ask_for_a_report(text: Text, workers: Workers) -> dict[str, str]:
    number = secrets.token_hex(8)
    spec = WorkerSpec(
        name=f"report {number}",
        target=tasks.write_report,
        args=(str(DIRECTORY), number, text.text),
    )
    await workers.register(spec)  # also from a process that does not own the supervisor
    return {"report": f"/reports/{number}"}


@app.get("/reports/{number}")
async def get_report(number: Number, workers: Workers) -> Any:
    try:
        return json.loads((DIRECTORY / f"{number}.json").read_text())
    except FileNotFoundError:
        is_coming = workers.get(f"report {number}") is not None
        raise HTTPException(404, "not yet: ask again" if is_coming else "no such report") from None


@app.get("/workers")
async def get_workers(workers: Workers) -> dict[str, Any]:
    status = workers.status()
    return {
        "process": os.getpid(),
        "owner": status.pid,
        "workers": [
            {"name": one.name, "state": one.state.value, "pid": one.pid} for one in status.workers
        ],
    }


@app.exception_handler(aiobgw.NoFreeSlot)
@app.exception_handler(aiobgw.SupervisorDied)
async def try_again_later(request: Request, error: Exception) -> JSONResponse:
    """Answer while all slots are in use, and in the moment between two owners."""
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})


if __name__ == "__main__":
    uvicorn.run("examples.fastapi_app:app", workers=2, port=int(os.environ.get("PORT", "8000")))
