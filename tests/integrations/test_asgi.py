"""The lifespan for ASGI applications, under real servers: its workers run once per host."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import aiobgw
from aiobgw import Phase, WorkerSpec
from aiobgw.integrations.asgi import lifespan
from aiobgw.integrations.serving import Serving

from .. import procs, targets
from ..client_targets import until
from .ear import Ear, listening
from .servers import GUNICORN, UVICORN, serving

HERE = "tests.integrations"


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with listening(tmp_path) as ear:
        yield ear


# One process of each framework.


@pytest.mark.parametrize(
    ("app", "colour"),
    [
        ("starlette_app:app", "green"),
        ("starlette_app:own", "blue"),
        ("fastapi_app:app", "green"),
        ("litestar_app:app", "green"),
    ],
)
def test_an_application_finds_its_supervisor_and_its_gates_open_as_it_starts(
    app: str, colour: str, tmp_path: Path, ear: Ear
) -> None:
    with serving(tmp_path, *UVICORN, f"{HERE}.{app}") as server:
        workers = ear.starts("a", "early")
        # The workers themselves say earlier than their supervisor that they run.
        seen = server.ask_until(lambda seen: seen["workers"] == workers)
        assert seen["phase"] == "RUNNING"
        assert seen["owner"] == seen["process"] == server.process.pid
        assert seen["colour"] == colour
        answer = server.ask("/register/more")
        assert answer == {"process": server.process.pid, "owner": True, "exit": "ExitKind.CLEAN"}
        server.stop()
        assert not any(map(procs.is_alive, workers.values()))
    inner = [(line["what"], line.get("phase")) for line in ear.all("inner") + ear.all("outer")]
    assert inner == ([] if colour == "blue" else [("inner", "SUPERVISOR_START"), ("outer", None)])


# Several processes.


def test_what_is_done_at_start_up_is_done_once_with_several_workers(
    tmp_path: Path, ear: Ear
) -> None:
    """fastapi#4526, and with it fastapi-utils#230: a repeated task runs once per interval."""
    with serving(tmp_path, *UVICORN, "--workers", "4", f"{HERE}.fastapi_app:busy") as server:
        answers = server.processes(4)
        [owner] = {answer["owner"] for answer in answers.values()}
        assert owner in answers
        workers = ear.starts("start-up", "ticker")
        for _ in range(10):
            ear.wait_for(lambda line: line["what"] == "tick")
        assert server.stop() == 0
    assert {line["pid"] for line in ear.all("tick")} == {workers["ticker"]}
    assert [line["name"] for line in ear.all("start")].count("start-up") == 1


@pytest.mark.parametrize(
    "command",
    [
        [*UVICORN, "--workers", "4"],
        [*GUNICORN, "--workers", "3", "--preload", "-k", "uvicorn.workers.UvicornWorker"],
        [*GUNICORN, "--workers", "3", "-k", "asgi"],
    ],
    ids=["uvicorn", "gunicorn-uvicorn", "gunicorn"],
)
def test_workers_run_once_per_host_whichever_server_process_is_killed(
    command: list[str], tmp_path: Path, ear: Ear
) -> None:
    """fastapi#2713: what runs permanently outlives the process that started it."""
    number = int(command[command.index("--workers") + 1])
    with serving(tmp_path, *command, f"{HERE}.starlette_app:app") as server:
        workers = ear.starts("a", "early")
        answers = server.processes(number)
        [owner] = {answer["owner"] for answer in answers.values()}
        assert owner in answers
        server.ask_until(lambda answer: not answer["owner"], "/register/by-a-follower")
        ear.wait_for(lambda line: line["what"] == "done")

        follower = next(pid for pid in answers if pid != owner)
        os.kill(follower, signal.SIGKILL)
        server.ask_until(lambda seen: seen["process"] not in answers)
        server.ask_until(lambda seen: seen["workers"] == workers)

        os.kill(owner, signal.SIGKILL)
        again = ear.starts("a", "early")  # fails if one of them meets its predecessor
        assert not any(map(procs.is_alive, workers.values()))
        seen = server.ask_until(lambda seen: seen["workers"] == again)
        assert seen["owner"] not in (owner, follower)
        assert {seen["owner"]} == {one["owner"] for one in server.processes(number).values()}
        server.stop()
        assert not any(map(procs.is_alive, again.values()))
    assert len(ear.all("start")) == 4


def test_a_start_that_fails_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    source = """
from starlette.applications import Starlette
from starlette.testclient import TestClient
from aiobgw.integrations.asgi import lifespan
from aiobgw.integrations.serving import Serving
app = Starlette(lifespan=lifespan(name="bad", runtime_dir="./run", preload=["no_such_module"]))
"""
    (tmp_path / "bad_app.py").write_text(source)
    ran = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--workers", "2", "--port", "0", "bad_app:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(procs.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "No module named 'no_such_module'" in ran.stderr
    assert "Application startup failed" in ran.stderr


# The lifespan itself, without a server.


def spec() -> WorkerSpec:
    return WorkerSpec(name="worker", target=targets.sleep)


def make(directory: Path, **options: Any) -> Any:
    return lifespan(spec(), name="app", runtime_dir=directory / "run", spares=0, **options)


@pytest.mark.anyio
async def test_the_last_gate_opens_when_the_process_listens_or_is_told_to(tmp_path: Path) -> None:
    app = SimpleNamespace(state=SimpleNamespace())
    async with make(tmp_path)(app) as state:
        assert state == {"supervisor": app.state.supervisor}
        assert state["supervisor"].status().phase is Phase.CONSISTENT_STATE
        await state["supervisor"].advance(Phase.RUNNING)  # as with a test client
        await state["supervisor"].get("worker").wait_for_startup()

    async with make(tmp_path)(None) as state:  # a Starlette Router alone has no application
        worker = state["supervisor"].get("worker")
        assert worker.status().pid is None
        with socket.socket() as server:
            server.listen()
            await until(lambda: state["supervisor"].status().phase is Phase.RUNNING)
        await worker.wait_for_startup()


@pytest.mark.anyio
async def test_nobody_looks_for_a_listening_socket_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Serving] = []

    class Watched(Serving):
        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr("aiobgw.integrations.asgi.Serving", Watched)
    async with make(tmp_path)(None):
        assert not closed
    assert len(closed) == 1


@pytest.mark.anyio
async def test_the_lifespan_of_a_router_starts_workers_too(tmp_path: Path) -> None:
    """A worker started in a router's lifespan never started: getzep/graphiti#1178."""
    router = fastapi.APIRouter(lifespan=make(tmp_path))
    app = fastapi.FastAPI()
    app.include_router(router)
    async with app.router.lifespan_context(app):
        await app.state.supervisor.advance(Phase.RUNNING)
        await app.state.supervisor.get("worker").wait_for_startup()


def test_with_a_test_client_the_last_gate_opens_when_it_is_told_to(tmp_path: Path) -> None:
    app = Starlette(lifespan=make(tmp_path))
    with TestClient(app) as client:
        client.portal.call(app.state.supervisor.advance, Phase.RUNNING)
        handle = client.portal.call(app.state.supervisor.register, spec())
        client.portal.call(handle.wait_for_startup)


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["starting", "leaving"])
async def test_an_inner_lifespan_that_fails_ends_what_was_started(
    when: str, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def inner(app: Any) -> AsyncIterator[None]:
        await app.state.supervisor.advance(Phase.RUNNING)
        await app.state.supervisor.get("worker").wait_for_startup()
        if when == "starting":
            raise ConnectionError("no database")
        yield
        assert app.state.supervisor.get("worker") is not None, "it ends after the application"
        raise ConnectionError("no database")

    app = SimpleNamespace(state=SimpleNamespace())
    with pytest.raises(ConnectionError, match="no database"):
        async with make(tmp_path, inner=inner)(app) as state:
            assert when == "leaving" and state["supervisor"].is_owner
    with pytest.raises(aiobgw.NotAttached):
        app.state.supervisor.status()


@pytest.mark.anyio
async def test_a_cancelled_application_ends_its_workers(tmp_path: Path) -> None:
    """As asyncio.run does with what a server left running."""
    entered = asyncio.Event()

    async def run() -> None:
        async with make(tmp_path)(SimpleNamespace(state=SimpleNamespace())):
            entered.set()
            await asyncio.sleep(3600)

    running = asyncio.ensure_future(run())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def _bare(app: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "needs a name"),
        ({"name": "x", "start_phase": Phase.RUNNING}, "sets the start phase"),
        ({"name": "x", "handle_signals": True}, "cannot handle signals"),
        ({"name": "x", "inner": _bare}, "inner must be a lifespan"),
        ({"name": "x", "inner": "database"}, "inner must be a lifespan"),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_written(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match=complaint) as caught:
        lifespan(**options)
    assert caught.value.__notes__[0].startswith("hint: ")


def test_no_framework_is_imported() -> None:
    source = """
import sys
import aiobgw.integrations.asgi
print(*{name.partition(".")[0] for name in sys.modules})
"""
    ran = subprocess.run(
        [sys.executable, "-c", source], cwd=procs.ROOT, capture_output=True, text=True, check=True
    )
    frameworks = {"starlette", "fastapi", "litestar", "aiohttp", "uvicorn", "anyio"}
    assert not frameworks & set(ran.stdout.split())
