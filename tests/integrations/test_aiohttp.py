"""The aiohttp integration: when workers start, how they end, and what a failing start leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp import ClientSession, web

import aiobgw
from aiobgw import CrashScope, Flags, Phase, WorkerSpec, WorkerState
from aiobgw.integrations.aiohttp import SUPERVISOR, cleanup_context, setup

from .. import procs, targets
from ..conftest import NewLatch
from . import aiohttp_targets
from .aiohttp_targets import BOUND

HOSTS = ("-m", "tests.integrations.aiohttp_hosts")
PHASES = (Phase.SUPERVISOR_START, Phase.CONSISTENT_STATE, Phase.RUNNING)

Context = Callable[[web.Application], AsyncIterator[None]]


def spec(name: str = "worker", **options: Any) -> WorkerSpec:
    options.setdefault("target", targets.sleep_async)
    return WorkerSpec(name=name, **options)


def one_of_each_phase() -> list[WorkerSpec]:
    return [spec(phase.name, start_when=phase) for phase in PHASES]


def states(app: web.Application) -> dict[str, WorkerState]:
    return {worker.name: worker.state for worker in app[SUPERVISOR].status().workers}


def started(app: web.Application) -> list[str]:
    waits = WorkerState.NOT_STARTED
    return [name for name, state in states(app).items() if state is not waits]


def worker_of(app: web.Application, name: str = "worker") -> aiobgw.WorkerHandle:
    handle = app[SUPERVISOR].get(name)
    assert handle is not None
    return handle


async def startup(app: web.Application, name: str = "worker") -> int:
    pid = (await worker_of(app, name).wait_for_startup()).pid
    assert pid is not None
    return pid


async def until(condition: Callable[[], bool]) -> None:
    """Poll for what nobody tells."""
    give_up = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < give_up, f"not within {BOUND} s"
        await asyncio.sleep(0.01)


async def ok(request: web.Request) -> web.Response:
    return web.Response(text="ok")


def bound_socket() -> socket.socket:
    """Return a socket that has its port, and does not listen yet."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def served(app: web.Application, sock: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve on a port of its own; yields the address."""
    runner = web.AppRunner(app, access_log=None)
    try:
        await runner.setup()
        if sock is not None:
            await web.SockSite(runner, sock).start()
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def observing(seen: dict[str, list[str]], where: str, after: str) -> Context:
    """Make a cleanup context that waits for one worker, and notes which have started."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        await startup(app, after)
        seen[where] = started(app)
        yield

    return context


# Phases.


@pytest.mark.anyio
async def test_each_worker_starts_when_the_application_is_as_far_as_it_wants() -> None:
    app = web.Application()
    seen: dict[str, list[str]] = {}
    app.cleanup_ctx.append(observing(seen, "first context", "SUPERVISOR_START"))
    setup(app, *one_of_each_phase())
    app.cleanup_ctx.append(observing(seen, "last context", "SUPERVISOR_START"))

    async def handler(app: web.Application) -> None:
        await startup(app, "CONSISTENT_STATE")
        seen["handler"] = started(app)

    app.on_startup.append(handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        assert seen["first context"] == seen["last context"] == ["SUPERVISOR_START"]
        assert seen["handler"] == ["SUPERVISOR_START", "CONSISTENT_STATE"]
        other = await app[SUPERVISOR].register(spec(start_when=Phase.CONSISTENT_STATE))
        await other.wait_for_startup()
        assert "RUNNING" not in started(app), "nobody can connect yet"
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await startup(app, "RUNNING")
    finally:
        await runner.cleanup()
    assert "closed" in repr(app[SUPERVISOR])


@pytest.mark.anyio
async def test_a_worker_that_wants_a_serving_application_can_connect_at_once() -> None:
    for _ in range(10):
        sock = bound_socket()
        app = web.Application()
        app.router.add_get("/", ok)
        knocker = spec(target=aiohttp_targets.knock, args=sock.getsockname()[1:])
        setup(app, knocker, spares=0)
        async with served(app, sock):
            (await worker_of(app).wait_for_exit()).check()


@pytest.mark.anyio
async def test_a_cleanup_context_starts_workers_at_its_place() -> None:
    app = web.Application()
    seen: dict[str, list[str]] = {}

    async def before(app: web.Application) -> AsyncIterator[None]:
        assert SUPERVISOR not in app
        yield
        assert "closed" in repr(app[SUPERVISOR])
        seen["clean-up"] = []

    app.cleanup_ctx.append(before)
    app.cleanup_ctx.append(cleanup_context(*one_of_each_phase(), name="placed"))
    app.cleanup_ctx.append(observing(seen, "after", "CONSISTENT_STATE"))
    async with served(app):
        assert seen["after"] == ["SUPERVISOR_START", "CONSISTENT_STATE"]
        await startup(app, "RUNNING")
        assert app[SUPERVISOR].name == "placed"
    assert "clean-up" in seen


@pytest.mark.anyio
async def test_an_application_that_went_further_by_itself_is_not_sent_back() -> None:
    async def advance(app: web.Application) -> None:
        await app[SUPERVISOR].advance(Phase.RUNNING)

    async def shut_down(app: web.Application) -> None:
        await app[SUPERVISOR].shutdown()

    for handler, phase in ((advance, Phase.RUNNING), (shut_down, Phase.SUPERVISOR_START)):
        app = web.Application()
        app.on_startup.append(handler)
        setup(app, spares=0)
        runner = web.AppRunner(app)
        await runner.setup()
        assert app[SUPERVISOR].status().phase is phase
        await runner.cleanup()


@pytest.mark.anyio
async def test_an_application_and_those_inside_of_it_may_each_have_a_supervisor() -> None:
    async def nearest(request: web.Request) -> web.Response:
        return web.Response(text=request.config_dict[SUPERVISOR].name)

    outer, inner, plain = web.Application(), web.Application(), web.Application()
    setup(outer, spec(), name="outer", spares=0)
    setup(inner, spec(), name="inner", spares=0)
    for app, place in ((inner, "/inner"), (plain, "/plain")):
        app.router.add_get("/", nearest)
        outer.add_subapp(place, app)
    async with served(outer) as address, ClientSession(address) as session:
        for app in (outer, inner):
            await startup(app)
        for place, name in (("/inner/", "inner"), ("/plain/", "outer")):
            async with session.get(place) as answer:
                assert await answer.text() == name
    for app in (outer, inner):
        assert "closed" in repr(app[SUPERVISOR])


# What is refused, and when.


@pytest.mark.parametrize(
    ("specs", "options", "error", "complaint"),
    [
        ([], {"handle_signals": True}, aiobgw.InvalidSpec, "handles signals"),
        ([], {"start_phase": Phase.RUNNING}, aiobgw.InvalidSpec, "follows the application"),
        ([], {"spares": -1}, aiobgw.InvalidSpec, "spares must be"),
        ([], {"spare": 1}, TypeError, "spare"),
        ([spec()] * 2, {"max_workers": 1}, aiobgw.NoFreeSlot, "all 1 worker slots"),
        ([spec(args=(os,))], {}, aiobgw.InvalidSpec, "pickle"),
        (["worker"], {}, aiobgw.InvalidSpec, "WorkerSpec is wanted"),
    ],
)
def test_what_is_wrong_is_said_by_the_call(
    specs: list[Any], options: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    app = web.Application()
    with pytest.raises(error, match=complaint):
        setup(app, *specs, **options)
    assert len(app.cleanup_ctx) == 0
    with pytest.raises(error, match=complaint):
        cleanup_context(*specs, **options)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1"])
def test_a_drain_timeout_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match="drain_timeout must be 0 to 86400 seconds"):
        setup(web.Application(), drain_timeout=seconds)


def test_an_application_has_one_supervisor_set_up_before_it_is_used() -> None:
    app = web.Application()
    setup(app)
    with pytest.raises(RuntimeError, match="has a supervisor: give all specs to one setup"):
        setup(app)
    web.Application().add_subapp("/app/", app)
    added = web.Application()
    web.Application().add_subapp("/added/", added)
    with pytest.raises(RuntimeError, match="call setup\\(\\) before"):
        setup(added)


@pytest.mark.anyio
async def test_a_second_supervisor_is_refused_also_at_the_start() -> None:
    app = web.Application()
    setup(app, spares=0)
    app.cleanup_ctx.append(cleanup_context(spares=0))
    with pytest.raises(RuntimeError, match="has a supervisor"):
        async with served(app):
            pass
    assert "closed" in repr(app[SUPERVISOR])


# Failing.


@pytest.mark.anyio
async def test_a_start_that_failed_is_cleaned_up_and_may_be_tried_again() -> None:
    app = web.Application()
    setup(app, spec(start_when=Phase.SUPERVISOR_START), spares=0)
    pids = []

    async def fails_once(app: web.Application) -> AsyncIterator[None]:
        pids.append(await startup(app))
        if len(pids) == 1:
            raise LookupError("no database yet")
        yield

    app.cleanup_ctx.append(fails_once)
    with pytest.raises(LookupError):
        async with served(app):
            pass
    assert not procs.is_alive(pids[0])
    first = app[SUPERVISOR]
    async with served(app):
        assert app[SUPERVISOR] is not first
        assert procs.is_alive(pids[1])


@pytest.mark.anyio
async def test_a_supervisor_that_fails_is_logged_at_once_and_raised_by_the_clean_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = web.Application()
    app.router.add_get("/", ok)
    shared = {"flags": Flags.SHMEM_ACCESS, "crash_scope": CrashScope.ALL}
    setup(app, spec(**shared), restart_after_crash=False, spares=0)
    cleaned = []

    async def other(app: web.Application) -> AsyncIterator[None]:
        yield
        cleaned.append(app)

    app.cleanup_ctx.append(other)
    answered = 0
    with pytest.raises(aiobgw.SupervisorFailed, match="crash"):
        async with served(app) as address:
            os.kill(await startup(app), signal.SIGKILL)
            await until(lambda: "the application runs on" in caplog.text)
            async with ClientSession() as session, session.get(address) as answer:
                answered = answer.status
    assert answered == 200
    assert cleaned


# The end.


def waiting_app(worker: WorkerSpec, **options: Any) -> tuple[web.Application, asyncio.Event]:
    """Return an application whose requests wait for a worker, and what its drain sets."""
    draining = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        exit = await (await request.app[SUPERVISOR].register(worker))
        return web.Response(text=str(exit))

    async def drain(app: web.Application) -> None:
        draining.set()

    app = web.Application()
    app.router.add_get("/", wait)
    setup(app, spares=0, **options)
    app.on_shutdown.append(drain)
    return app, draining


@asynccontextmanager
async def request_in_flight(address: str) -> AsyncIterator[asyncio.Task[str]]:
    async def get() -> str:
        async with ClientSession() as session, session.get(address) as answer:
            return await answer.text()

    task = asyncio.create_task(get())
    yield task
    await task


@pytest.mark.anyio
async def test_a_request_in_flight_keeps_its_worker_until_it_is_answered(
    new_latch: NewLatch,
) -> None:
    go = new_latch()
    app, draining = waiting_app(spec(target=aiohttp_targets.finish_when_told, latches={"go": go}))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with request_in_flight(f"http://127.0.0.1:{runner.addresses[0][1]}/") as answer:
        await until(lambda: WorkerState.RUNNING in states(app).values())
        cleanup = asyncio.create_task(runner.cleanup())
        await draining.wait()
        go.set()
        assert await answer == "clean with exit code 0"
    await cleanup


@pytest.mark.anyio
async def test_what_waits_for_a_worker_without_end_delays_the_shutdown_by_a_bound(
    new_latch: NewLatch,
) -> None:
    """Its worker ignores SIGTERM, too; aiohttp alone would wait for 60 seconds."""
    up = new_latch()
    endless = spec(target=targets.ignore_term, stop_timeout=0.2, latches={"up": up})
    app, _ = waiting_app(endless, drain_timeout=0.2)
    async with served(app) as address:
        flight = request_in_flight(address)
        answer = await flight.__aenter__()
        await up.wait()
        began = time.monotonic()
    assert time.monotonic() - began < BOUND
    assert "SIGKILL" in await answer


@pytest.mark.anyio
async def test_a_clean_up_that_is_cancelled_ends_the_workers_at_once(new_latch: NewLatch) -> None:
    """And the other contexts are cleaned up all the same."""
    up = new_latch()
    cleaned = []

    async def other(app: web.Application) -> AsyncIterator[None]:
        yield
        cleaned.append(app)

    app = web.Application()
    app.cleanup_ctx.append(other)
    stubborn = spec(target=targets.ignore_term, stop_timeout=3600, latches={"up": up})
    app.cleanup_ctx.append(cleanup_context(stubborn, spares=0))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await up.wait()
    pid = await startup(app)
    cleanup = asyncio.create_task(runner.cleanup())
    await until(lambda: states(app)["worker"] is WorkerState.STOPPING)
    cleanup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleanup
    assert not procs.is_alive(pid)
    assert cleaned


@pytest.mark.anyio
async def test_an_application_that_has_ended_is_held_by_nothing() -> None:
    """Whether it has served or not: no timer of ours, and no task, goes on."""
    for serves, is_set_up in ((True, True), (False, True), (False, False)):
        app = web.Application()
        if is_set_up:
            setup(app, spares=0)
        else:
            app.cleanup_ctx.append(cleanup_context(spares=0))
        runner = web.AppRunner(app)
        await runner.setup()
        if serves:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        await runner.cleanup()
        supervisor = weakref.ref(app[SUPERVISOR])
        del app, runner
        gc.collect()
        assert supervisor() is None


# In processes of their own.


@contextmanager
def host(*command: str, loop: str = "asyncio") -> Iterator[subprocess.Popen[str]]:
    """Run an application, as the leader of a group; nothing that it started may be left."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=procs.ROOT,
        env={**os.environ, "AIOBGW_TEST_LOOP": loop, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], *starts: str) -> list[str]:
    """Read lines until there was one for each of these beginnings; return those."""
    assert process.stdout is not None
    wanted, found = list(starts), []
    for line in process.stdout:
        for start in wanted:
            if line.startswith(start):
                wanted.remove(start)
                found.append(line.strip())
                break
        if not wanted:
            return found
    raise AssertionError(f"ended without {wanted}")


def pid_in(line: str) -> int:
    return int(line.split()[-1])


@pytest.mark.parametrize(
    ("signum", "loop"), [(signal.SIGTERM, "asyncio"), (signal.SIGINT, "uvloop")]
)
def test_a_signal_ends_the_application_and_its_workers_in_order(
    signum: signal.Signals, loop: str
) -> None:
    """SIGINT goes to the whole foreground group, as Ctrl-C does."""
    with host(*HOSTS, "run_app", "serving", loop=loop) as process:
        answered, up = lines_until(process, "answered", "worker up")
        assert answered
        pid = pid_in(up)
        assert os.getpgid(pid) != process.pid, "the terminal would signal it, too"
        below = procs.descendants(process.pid)
        assert pid in below
        os.killpg(process.pid, signum)
        out, err = process.communicate(timeout=BOUND)
    assert "worker down" in out, "it was asked to end"
    assert (process.returncode, err) == (0, "")
    assert procs.wait_dead(below) == set()


def test_a_second_signal_ends_workers_that_do_not_end_when_asked() -> None:
    with host(*HOSTS, "run_app", "stubborn") as process:
        (up,) = lines_until(process, "worker up")
        process.send_signal(signal.SIGTERM)
        assert lines_until(process, "asked to end")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert procs.wait_dead({pid_in(up)}) == set()


@pytest.mark.parametrize(
    ("runner", "kind", "loop"),
    [
        ("run_app", "supervisor", "asyncio"),
        ("run_app", "context", "asyncio"),
        ("run_app", "handler", "uvloop"),
        ("run_app", "subapp", "asyncio"),
        ("AppRunner", "handler", "asyncio"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(runner: str, kind: str, loop: str) -> None:
    """Nobody calls the clean-up of the application then."""
    with host(*HOSTS, runner, kind, loop=loop) as process:
        out, err = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    if kind == "supervisor":
        assert "No module named 'no_such_module'" in err
        assert "worker up" not in out
        return
    assert err.endswith("LookupError: no database here\n")
    up, down = out.splitlines()
    assert down == "worker down", "it was asked to end"
    assert procs.wait_dead({pid_in(up)}) == set()


def test_a_start_that_is_interrupted_leaves_nothing() -> None:
    with host(*HOSTS, "run_app", "interrupted") as process:
        (up,) = lines_until(process, "worker up")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out, err) == (0, "worker down\n", "")
    assert procs.wait_dead({pid_in(up)}) == set()


@contextmanager
def gunicorn(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run two server processes on a socket in the file system."""
    command = [
        "-m",
        "gunicorn",
        f"{HOSTS[1]}:serving",
        "-k",
        "aiohttp.GunicornWebWorker",
        "-w",
        "2",
    ]
    command += ["-b", f"unix:{path}", "--worker-tmp-dir", str(path.parent), "--no-control-socket"]
    with host(*command, *options) as process:
        yield process


def server_of(process: subprocess.Popen[str], worker: int) -> int:
    """Return which server process of gunicorn a worker belongs to."""
    (server,) = (pid for pid in procs.children(process.pid) if worker in procs.descendants(pid))
    return server


def ask(path: Path) -> int:
    """Return the pid of the server process that answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(BOUND)
        connection.connect(str(path))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return int(connection.makefile().read().split()[-1])


@pytest.mark.parametrize(
    "options", [[], ["--preload", "-k", "aiohttp.GunicornUVLoopWebWorker"]], ids=["", "preload"]
)
def test_each_server_process_of_gunicorn_has_a_supervisor_of_its_own(
    tmp_path: Path, options: list[str]
) -> None:
    path = tmp_path / "socket"
    with gunicorn(path, *options) as process:
        ups = lines_until(process, "worker up", "worker up")
        killed, spared = map(pid_in, ups)
        server = server_of(process, killed)
        assert ask(path) in (server, server_of(process, spared))

        below = {server, *procs.descendants(server)}
        os.kill(server, signal.SIGKILL)
        assert procs.wait_dead(below) == set()
        assert procs.is_alive(spared)
        (again,) = lines_until(process, "worker up")
        below = procs.descendants(process.pid)
        assert {spared, pid_in(again)} <= below

        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=BOUND)
    assert out.splitlines() == ["worker down"] * 2
    assert process.returncode == 0
    assert procs.wait_dead(below) == set()


def test_the_readmes_application_runs_as_printed(tmp_path: Path) -> None:
    readme = (procs.ROOT / "README.md").read_text()
    section = readme.partition("## In an aiohttp app\n")[2]
    example = section.partition("```py\n")[2].partition("```")[0]
    script = tmp_path / "app.py"
    assert "port=8080" in example
    script.write_text(example.replace("port=8080", "port=0"))
    with host(str(script)) as process:
        (running,) = lines_until(process, "======== Running on")
        address = running.split()[3]
        with urlopen(f"{address}/resize", b"", timeout=BOUND) as answer:
            assert answer.read() == b"resize was clean with exit code 0\n"
        below = procs.descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, err) == (0, "")
    assert "a.png is resized" in out
    assert procs.wait_dead(below) == set()
