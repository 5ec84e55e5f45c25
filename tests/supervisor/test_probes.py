"""Probes: a worker is ready when somebody who looks from outside finds it so."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiobgw import ExitKind, InvalidSpec, Readiness, Restart, WorkerSpec, WorkerState
from aiobgw._policy.probing import FIRST_LOOK, LONGEST_DELAY, look_delay
from aiobgw._process.events import Ended, Launch, Order, SaidHello
from aiobgw._supervisor import connecting, probes
from aiobgw._supervisor.connecting import is_good, is_own_echo, place_of
from aiobgw._supervisor.program import ProgramLook
from aiobgw.testing import FakeLauncher, Script

from .. import procs
from ..conftest import MakeSupervisor
from .test_readiness import told, until

anyio = pytest.mark.anyio

SLEEP = ["/bin/sleep", "1000"]
SHORT = 0.25


def spec(probe: Any, **options: Any) -> WorkerSpec:
    options.setdefault("restart", Restart.NEVER)
    options.setdefault("name", "w")
    return WorkerSpec(command=SLEEP, ready=Readiness.PROBE, probe=probe, **options)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every look that begins is in it."""
    begun: list[object] = []
    begin = probes.Probe._begin

    def note(probe: probes.Probe) -> None:
        begun.append(probe)
        begin(probe)

    monkeypatch.setattr(probes.Probe, "_begin", note)
    return begun


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a look soon."""
    monkeypatch.setattr(probes, "LOOK_TIMEOUT", SHORT)


# What can be known without a process.


def test_looks_become_rarer_up_to_one_a_second() -> None:
    delays = [look_delay(looks) for looks in range(100)]
    assert delays[0] == FIRST_LOOK
    assert delays[-1] == LONGEST_DELAY
    for one, next_one in itertools.pairwise(delays):
        assert next_one == pytest.approx(min(LONGEST_DELAY, one * 1.5))
    assert look_delay(10**9) == LONGEST_DELAY


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 204\r\n", True),
        (b"HTTP/1.1 399 x\n", True),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n", True),
        (b"HTTP/1.1 400 Bad\r\n", False),
        (b"HTTP/1.1 503 Later\r\n", False),
        (b"HTTP/1.1 103 Early Hints\r\n", False),
        (b"HTTP/1.1 2000 x\r\n", False),
        (b"HTTP/1.1 20\r\n", False),
        (b"HTTP/1.1 \xb2\xb2\xb2\r\n", False),
        (b"SSH-2.0-OpenSSH 200\r\n", False),
        (b"", False),
        (b"\n" * 10, False),
    ],
)
def test_an_answer_is_good_from_200_to_399(answer: bytes, good: bool) -> None:
    assert is_good(answer) is good


@pytest.mark.parametrize(
    ("probe", "path", "host", "port", "asks"),
    [
        ("tcp://[::1]:80", "", "::1", 80, b""),
        ("tcp://localhost:6379", "", "localhost", 6379, b""),
        ("unix:/run/x.sock", "/run/x.sock", "", 0, b""),
        ("unix:@x", "\0x", "", 0, b""),
        ("http://h/a?b=c#d", "", "h", 80, b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n"),
        ("http://[::1]:8080", "", "::1", 8080, b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n"),
    ],
)
def test_a_probe_says_where_to_look(
    probe: str, path: str, host: str, port: int, asks: bytes
) -> None:
    place = place_of(probe)
    assert place[:3] == (path, host, port)
    assert place.question.startswith(asks)
    assert bool(asks) == bool(place.question)


@pytest.mark.parametrize(
    "probe",
    [
        "tcp://h",
        "tcp://:80",
        "tcp://h:80/path",
        "tcp://u@h:80",
        "http:///path",
        "http://u:p@h/",
        "http://h/a b",
        "http://h/\xe4",
        "http://h/\r\nX: y",
        "https://h/",
        "unix:relative",
        "unix:/" + "x" * 108,
        "ftp://h",
        [],
        ["x" * 4_000, "y" * 4_000],
    ],
)
def test_what_cannot_be_probed_is_refused_at_birth(probe: Any) -> None:
    with pytest.raises(InvalidSpec, match="probe"):
        spec(probe)


def test_a_connection_of_a_port_with_itself_is_nobody_who_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.connect(one.getsockname())
        assert is_own_echo(one)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as other:
        other.connect(server.getsockname())
        assert not is_own_echo(other)


# Connections.


def tcp(path: Path, host: str = "127.0.0.1", called: str = "127.0.0.1") -> tuple[Any, str]:
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server.bind((host, 0))
    return server, f"tcp://{called}:{server.getsockname()[1]}"


def unix(path: Path) -> tuple[Any, str]:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path / "socket"))
    return server, f"unix:{path / 'socket'}"


def abstract(path: Path) -> tuple[Any, str]:
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\0{path}")
    return server, f"unix:@{path}"


PLACES: dict[str, Callable[[Path], tuple[Any, str]]] = {
    "tcp": tcp,
    "tcp6": lambda path: tcp(path, "::1", "[::1]"),
    "name": lambda path: tcp(path, called="localhost"),
    "unix": unix,
    "abstract": abstract,
}


@anyio
@pytest.mark.parametrize("place", PLACES)
async def test_a_worker_is_ready_when_something_listens(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, looks: list[object]
) -> None:
    try:
        server, probe = PLACES[place](tmp_path)
    except OSError as error:
        pytest.skip(f"no such socket here: {error}")
    with server:
        supervisor = await make_supervisor()
        events = supervisor.events()
        handle = await supervisor.register(spec(probe))
        await until(lambda: len(looks) > 2)
        assert (handle.status().state, handle.status().ready) == (WorkerState.RUNNING, False)
        server.listen()
        await handle.wait_for_ready()
        assert not supervisor._core.signs._probes
        handle.kill()
        await handle
    lives = [("Started", False), ("Ready", True), ("Exited", False)]
    assert told(events) == [("Registered", False), *lives, ("Retired", False)]


@anyio
async def test_an_http_server_is_ready_when_it_answers_well(
    make_supervisor: MakeSupervisor, impatient: None
) -> None:
    """Not when it hangs up, fails, talks nonsense, talks for ever, or is silent."""
    answers = [b"", b"HTTP/1.1 500 No\r\n\r\n", b"x\r\n", b"HTTP" * 4_000, None, b"HTTP/1.1 200 "]
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        answer = answers.pop(0)
        if answer is None:
            assert await reader.read() == b""  # they gave up
        else:
            writer.write(answer)
            await writer.drain()
            if not answers:
                writer.write(b"OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    supervisor = await make_supervisor()
    handle = await supervisor.register(spec(f"http://127.0.0.1:{port}/health?deep=1"))
    await handle.wait_for_ready()
    assert not answers
    assert len(requests) == 6
    lines = requests[-1].split(b"\r\n")
    assert lines[:2] == [b"GET /health?deep=1 HTTP/1.1", f"Host: 127.0.0.1:{port}".encode()]
    server.close()
    await server.wait_closed()


@anyio
@pytest.mark.parametrize("end", ["kill", "shutdown", "abandon"])
async def test_a_look_that_is_under_way_ends_with_what_it_looks_at(
    make_supervisor: MakeSupervisor, end: str
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    supervisor = await make_supervisor()
    port = server.sockets[0].getsockname()[1]
    handle = await supervisor.register(spec(f"http://127.0.0.1:{port}/"))
    await asked.wait()
    pid = handle.status().pid
    assert pid
    if end == "kill":
        handle.kill()
        await handle
    elif end == "shutdown":
        await supervisor.shutdown()
    else:
        supervisor.abandon()
    assert not set(supervisor._core.signs.descriptors())
    await gone.wait()
    assert not procs.wait_dead({pid})
    server.close()
    await server.wait_closed()


@anyio
async def test_a_name_that_is_looked_up_for_long_holds_one_thread_and_no_stop(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    looks: list[object],
) -> None:
    free, calls = threading.Event(), []

    def slow(place: Any, flags: int) -> Any:
        if flags:
            raise socket.gaierror
        calls.append(place.host)
        free.wait()
        raise UnicodeError

    monkeypatch.setattr(connecting, "_addresses", slow)
    supervisor = await make_supervisor()
    try:
        handle = await supervisor.register(spec("tcp://far.example:1"))
        await until(lambda: len(looks) >= 3)
        assert calls == ["far.example"]
        free.set()
        await until(lambda: len(calls) > 1)
        assert not handle.status().ready
        free.clear()
        await until(lambda: len(calls) > 2)
        await supervisor.shutdown()
    finally:
        free.set()


# Programs.


@anyio
async def test_a_worker_is_ready_when_a_program_says_so_by_its_exit(
    make_supervisor: MakeSupervisor, tmp_path: Path, looks: list[object]
) -> None:
    """Also a Python target, whose own word does not count then; and in each life again."""
    supervisor = await make_supervisor()
    up = tmp_path / "up"
    probe = ["/bin/sh", "-c", f'test -z "$NOTIFY_SOCKET" && test -e {up}']
    async with Script() as script:
        handle = await supervisor.register(
            script.spec("w", ready=Readiness.PROBE, probe=probe, start_timeout=3600)
        )
        for number in (1, 2):
            life = await script.wait_for_incarnation()
            await life.ready()
            await until(lambda: len(looks) > 3)
            assert not handle.status().ready
            up.touch()
            assert (await handle.wait_for_ready()).incarnation == number
            up.unlink()
            looks.clear()
            handle.restart()
            await handle.wait_for_exit()
        handle.kill()
        await handle


@anyio
async def test_a_program_that_cannot_be_run_is_told_of_once(
    make_supervisor: MakeSupervisor, looks: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await make_supervisor()
    handle = await supervisor.register(spec(["/no/such/program"]))
    await until(lambda: len(looks) > 3)
    assert caplog.text.count("worker w: its probe cannot be executed: /no/such/program") == 1
    handle.kill()
    await handle


@anyio
@pytest.mark.parametrize("end", ["give up", "kill", "shutdown", "abandon"])
async def test_a_program_that_hangs_is_killed_with_all_that_it_has_started(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    end: str,
    reaper: str,
) -> None:
    if end == "give up":
        monkeypatch.setattr(probes, "LOOK_TIMEOUT", SHORT)
    out = tmp_path / "pids"
    supervisor = await make_supervisor(reaper=reaper)
    script = f"sleep 1000 & echo $! >> {out}; echo $$ >> {out}; wait"
    handle = await supervisor.register(spec(["/bin/sh", "-c", script]))

    def pids() -> list[int]:
        return [int(line) for line in out.read_text().split()] if out.exists() else []

    await until(lambda: len(pids()) >= 2)
    first, leader = set(pids()[:2]), pids()[1]
    if end == "give up":
        await until(lambda: len(pids()) >= 4)
    elif end == "kill":
        handle.kill()
    elif end == "shutdown":
        await supervisor.shutdown()
        assert not procs.is_alive(leader), "the stop did not wait for it"
    else:
        supervisor.abandon()
    assert not procs.wait_dead(first)


@anyio
async def test_who_is_never_found_ready_fails_and_the_next_life_is_looked_at_anew(
    make_supervisor: MakeSupervisor, looks: list[object]
) -> None:
    supervisor = await make_supervisor()
    handle = await supervisor.register(
        spec(["/bin/false"], start_timeout=0.2, restart=Restart.ALWAYS, restart_delay=0)
    )
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.reason) == (
        ExitKind.FAILED,
        "not ready within start_timeout (0.2 s)",
    )
    await until(lambda: len(set(map(id, looks))) > 1)
    handle.kill()
    await handle


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a handler failed, which the loop only logs."""
    yield
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors


@anyio
async def test_all_addresses_of_a_name_are_tried_at_once_and_one_that_is_good_is_enough(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    servers = [await asyncio.start_server(one, "127.0.0.1", 0) for one in (be_silent, answer)]
    nobody = ("127.0.0.1", 1)
    places = [nobody, *(server.sockets[0].getsockname() for server in servers)]
    found = [(socket.AF_INET, place) for place in places]
    monkeypatch.setattr(connecting, "_addresses", lambda place, flags: found)
    supervisor = await make_supervisor()
    handle = await supervisor.register(spec("http://three.example/"))
    await handle.wait_for_ready()
    assert not set(supervisor._core.signs.descriptors())
    await gone.wait()
    for server in servers:
        server.close()
        await server.wait_closed()


class OnItsWay(Launch):
    """A launch that cannot be withdrawn any more, and has no process yet."""

    killed = 0

    def kill_group(self) -> bool:
        self.killed += 1
        return True


class NoWayBack(FakeLauncher):
    def launch(self, order: Order, owner: object) -> Launch:
        return OnItsWay(order, owner)

    def withdraw(self, launch: Launch) -> bool:
        return False


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_program_that_nobody_waits_for_any_more_is_killed_when_it_comes_up(
    gives_up: bool,
) -> None:
    said: list[bool] = []
    look = ProgramLook(NoWayBack(), lambda: Order(b""), said.append, "w", set())
    look.begin()
    launch = look._launch
    assert isinstance(launch, OnItsWay)
    look.give_up() if gives_up else look.close()
    before = launch.killed
    look.hear(SaidHello(launch, 7))
    assert launch.killed == before + 1
    assert not said, "it is not over yet"
    look.hear(Ended(launch, 0, None))
    assert said == [False] * gives_up
