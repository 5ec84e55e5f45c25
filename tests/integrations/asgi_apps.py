"""What the ASGI applications of the tests have in common; the environment says where files are."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiobgw import Phase, WorkerSpec
from aiobgw.integrations.once import SharedSupervisor

from . import asgi_targets as targets

DIRECTORY = os.environ.get("AIOBGW_TEST_DIRECTORY", "")
SPECS = [
    WorkerSpec(name="a", target=targets.alone, args=(DIRECTORY,)),
    WorkerSpec(name="early", target=targets.alone, args=(DIRECTORY,), start_when=Phase(1)),
]
OPTIONS: dict[str, Any] = {"name": "app", "runtime_dir": f"{DIRECTORY}/run", "spares": 0}


@asynccontextmanager
async def inner(app: Any) -> AsyncIterator[dict[str, Any]]:
    """Be the application's own lifespan: see how far the supervisor is."""
    status = app.state.supervisor.status()
    targets.say(DIRECTORY, "inner", phase=status.phase.name, owner=status.pid)
    yield {"colour": "green"}
    targets.say(DIRECTORY, "outer")


def seen(supervisor: SharedSupervisor, colour: str = "") -> dict[str, Any]:
    status = supervisor.status()
    return {
        "process": os.getpid(),
        "owner": status.pid,
        "phase": status.phase.name,
        "workers": {one.name: one.pid for one in status.workers},
        "colour": colour,
    }


async def registered(supervisor: SharedSupervisor, name: str) -> dict[str, Any]:
    """Run a worker, and wait for its end."""
    spec = WorkerSpec(name=name, target=targets.on_request, args=(DIRECTORY,))
    exit = await (await supervisor.register(spec))
    return {"process": os.getpid(), "owner": supervisor.is_owner, "exit": str(exit and exit.kind)}
