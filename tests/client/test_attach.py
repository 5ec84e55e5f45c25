"""Attached clients: what they see, ask and wait for, and whom they never speak for."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Latch, Restart, ShutdownMode, WorkerSpec, WorkerState, _inject
from aiobgw._ipc import requests
from aiobgw._ipc.board import HEAD, BoardWriter
from aiobgw._ipc.record import pack_head
from aiobgw._ipc.verbs import Rights

from .. import client_targets, procs, targets
from ..client_targets import Host, first_step, in_a_fork, in_a_thread, until
from ..conftest import MakeSupervisor
from ..hostile import Raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loop_of_the_host")]


@pytest.fixture
async def supervisor(make_supervisor: MakeSupervisor, place: str) -> aiobgw.Supervisor:
    return await make_supervisor(runtime_dir=place)


@pytest.fixture
async def client(supervisor: aiobgw.Supervisor, place: str) -> AsyncIterator[aiobgw.Client]:
    async with aiobgw.attach(place) as client:
        yield client


async def register(client: Any, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("target", targets.sleep)
    handle: aiobgw.WorkerHandle = await client.register(WorkerSpec(**options))
    return handle


async def started(client: Any, **options: Any) -> aiobgw.WorkerHandle:
    handle = await register(client, **options)
    await handle.wait_for_startup()
    return handle


async def ended(handle: aiobgw.WorkerHandle) -> aiobgw.ExitStatus:
    exit = await handle
    assert exit is not None
    return exit


# Attaching.


@pytest.fixture
def name_of_its_own() -> Iterator[str]:
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    shutil.rmtree(f"/run/aiobgw/{name}", ignore_errors=True)


async def test_a_client_attaches_by_path_and_by_name(
    make_supervisor: MakeSupervisor,
    name_of_its_own: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("AIOBGW_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    supervisor = await make_supervisor(name=name_of_its_own, runtime_dir=True)
    base = Path("/run") if os.geteuid() == 0 else tmp_path
    for where in (name_of_its_own, base / "aiobgw" / name_of_its_own):
        async with aiobgw.attach(where) as client:
            assert client.epoch == supervisor.epoch
            assert client.status().name == name_of_its_own


async def test_nobody_there_is_not_attached_with_a_hint(place: str) -> None:
    with pytest.raises(aiobgw.NotAttached, match="no supervisor at") as caught:
        async with aiobgw.attach(place):
            pass
    assert any("runtime_dir" in note for note in caught.value.__notes__)


async def test_a_socket_that_a_dead_supervisor_left_is_not_attached(place: str) -> None:
    os.mkdir(place, 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(f"{place}/control")
    with pytest.raises(aiobgw.NotAttached, match="listens"):
        async with aiobgw.attach(place):
            pass


EPOCH = 5


def board(epoch: int) -> int:
    """Return a descriptor of a real board, to be closed."""
    writer = BoardWriter(1, epoch)
    try:
        return os.dup(writer.fd)
    finally:
        writer.close()


def of_another_supervisor() -> int:
    return board(EPOCH + 1)


def unsealed() -> int:
    fd = os.memfd_create("board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    real = board(EPOCH)
    os.write(fd, os.pread(real, 100_000, 0))
    os.close(real)
    return fd


def of_another_layout() -> int:
    fd = os.memfd_create("board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"\0" * 8192)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (unsealed, "seals"),
        (of_another_layout, "layout"),
        (of_another_supervisor, "another supervisor's"),
        (None, "without a board"),
    ],
)
async def test_a_board_that_is_none_is_refused(
    place: str, make: Callable[[], int] | None, complaint: str
) -> None:
    """Whoever listens there is of our user, and still not trusted with our memory."""
    os.mkdir(place, 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{place}/control")
        listening.listen()
        attaching = asyncio.ensure_future(aiobgw.attach(place).__aenter__())
        await until(lambda: select.select([listening], [], [], 0)[0])
        peer, _ = listening.accept()
        fds = [] if make is None else [make(), os.pidfd_open(os.getpid())]
        welcome = requests.Welcome(requests.WIRE, "1", EPOCH, Rights.ADMINISTRATE, 1_000)
        socket.send_fds(peer, [requests.pack(welcome)], fds)
        with pytest.raises(aiobgw.ProtocolMismatch, match=complaint):
            await attaching
        peer.close()
    for fd in fds:
        os.close(fd)


async def test_a_supervisor_that_goes_while_it_is_asked_for_events_ends_them_and_all_waits(
    place: str,
) -> None:
    """Its sockets go before its pidfd says so: then sending is what finds out."""
    os.mkdir(place, 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{place}/control")
        listening.listen()
        attaching = asyncio.ensure_future(aiobgw.attach(place).__aenter__())
        await until(lambda: select.select([listening], [], [], 0)[0])
        peer, _ = listening.accept()
        writer = BoardWriter(1, EPOCH)
        writer.write(HEAD, pack_head(aiobgw.Supervisor().status(), 0, closed=False))
        pidfd = os.pidfd_open(os.getpid())
        welcome = requests.Welcome(requests.WIRE, "1", EPOCH, Rights.ADMINISTRATE, 1_000)
        socket.send_fds(peer, [requests.pack(welcome)], [writer.fd, pidfd])
        client = await attaching
    closing = asyncio.ensure_future(client.wait_closed())
    await asyncio.sleep(0)
    peer.close()
    events = client.events()
    for ending in (anext(events), closing, client.wait_closed()):
        with pytest.raises(aiobgw.SupervisorDied):
            await asyncio.wait_for(ending, 20)
    client.close()
    writer.close()
    os.close(pidfd)


async def test_a_client_sees_the_end_of_its_supervisor_in_order_or_not(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    async with aiobgw.attach(place) as client, aiobgw.attach(place) as closed:
        closing = asyncio.ensure_future(closed.wait_closed())
        await asyncio.sleep(0)
        closed.close()
        with pytest.raises(aiobgw.NotAttached, match="closed"):
            await closing
        closing = asyncio.ensure_future(client.wait_closed())
        await asyncio.sleep(0)
        await supervisor.shutdown()
        await closing
        await client.wait_closed()


async def test_after_its_block_a_client_is_not_attached(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    async with aiobgw.attach(place) as client:
        pass
    with pytest.raises(aiobgw.NotAttached, match="closed"):
        client.status()
    with pytest.raises(aiobgw.NotAttached, match="closed"):
        await register(client)
    client.close()  # and again


# What a client sees.


async def test_a_client_registers_a_worker_and_sees_its_whole_life(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await register(client)
    status = await handle.wait_for_startup()
    assert status.state is WorkerState.RUNNING
    assert status.pid is not None
    assert procs.is_alive(status.pid)
    assert (await handle.wait_for_ready()).ready
    assert supervisor.handles() == [handle]
    handle.terminate()
    exit = await ended(handle)
    assert exit.kind is ExitKind.TERMINATED
    assert handle.status().state is WorkerState.STOPPED
    assert await handle.wait_for_exit() == exit
    assert not procs.is_alive(status.pid)


async def test_handles_are_in_the_order_of_registration_whatever_their_slots(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    first = await started(supervisor, name="a")
    await started(client, name="b")
    first.terminate()
    await first
    await started(client, name="c")
    handles = client.handles()
    assert [handle.name for handle in handles] == ["b", "c"]
    assert [handle.slot for handle in handles] == [1, 0], "the later one has the lower slot"
    assert handles == supervisor.handles()


async def test_get_finds_the_newest_of_a_name_and_nobody_that_is_gone(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    for _ in range(3):
        last = await started(supervisor, name="same")
    found = client.get("same")
    assert found == last
    last.terminate()
    await last
    assert client.get("same") not in (None, last)
    assert client.get("other") is None


async def test_get_finds_a_worker_by_the_token_of_any_handle_of_it(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await started(supervisor)
    found = client.get(handle.token)
    assert found == handle
    assert found is not None
    assert found.token == handle.token
    assert supervisor.get(found.token) == found
    assert found.status() == handle.status()


async def test_get_finds_nobody_by_a_token_that_is_not_of_here_and_now(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await started(supervisor)
    epoch, slot, generation = handle.epoch, handle.slot, handle.generation
    assert client.get(f"aiobgw1:{epoch:x}:{slot}:{generation}") == handle
    for token in (
        f"aiobgw1:{epoch ^ 1:x}:{slot}:{generation}",
        f"aiobgw1:{epoch:x}:{slot}:{generation + 1}",
        f"aiobgw1:{epoch:x}:{slot + 1}:{generation}",
        f"aiobgw1:{epoch:x}:100000:{generation}",
        f"aiobgw1:{epoch:x}:-1:{generation}",
        f"aiobgw1:{epoch:x}:-2:{generation}",
        "aiobgw1:",
        "aiobgw1:x:y:z",
    ):
        assert client.get(token) is None, token
    handle.terminate()
    await handle
    assert client.get(handle.token) is None


async def test_the_status_of_a_client_is_the_supervisors_own(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    assert client.status() == supervisor.status()
    await started(client, name="up", flags=Flags.CLASS_PARALLEL)
    failed = await started(client, name="waits", target=targets.fail, restart_delay=3600)
    await failed.wait_for_exit()
    await started(client, name="command", target=None, command=["/bin/sleep", "3600"])
    status = client.status()
    assert status == supervisor.status()
    assert [one.state.name for one in status.workers] == ["RUNNING", "BACKOFF", "RUNNING"]
    assert status.parallel_workers == 1


async def test_a_worker_is_on_the_board_before_its_registration_is_answered(
    supervisor: aiobgw.Supervisor, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a handle says STOPPED, and a guard fails, before the worker has begun."""
    from aiobgw._supervisor.core import Core

    consider = Core.consider
    found: list[Any] = []

    def look() -> None:
        with aiobgw.attach_blocking(place) as client:
            handle = client.register(WorkerSpec(name="worker", target=targets.sleep))
            found.extend((handle.status().state, client.get("worker") == handle))

    def slow(core: Core, worker: Any) -> None:
        give_up = time.monotonic() + 0.5
        while not found and time.monotonic() < give_up:
            time.sleep(0.005)  # the supervisor's turn takes long here
        consider(core, worker)

    monkeypatch.setattr(Core, "consider", slow)
    await in_a_thread(look)
    assert found[0] is not WorkerState.STOPPED
    assert found[1]


async def test_a_client_that_attaches_late_sees_what_was_before(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    failed = await started(supervisor, name="failed", target=targets.fail, restart_delay=3600)
    await failed.wait_for_exit()
    async with aiobgw.attach(place) as client:
        late = client.get("failed")
        assert late is not None
        assert late.status() == failed.status()
        exit = await late.wait_for_exit()
        assert exit.kind is ExitKind.FAILED
        assert "as asked" in (exit.error or "")
        failed.terminate()
        assert await late == await failed
        assert late.status().state is WorkerState.STOPPED


async def test_the_last_state_of_a_worker_stays_when_everything_else_is_gone(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        over = await register(client, target=targets.nothing)
        exit = await ended(over)
        await supervisor.shutdown()
        assert over.status().state is WorkerState.STOPPED
        assert await over.wait_for_exit() == exit
        over.terminate()


# Events.


async def test_a_client_hears_of_every_kind_of_event_in_order(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        ours, theirs = supervisor.events(), client.events()
        await asyncio.sleep(0)
        handle = await started(client, target=targets.fail, restart_delay=3600)
        await handle.wait_for_exit()
        handle.terminate()
        await handle
        await supervisor.advance(aiobgw.Phase.CONSISTENT_STATE)
        zygote = supervisor.status().zygote_pid
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        seen = []
        async for event in theirs:
            seen.append(event)
            if isinstance(event, aiobgw.ZygoteRestarted):
                await supervisor.shutdown()
        kinds = [type(event).__name__ for event in seen]
        assert kinds == [
            *("Registered", "Started", "Ready", "Exited", "Restarting", "Retired"),
            *("PhaseChanged", "ZygoteRestarted", "Stopping", "Closed"),
        ]
        assert seen == [event async for event in ours]
        with pytest.raises(StopAsyncIteration):
            await anext(theirs)


async def test_events_end_with_supervisor_died_after_what_came_before(place: str) -> None:
    with Host(place) as host:
        async with aiobgw.attach(place) as client:
            stream = client.events()
            handle = await started(client)
            host.kill()
            seen = []
            with pytest.raises(aiobgw.SupervisorDied):
                async for event in stream:
                    seen.append(type(event).__name__)
            assert seen == ["Registered", "Started", "Ready"]
            with pytest.raises(aiobgw.SupervisorDied):
                await handle


async def test_a_client_that_does_not_listen_for_long_is_told_how_much_it_missed(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    """More events than a socket holds, while the client's loop has no turn to read them."""
    stream = client.events()
    await started(client, name="first")
    for _ in range(2_000):
        supervisor._core.news.publish(aiobgw.PhaseChanged(time.time(), aiobgw.Phase.RUNNING))
    stopping = asyncio.ensure_future(supervisor.shutdown())
    seen = [event async for event in stream]
    await stopping
    changes = sum(isinstance(event, aiobgw.PhaseChanged) for event in seen)
    lost = sum(event.count for event in seen if isinstance(event, aiobgw.EventsLost))
    assert lost > 0
    assert changes + lost >= 2_000
    assert isinstance(seen[-1], aiobgw.Closed)


async def test_a_client_that_is_behind_when_the_supervisor_ends_hears_of_an_end_in_order(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    """Its socket is full when Closed is sent; that the supervisor died would be wrong."""
    stream = client.events()
    await started(client, name="first")
    drain = client._connection.drain
    client._connection.drain = lambda: None  # type: ignore[method-assign]
    for _ in range(2_000):
        supervisor._core.news.publish(aiobgw.PhaseChanged(time.time(), aiobgw.Phase.RUNNING))
    await supervisor.shutdown()
    client._connection.drain = drain  # type: ignore[method-assign]
    seen = [event async for event in stream]
    assert isinstance(seen[-1], aiobgw.Closed)


async def test_a_stream_that_nobody_holds_is_not_filled_any_more(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    import gc
    import weakref

    dropped = weakref.ref(client.events())
    gc.collect()
    assert dropped() is None


# What a client waits for.


async def test_waits_go_on_across_restarts(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await register(
        client, target=client_targets.fail_once, args=(str(out),), restart_delay=0
    )
    over = asyncio.ensure_future(handle.wait_for_shutdown())
    exit = await handle.wait_for_exit()
    assert (exit.incarnation, exit.kind) == (1, ExitKind.FAILED)
    while handle.status().incarnation < 2 or handle.status().state is not WorkerState.RUNNING:
        await handle._port.changes.wait()
    second = asyncio.ensure_future(handle.wait_for_exit())
    await asyncio.sleep(0)
    assert not over.done()
    handle.restart()
    assert (await second).incarnation == 2
    assert (await handle.wait_for_startup()).incarnation >= 2
    handle.terminate()
    last = await over
    assert last is not None
    assert last.kind is ExitKind.TERMINATED
    assert handle.status().restarts == 1, "a restart on request counts for nothing"


async def test_a_worker_that_never_starts_is_told_by_every_wait(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place, start_phase=aiobgw.Phase.CONSISTENT_STATE)
    async with aiobgw.attach(place) as client:
        handle = await register(client)
        assert handle.status().state is WorkerState.NOT_STARTED
        waits = [
            asyncio.ensure_future(wait())
            for wait in (handle.wait_for_startup, handle.wait_for_ready, handle.wait_for_exit)
        ]
        await asyncio.sleep(0)
        handle.terminate()
        assert await handle is None
        for wait in waits:
            with pytest.raises(aiobgw.NeverStarted, match="terminated before it started"):
                await wait


async def test_a_launch_that_fails_is_never_started_with_the_traceback(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await register(client, target="tests.targets:no_such_function", restart_delay=3600)
    with pytest.raises(aiobgw.NeverStarted) as caught:
        await handle.wait_for_startup()
    assert caught.value.next_start_at is not None
    assert "no_such_function" in (caught.value.error or "")
    handle.terminate()
    await handle


async def test_many_clients_wait_for_one_worker_and_all_are_woken(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    handle = await started(supervisor)
    async with asyncio.timeout(30):
        clients = [aiobgw.attach(place) for _ in range(40)]
        seen = [(await attachment.__aenter__()).get("worker") for attachment in clients]
        waits = [asyncio.ensure_future(ended(one)) for one in seen if one is not None]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        handle.terminate()
        exits = await asyncio.gather(*waits)
    assert exits == [await handle] * 40
    for attachment in clients:
        await attachment.__aexit__(None, None, None)


async def test_who_asked_about_a_worker_is_told_of_it_and_nobody_else(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, place: str
) -> None:
    ours, other = await started(client, name="ours"), await started(client, name="other")
    with Raw(place) as watcher, Raw(place) as bystander:
        await watcher.welcome()
        await bystander.welcome()
        watcher.send(requests.pack(requests.Watch(ours.slot, ours.generation)))
        told = await watcher.answers(lambda message: isinstance(message, requests.Changed))
        for handle in (other, ours):
            handle.terminate()
            await handle
        told += await watcher.answers(lambda message: message.workers[0][2])  # its last status
        about = {worker[:2] for message in told for worker in message.workers}  # type: ignore[attr-defined]
        assert about == {(ours.slot, ours.generation)}
        assert bystander.drain() == []


async def test_cancelled_waits_lose_nothing(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    with _latch() as go:
        handle = await started(
            client,
            target=targets.wait_then_exit,
            args=(7,),
            latches={"go": go},
            restart=Restart.NEVER,
        )
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await handle
        other = asyncio.ensure_future(handle.wait_for_exit())
        cancelled = asyncio.ensure_future(handle.wait_for_exit())
        await asyncio.sleep(0)
        cancelled.cancel()
        go.set()
        assert (await other).code == 7
        assert (await ended(handle)).code == 7


class _latch:
    """A latch for a block."""

    def __enter__(self) -> Latch:
        self._latch = Latch()
        return self._latch

    def __exit__(self, *_: object) -> None:
        self._latch.close()


async def test_a_guard_of_a_client_cancels_its_block_when_the_worker_fails(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await started(client, restart=Restart.NEVER)
    with pytest.raises(aiobgw.WorkerFailed, match="SIGKILL"):
        async with asyncio.timeout(30), handle.guard():
            handle.signal(signal.SIGKILL)
            await asyncio.sleep(3600)


# What a client asks.


async def test_terminate_kill_signal_and_restart_do_what_they_do_beside_the_supervisor(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await started(client)
    handle.terminate()
    handle.terminate()
    assert (await ended(handle)).kind is ExitKind.TERMINATED

    with _latch() as up:
        handle = await started(
            client, target=targets.ignore_term, latches={"up": up}, stop_timeout=3600
        )
        await up.wait()
    handle.kill()
    assert (await ended(handle)).signal == signal.SIGKILL

    handle = await started(client, restart=Restart.NEVER)
    handle.signal(signal.SIGKILL)
    exit = await ended(handle)
    assert (exit.kind, exit.signal) == (ExitKind.CRASHED, signal.SIGKILL)

    handle = await started(client, target=targets.fail, restart_delay=3600)
    await handle.wait_for_exit()
    again = asyncio.ensure_future(_exit_of(handle, 2))
    await asyncio.sleep(0)
    handle.restart()
    assert (await again).incarnation == 2
    handle.terminate()
    await handle


async def _exit_of(handle: aiobgw.WorkerHandle, incarnation: int) -> aiobgw.ExitStatus:
    while True:
        exit = handle.status().exit
        if exit is not None and exit.incarnation == incarnation:
            return exit
        await handle._port.changes.wait()


async def test_wake_sets_the_workers_own_latch(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with _latch() as up:
        handle = await started(
            client, target=client_targets.wake_up, args=(str(out),), latches={"up": up}
        )
        await up.wait()
        handle.wake()
        assert (await ended(handle)).kind is ExitKind.CLEAN
    assert out.read_text() == "woken\n"


@pytest.mark.parametrize("size", [1, 8_000, 8_192, 8_193, 1_000_000])
async def test_arguments_of_every_size_come_whole(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "out"
    handle = await register(
        client, target=client_targets.note_arguments, args=(str(out), b"x" * size)
    )
    assert (await ended(handle)).ok
    assert out.read_text() == f"{size} b'x'\n"


@pytest.mark.parametrize("limit", [100, 20_000])
@pytest.mark.parametrize("honest", [True, False])
async def test_too_many_arguments_are_refused_with_both_numbers_here_and_there(
    make_supervisor: MakeSupervisor, place: str, limit: int, honest: bool
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_payload=limit)
    async with aiobgw.attach(place) as client:
        if not honest:
            client._connection.welcome.max_payload = 2**30  # type: ignore[union-attr]
        with pytest.raises(aiobgw.PayloadTooLarge) as caught:
            await register(client, target=targets.echo, args=("p", b"x" * limit))
        assert caught.value.limit == limit
        assert limit < caught.value.size < limit + 200
        assert str(caught.value.size) in str(caught.value)
        assert str(limit) in str(caught.value)
        assert any("max_payload" in note for note in caught.value.__notes__)
        assert not supervisor.handles()


async def test_latches_cross_the_wire_each_under_its_name(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    with _latch() as here, _latch() as there:
        handle = await started(
            client, target=client_targets.pass_on, latches={"there": there, "here": here}
        )
        assert not there.is_set()
        here.set()
        await there.wait()
        assert (await ended(handle)).ok


async def test_latches_and_large_arguments_come_together(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    latches = {f"latch {number}": Latch() for number in range(16)}
    try:
        handle = await register(
            client,
            target=client_targets.note_arguments,
            args=(str(out), b"y" * 100_000),
            latches=latches,
        )
        assert (await ended(handle)).ok
    finally:
        for latch in latches.values():
            latch.close()
    assert out.read_text() == "100000 b'y'\n"


# Slots.


async def test_a_handle_whose_slot_went_on_has_its_own_exit_and_never_the_tenants(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """All this while the client's loop has no turn: its messages wait in the socket."""
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1)
    async with aiobgw.attach(place) as client:
        with _latch() as go:
            old = await started(
                client,
                name="old",
                target=targets.wait_then_exit,
                args=(7,),
                latches={"go": go},
                restart=Restart.NEVER,
            )
            drain = client._connection.drain
            client._connection.drain = lambda: None  # type: ignore[method-assign]
            ours = supervisor.get("old")
            assert ours is not None
            go.set()
            await ours
        new = await started(supervisor, name="new")
        assert new.slot == old.slot
        assert old.status().state is WorkerState.STOPPED
        assert old.status().name in ("old", ""), "never the next tenant's"
        assert old.status().exit is None or old.status().exit.code == 7
        old.terminate()
        old.kill()
        old.signal(signal.SIGKILL)

        waiting = [asyncio.ensure_future(wait()) for wait in (old.wait_for_exit, ended_of(old))]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waiting)
        client._connection.drain = drain  # type: ignore[method-assign]
        for wait in waiting:
            exit = await wait
            assert (exit.code, exit.name) == (7, "old")
        assert old.status().name == "old"

        # What was asked of the old one has passed by: it was read before this answer.
        with pytest.raises(aiobgw.NoFreeSlot):
            await register(client)
        assert new.status().state is WorkerState.RUNNING


def ended_of(handle: aiobgw.WorkerHandle) -> Any:
    async def wait() -> aiobgw.ExitStatus:
        return await ended(handle)

    return wait


async def test_a_handle_found_late_for_a_slot_that_went_on_learns_how_its_worker_ended(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1)
    async with aiobgw.attach(place) as client:
        ours = await started(supervisor, name="old", restart=Restart.NEVER)
        found = client.get("old")  # what it asks is read by the supervisor's next turn only
        ours.kill()
        assert found is not None
        exit = await ours
        await started(supervisor, name="new")
        assert await found == exit
        assert found.status().name == "old"


async def test_churn_through_one_slot_gives_each_its_own_exit(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place, max_workers=2)
    async with aiobgw.attach(place) as client:
        for number in range(2, 20):
            handle = await register(
                client,
                name=f"w{number}",
                target=targets.exit_with,
                args=(number,),
                restart=Restart.NEVER,
            )
            exit = await ended(handle)
            assert (exit.code, exit.name) == (number, f"w{number}")


# Cancelled, closed, refused.


async def test_a_cancelled_register_leaves_no_worker_behind(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    stream = supervisor.events()
    registering = asyncio.ensure_future(register(client))
    await asyncio.sleep(0)
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering
    async with asyncio.timeout(30):
        async for event in stream:
            if isinstance(event, aiobgw.Retired):
                break
    assert not supervisor.handles()


async def test_a_register_cancelled_when_the_answer_is_in_leaves_no_worker_behind(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    """The future has its result, but the task that awaits it has not run yet."""
    stream = supervisor.events()
    take = client._connection._take
    registering = asyncio.ensure_future(register(client))

    def take_and_cancel(message: Any, fds: list[int]) -> None:
        take(message, fds)
        if type(message).__name__ == "Accepted":
            registering.cancel()

    client._connection._take = take_and_cancel  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await registering
    async with asyncio.timeout(10):
        async for event in stream:
            if isinstance(event, aiobgw.Retired):
                break
    assert not supervisor.handles()


async def test_a_register_cancelled_together_with_its_client_leaves_no_worker_behind(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    """What a timeout around the whole block does."""
    stream = supervisor.events()
    with pytest.raises(asyncio.CancelledError):
        async with aiobgw.attach(place) as client:
            registering = asyncio.ensure_future(register(client))
            await asyncio.sleep(0)
            registering.cancel()
            await registering
    async with asyncio.timeout(10):
        async for event in stream:
            if isinstance(event, aiobgw.Retired):
                break
    assert not supervisor.handles()


async def test_closing_a_client_leaves_its_workers_running(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    async with aiobgw.attach(place) as client:
        handle = await started(client)
        waiting = asyncio.ensure_future(ended(handle))
        await asyncio.sleep(0)
    with pytest.raises(aiobgw.NotAttached, match="closed"):
        await waiting
    [left] = supervisor.handles()
    assert left.name == "worker"
    async with aiobgw.attach(place) as client:  # who comes later finds it running
        again = client.get("worker")
        assert again is not None
        assert again.status().state is WorkerState.RUNNING


async def test_a_client_whose_peer_ends_with_its_requests_unread_still_hears_the_end(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """The kernel says ECONNRESET first then, before what was sent and not yet read."""
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        stream = client.events()
        await started(client)
        publish = supervisor._core.news.publish

        def and_ask(event: Any) -> None:
            publish(event)
            if isinstance(event, aiobgw.Closed):
                client._connection._send(b"\x91\xa8unfollow")

        supervisor._core.news.publish = and_ask  # type: ignore[method-assign]
        await supervisor.shutdown()
        kinds = [type(event).__name__ async for event in stream]
        assert kinds[-3:] == ["Exited", "Retired", "Closed"]


async def test_what_was_asked_right_before_a_client_goes_is_carried_out(
    supervisor: aiobgw.Supervisor, place: str
) -> None:
    """It goes with events unread, and the kernel tells the supervisor of that first."""
    ours = await started(supervisor)
    async with aiobgw.attach(place) as client:
        handle = client.get("worker")
        assert handle is not None
        stream = client.events()
        await started(client, name="other")
        supervisor._core.news.publish(aiobgw.PhaseChanged(time.time(), aiobgw.Phase.RUNNING))
        handle.terminate()
    assert stream is not None
    async with asyncio.timeout(10):
        assert (await ended(ours)).kind is ExitKind.TERMINATED


async def test_a_smart_stop_refuses_new_workers_and_leaves_the_others_to_their_clients(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        handle = await started(client)
        stopping = asyncio.ensure_future(supervisor.shutdown(ShutdownMode.SMART))
        await asyncio.sleep(0)
        with pytest.raises(aiobgw.ShuttingDown, match="stopping"):
            async with asyncio.timeout(1):
                await register(client)
        async with aiobgw.attach(place) as other:
            assert other.status().stopping is ShutdownMode.SMART
            assert [one.name for one in other.handles()] == ["worker"]
        assert len(supervisor.handles()) == 1
        handle.terminate()
        assert (await ended(handle)).ok
        await stopping


async def test_a_full_supervisor_refuses_with_its_limit_and_uses_nothing_up(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=2)
    async with aiobgw.attach(place) as client:
        first = await started(client)
        await started(client)
        for _ in range(3):
            with pytest.raises(aiobgw.NoFreeSlot) as caught:
                async with asyncio.timeout(1):
                    await register(client, flags=Flags.CLASS_PARALLEL)
            assert caught.value.limit == 2
            assert any("max_workers" in note for note in caught.value.__notes__)
        assert supervisor.status().parallel_workers == 0
        first.terminate()
        await first
        await started(client)


async def test_too_many_parallel_workers_are_refused_and_use_no_slot(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=2, max_parallel_workers=1)
    async with aiobgw.attach(place) as client:
        first = await started(client, flags=Flags.CLASS_PARALLEL)
        for _ in range(3):
            with pytest.raises(aiobgw.TooManyParallelWorkers) as caught:
                async with asyncio.timeout(1):
                    await register(client, flags=Flags.CLASS_PARALLEL)
            assert caught.value.limit == 1
            assert any("max_parallel_workers" in note for note in caught.value.__notes__)
        assert supervisor.status().parallel_workers == 1
        await started(client)
        first.terminate()
        await first
        await started(client, flags=Flags.CLASS_PARALLEL)
        assert supervisor.status().parallel_workers == 1


async def test_a_unique_name_is_registered_once_from_wherever(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    first = await started(supervisor, name="only", unique=True)
    with pytest.raises(aiobgw.AlreadyRegistered, match="'only'") as caught:
        await register(client, name="only", unique=True)
    assert any("get()" in note for note in caught.value.__notes__)
    assert client.handles() == [first]
    first.terminate()
    await first
    await started(client, name="only", unique=True)


async def test_a_spec_that_the_supervisor_finds_invalid_is_refused_and_uses_nothing_up(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """Made invalid after its birth: what a client of another version might send."""
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1, max_parallel_workers=1)
    parallel = Flags.CLASS_PARALLEL
    async with aiobgw.attach(place) as client:
        for field, value, complaint in (
            ("name", "", "name must be 1 to 95 bytes"),
            ("flags", parallel, "CLASS_PARALLEL"),
            ("flags", 0x4000, "made of aiobgw.Flags"),
            ("restart_delay", -1.0, "restart_delay"),
            ("stop_timeout", 1e9, "stop_timeout"),
            ("target", "no target", "package.module:function"),
            ("extra", b"x" * 129, "extra"),
            ("loop", "trio", "loop"),
            ("main", "zip:x", "main"),
            ("flags", Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION, "connector"),
        ):
            spec = WorkerSpec(name="worker", target="tests.targets:sleep")
            object.__setattr__(spec, field, value)
            with pytest.raises(aiobgw.InvalidSpec, match=complaint):
                async with asyncio.timeout(1):
                    await client.register(spec)
        assert not supervisor.handles()
        await started(client, flags=parallel)


async def test_a_latch_that_is_none_is_refused(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    """An eventfd is all that a worker gets from a stranger; a pipe could block it."""
    reader, writer = os.pipe()
    try:
        spec = WorkerSpec(name="worker", target="tests.targets:sleep")
        object.__setattr__(spec, "latches", {"go": SimpleNamespace(fileno=lambda: reader)})
        with pytest.raises(aiobgw.InvalidSpec, match="eventfd"):
            await client.register(spec)
    finally:
        os.close(reader)
        os.close(writer)
    assert not supervisor.handles()


# Forks and deaths.


async def test_a_fork_may_use_neither_the_client_nor_its_handles(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client
) -> None:
    handle = await started(client)
    spec = WorkerSpec(name="other", target=targets.sleep)
    calls = [
        client.status,
        client.handles,
        client.events,
        lambda: client.get("worker"),
        lambda: client.get(handle.token),
        lambda: client.epoch,
        lambda: first_step(client.register(spec)),
        handle.status,
        handle.terminate,
        handle.kill,
        handle.restart,
        handle.wake,
        lambda: handle.signal(signal.SIGKILL),
        lambda: first_step(handle.wait_for_startup()),
        lambda: first_step(handle.wait_for_ready()),
        lambda: first_step(handle.wait_for_exit()),
        lambda: first_step(handle.wait_for_shutdown()),
    ]
    assert in_a_fork(*calls) == ["WrongProcess"] * len(calls)
    assert handle.status().state is WorkerState.RUNNING
    assert client.handles() == [handle]


async def test_a_fork_of_a_client_hides_nothing_from_it(place: str) -> None:
    """A child that lives on holds no copy of the channel."""
    with Host(place, worker="tests.targets:sleep") as host:
        async with aiobgw.attach(place) as client:
            handle = client.get("worker")
            assert handle is not None
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            os.close(reader)
            host.kill()
            async with asyncio.timeout(1):
                with pytest.raises(aiobgw.SupervisorDied):
                    await handle
            os.close(writer)
            procs.wait_dead({pid})
            procs.reap({pid})


async def test_every_wait_sees_the_supervisors_death_within_a_second(place: str) -> None:
    with Host(place, worker="tests.targets:sleep", other="tests.targets:ignore_term") as host:
        async with aiobgw.attach(place) as client:
            worker, other = client.get("worker"), client.get("other")
            assert worker is not None
            assert other is not None
            waits = [
                asyncio.ensure_future(wait())
                for wait in (worker.wait_for_exit, worker.wait_for_shutdown, other.wait_for_exit)
            ]
            await asyncio.sleep(0)
            began = time.monotonic()
            host.kill()
            for wait in waits:
                with pytest.raises(aiobgw.SupervisorDied):
                    await wait
            with pytest.raises(aiobgw.SupervisorDied):
                async with worker.guard():
                    await asyncio.sleep(3600)
            for ask in (client.status, client.handles, worker.status, lambda: client.get("worker")):
                with pytest.raises(aiobgw.SupervisorDied):
                    ask()
            with pytest.raises(aiobgw.SupervisorDied):
                await register(client)
            assert time.monotonic() - began < 1
            worker.terminate()  # it is over; nothing to say, as for a worker that is over


async def test_a_register_on_its_way_sees_the_supervisors_death(place: str) -> None:
    with Host(place) as host:
        async with aiobgw.attach(place) as client:
            procs.stop(host.process.pid)
            registering = asyncio.ensure_future(register(client))
            await asyncio.sleep(0)
            assert not registering.done()
            began = time.monotonic()
            host.kill()
            with pytest.raises(aiobgw.SupervisorDied):
                await registering
            assert time.monotonic() - began < 1


async def test_a_supervisor_that_dies_over_a_request_has_not_carried_it_out(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOBGW_INJECT", "before_answer:die")
    with Host(place) as host:
        async with aiobgw.attach(place) as client:
            with pytest.raises(aiobgw.SupervisorDied):
                await register(client)
        assert host.process.wait() == 77


async def test_a_supervisor_that_cannot_answer_says_so_and_uses_nothing_up(
    supervisor: aiobgw.Supervisor, client: aiobgw.Client, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.touch()
    _inject.arm(f"before_answer:fail=12@{once}")
    try:
        with pytest.raises(aiobgw.AiobgwError, match="Cannot allocate memory"):
            await register(client)
        assert not supervisor.handles()
        await started(client)
    finally:
        _inject.arm("")


async def test_what_has_not_been_asked_for_yet_sees_the_death_at_once(place: str) -> None:
    """No turn of the client's loop is between the death and the question."""
    with Host(place, worker="tests.targets:sleep") as host:
        async with aiobgw.attach(place) as client:
            handle = client.get("worker")
            assert handle is not None
            host.kill()
            host.process.wait()
            with pytest.raises(aiobgw.SupervisorDied):
                client.status()
            with pytest.raises(aiobgw.SupervisorDied):
                handle.status()


async def test_a_supervisor_that_stops_tells_its_clients_how_all_workers_ended(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        handles = [await started(client, name=f"w{number}") for number in range(20)]
        waits = [asyncio.ensure_future(ended(handle)) for handle in handles]
        await supervisor.shutdown()
        exits = await asyncio.gather(*waits)
        assert {exit.kind for exit in exits} == {ExitKind.TERMINATED}
        assert [exit.name for exit in exits] == [f"w{number}" for number in range(20)]
        with pytest.raises(aiobgw.SupervisorDied):
            await register(client)
