"""The blocking twin: the same names for plain code, in a process without a loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Latch, Restart, WorkerSpec, WorkerState

from .. import client_targets, procs, targets
from ..client_targets import Host, in_a_fork

LONG = 60.0


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop_of_the_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOBGW_TEST_LOOP", request.param)


@pytest.fixture
def host(place: str) -> Iterator[Host]:
    with Host(place, options={"max_workers": 3, "max_parallel_workers": 1}) as host:
        yield host


@pytest.fixture
def client(host: Host, place: str) -> Iterator[aiobgw.BlockingClient]:
    with aiobgw.attach_blocking(place) as client:
        yield client


@pytest.fixture
def latch() -> Iterator[Latch]:
    latch = Latch()
    yield latch
    latch.close()


def spec(**options: object) -> WorkerSpec:
    options.setdefault("name", "worker")
    options.setdefault("target", targets.sleep)
    return WorkerSpec(**options)  # type: ignore[arg-type]


def test_a_worker_lives_its_whole_life_in_plain_code(
    host: Host, client: aiobgw.BlockingClient
) -> None:
    handle = client.register(spec())
    status = handle.wait_for_startup(LONG)
    assert status.pid is not None
    assert procs.is_alive(status.pid)
    assert handle.wait_for_ready(LONG).ready
    assert client.handles() == [handle]
    assert client.get("worker") == client.get(handle.token) == handle
    assert client.get("nobody") is None
    assert handle.epoch == client.epoch
    assert client.status().pid == host.process.pid
    assert [one.name for one in client.status().workers] == ["worker"]
    handle.terminate()
    exit = handle.wait_for_exit(LONG)
    assert exit.kind is ExitKind.TERMINATED
    assert handle.wait_for_shutdown(LONG) == exit
    assert handle.status().state is WorkerState.STOPPED
    assert not client.handles()
    assert not procs.is_alive(status.pid)


def test_a_wait_that_takes_too_long_raises_timeout_error_and_loses_nothing(
    client: aiobgw.BlockingClient, latch: Latch
) -> None:
    handle = client.register(
        spec(
            target=targets.wait_then_exit,
            args=(7,),
            latches={"go": latch},
            restart=Restart.NEVER,
        )
    )
    handle.wait_for_startup(LONG)
    for wait in (handle.wait_for_exit, handle.wait_for_shutdown):
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                wait(timeout)
    latch.set()
    assert handle.wait_for_exit(LONG).code == 7
    exit = handle.wait_for_shutdown(0)
    assert exit is not None
    assert exit.code == 7


def test_an_attach_that_nobody_answers_times_out(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobgw._client.attach.ATTACH_TIMEOUT", 0.3)
    with (
        Host(place, options={"max_workers": 1}) as host,
        aiobgw.attach_blocking(place) as client,
    ):
        procs.stop(host.process.pid)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            aiobgw.attach_blocking(place)
        assert 0.3 <= time.monotonic() - began < 20
        host.process.send_signal(signal.SIGCONT)
        handle = client.register(spec())
        assert handle.wait_for_startup(LONG).state is WorkerState.RUNNING


def test_events_come_one_after_the_other_and_end_after_closed(
    host: Host, client: aiobgw.BlockingClient
) -> None:
    events = client.events(LONG)
    client.register(spec(target=targets.nothing)).wait_for_shutdown(LONG)
    kinds = [type(next(events)).__name__ for _ in range(5)]
    assert kinds == ["Registered", "Started", "Ready", "Exited", "Retired"]
    assert host.process.stdin is not None
    host.process.stdin.close()  # it leaves its block
    assert [type(event).__name__ for event in events] == ["Stopping", "Closed"]
    assert next(events, None) is None


def test_an_event_that_does_not_come_in_time_is_not_lost(client: aiobgw.BlockingClient) -> None:
    events = client.events(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            next(events)
    client.register(spec()).wait_for_startup(LONG)
    assert type(next(events)) is aiobgw.Registered


def test_the_end_of_the_supervisor_is_an_error_for_events(
    host: Host, client: aiobgw.BlockingClient
) -> None:
    events = client.events(LONG)
    client.register(spec()).wait_for_startup(LONG)
    host.kill()
    assert [type(next(events)).__name__ for _ in range(3)] == ["Registered", "Started", "Ready"]
    with pytest.raises(aiobgw.SupervisorDied):
        next(events)


def test_latches_and_arguments_go_with_a_plain_register(
    client: aiobgw.BlockingClient, latch: Latch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = client.register(
        spec(target=client_targets.wake_up, args=(str(out),), latches={"up": latch})
    )
    assert latch.wait_blocking(LONG)
    handle.wake()
    exit = handle.wait_for_shutdown(LONG)
    assert exit is not None
    assert exit.kind is ExitKind.CLEAN
    assert out.read_text() == "woken\n"

    other = tmp_path / "other"
    handle = client.register(
        spec(target=client_targets.note_arguments, args=(str(other), b"x" * 100_000))
    )
    handle.wait_for_shutdown(LONG)
    assert other.read_text() == "100000 b'x'\n"


def test_requests_of_plain_code_do_what_they_say(
    client: aiobgw.BlockingClient, latch: Latch
) -> None:
    stubborn = client.register(
        spec(target=targets.ignore_term, latches={"up": latch}, stop_timeout=3600)
    )
    assert latch.wait_blocking(LONG)
    stubborn.kill()
    exit = stubborn.wait_for_shutdown(LONG)
    assert exit is not None
    assert exit.signal == signal.SIGKILL

    crashed = client.register(spec(restart=Restart.NEVER))
    crashed.wait_for_startup(LONG)
    crashed.signal(signal.SIGKILL)
    assert crashed.wait_for_exit(LONG).kind is ExitKind.CRASHED

    failed = client.register(spec(target=targets.fail, restart_delay=3600))
    assert failed.wait_for_exit(LONG).incarnation == 1
    events = client.events(LONG)
    failed.restart()
    exited = next(event for event in events if isinstance(event, aiobgw.Exited))
    assert exited.status.exit is not None
    assert exited.status.exit.incarnation == 2
    failed.terminate()
    failed.wait_for_shutdown(LONG)


def test_what_refuses_a_plain_register_is_the_same_and_uses_nothing_up(
    client: aiobgw.BlockingClient,
) -> None:
    client.register(spec(name="only", flags=Flags.CLASS_PARALLEL))
    with pytest.raises(aiobgw.TooManyParallelWorkers) as parallel:
        client.register(spec(flags=Flags.CLASS_PARALLEL))
    assert parallel.value.limit == 1
    with pytest.raises(aiobgw.AlreadyRegistered):
        client.register(spec(name="only", unique=True))
    bad = spec()
    object.__setattr__(bad, "extra", b"x" * 129)
    with pytest.raises(aiobgw.InvalidSpec, match="extra"):
        client.register(bad)
    with pytest.raises(aiobgw.PayloadTooLarge):
        client.register(spec(args=(b"x" * 17 * 1024 * 1024,)))
    client.register(spec())
    client.register(spec())
    with pytest.raises(aiobgw.NoFreeSlot) as full:
        client.register(spec())
    assert full.value.limit == 3
    assert client.status().parallel_workers == 1


def test_never_started_is_raised_in_plain_code(client: aiobgw.BlockingClient) -> None:
    handle = client.register(spec(target="tests.targets:missing", restart=Restart.NEVER))
    with pytest.raises(aiobgw.NeverStarted) as caught:
        handle.wait_for_startup(LONG)
    assert "missing" in (caught.value.error or "")
    with pytest.raises(aiobgw.NeverStarted):
        handle.wait_for_ready(LONG)


def test_plain_waits_see_the_supervisors_death_within_a_second(place: str) -> None:
    with (
        Host(place, worker="tests.targets:sleep", other="tests.targets:ignore_term") as host,
        aiobgw.attach_blocking(place) as client,
    ):
        handle = client.get("worker")
        assert handle is not None
        began = time.monotonic()
        host.kill()
        for ask in (
            lambda: handle.wait_for_shutdown(LONG),
            lambda: handle.wait_for_exit(LONG),
            lambda: client.register(spec()),
            client.status,
            client.handles,
            handle.status,
            client.events,
        ):
            with pytest.raises(aiobgw.SupervisorDied):
                ask()
        assert time.monotonic() - began < 1


def test_the_death_of_a_stopped_supervisor_ends_a_register_on_its_way(
    host: Host, client: aiobgw.BlockingClient
) -> None:
    procs.stop(host.process.pid)
    killer = os.fork()
    if killer == 0:
        time.sleep(0.2)  # by then the request waits for its answer, or will find nobody
        os.kill(host.process.pid, signal.SIGKILL)  # Popen kills only its own children
        os._exit(0)
    try:
        with pytest.raises(aiobgw.SupervisorDied):
            client.register(spec())
    finally:
        os.waitpid(killer, 0)


def test_a_fork_may_use_nothing_of_a_plain_client(
    host: Host, client: aiobgw.BlockingClient
) -> None:
    handle = client.register(spec())
    handle.wait_for_startup(LONG)
    calls = [
        client.status,
        client.handles,
        client.events,
        lambda: client.get("worker"),
        lambda: client.get(handle.token),
        lambda: client.epoch,
        lambda: client.register(spec()),
        handle.status,
        handle.terminate,
        handle.kill,
        handle.restart,
        handle.wake,
        lambda: handle.signal(signal.SIGKILL),
        lambda: handle.wait_for_startup(LONG),
        lambda: handle.wait_for_ready(LONG),
        lambda: handle.wait_for_exit(LONG),
        lambda: handle.wait_for_shutdown(LONG),
    ]
    assert in_a_fork(*calls) == ["WrongProcess"] * len(calls)
    assert in_a_fork(client.close) == ["returned None"]
    assert handle.status().state is WorkerState.RUNNING
    assert client.handles() == [handle]


def test_a_fork_may_attach_itself(host: Host, client: aiobgw.BlockingClient, place: str) -> None:
    def attach() -> str:
        with aiobgw.attach_blocking(place) as own:
            return own.status().name

    assert in_a_fork(attach) == ["returned 'host'"]


def test_a_closed_plain_client_is_not_attached_and_its_workers_run_on(
    host: Host, place: str
) -> None:
    with aiobgw.attach_blocking(place) as client:
        handle = client.register(spec())
        handle.wait_for_startup(LONG)
        events = client.events(LONG)
    client.close()
    for ask in (
        client.status,
        client.handles,
        lambda: client.get("worker"),
        lambda: client.register(spec()),
        lambda: client.epoch,
        handle.status,
        lambda: handle.wait_for_exit(LONG),
        lambda: next(events),
    ):
        with pytest.raises(aiobgw.NotAttached, match="closed"):
            ask()
    with aiobgw.attach_blocking(place) as again:
        assert [one.state for one in again.status().workers] == [WorkerState.RUNNING]


def test_nobody_there_is_not_attached_in_plain_code(tmp_path: Path) -> None:
    with pytest.raises(aiobgw.NotAttached, match="no supervisor"):
        aiobgw.attach_blocking(tmp_path / "nowhere")
