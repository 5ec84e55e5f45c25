"""Peers that mean harm: whatever they say or do not read, nobody else notices.

The seed of what is sent is printed; AIOBGW_TEST_SEED sends the same again.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import gc
import mmap
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import Flags, Restart, WorkerSpec, WorkerState
from aiobgw._ipc import requests
from aiobgw._ipc.board import BoardReader
from aiobgw._ipc.channel import MESSAGE_BYTES
from aiobgw._ipc.record import payload_memfd
from aiobgw._ipc.verbs import Rights, Verb
from aiobgw._supervisor import peers as module

from .. import procs, targets
from ..client_targets import until
from ..conftest import MakeSupervisor
from ..hostile import (
    FLOODER,
    SEED,
    STRANGE,
    Fuzz,
    Raw,
    check_slots,
    nothing_escapes,
    peers_of,
    register,
    spare_fds,
    subscriptions,
    unlimited,
)

pytestmark = pytest.mark.anyio

MESSAGES = 10_000
PROMPT = 0.1
"""Seconds within which an honest request is answered."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that no supervisor knows."""
    process = subprocess.Popen(["sleep", "3600"])
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def spec(name: str = "w", **fields: Any) -> WorkerSpec:
    fields.setdefault("target", targets.nothing)
    fields.setdefault("restart", Restart.NEVER)
    return WorkerSpec(name=name, **fields)


class Honest:
    """A client that asks for what clients ask for, and takes the time."""

    def __init__(self, client: aiobgw.Client) -> None:
        self.client = client
        self.times: list[float] = []
        self.exits = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self) -> None:
        """Register a worker that ends with a code of its own, and look at the status."""
        code = 3 + self.exits % 100
        began = time.monotonic()
        handle = await self.client.register(spec("honest", target=targets.exit_with, args=(code,)))
        self.client.status()
        self.times.append(time.monotonic() - began)
        async with asyncio.timeout(30):
            exit = await handle
        assert exit is not None
        assert exit.code == code
        self.exits += 1

    async def go_on(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await self.ask()

    def figures(self) -> str:
        return (
            f"{len(self.times)} honest requests: median {statistics.median(self.times) * 1e3:.1f}"
            f" ms, worst {max(self.times) * 1e3:.1f} ms"
        )


async def attack(place: Path, fuzz: Fuzz, messages: int, *, hello: bool) -> int:
    """Send so many messages, on a new connection whenever the last one was ended."""
    sent = connections = 0
    raw: Raw | None = None
    fds = spare_fds()
    try:
        while sent < messages:
            try:
                if raw is None:
                    connections += 1
                    raw = Raw(place, hello=hello)
                for _ in range(8):
                    data, count = fuzz.message()
                    raw.send(data, [fds[at % len(fds)] for at in range(count)])
                    sent += 1
                raw.drain()
            except BlockingIOError:
                if raw is not None:
                    try:
                        raw.drain()
                    except ConnectionError:
                        raw.close()
                        raw = None
            except ConnectionError:
                if raw is not None:
                    raw.close()
                raw = None
            await asyncio.sleep(0)
        if raw is not None:
            raw.close()
            raw = None
    finally:
        if raw is not None:
            raw.close()
        for fd in fds:
            os.close(fd)
    return connections


@pytest.mark.parametrize("hello", [True, False], ids=["attached", "connected"])
async def test_ten_thousand_hostile_messages_disturb_nobody(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    bystander: subprocess.Popen[bytes],
    hello: bool,
) -> None:
    unlimited(monkeypatch)
    supervisor = await make_supervisor(runtime_dir=place)
    resident = await supervisor.register(spec("resident", target=targets.sleep))
    await resident.wait_for_startup()
    async with aiobgw.attach(place) as client:
        honest = Honest(client)
        await honest.ask()
        honest.times.clear()
        before = procs.open_fds()
        with nothing_escapes(supervisor, monkeypatch) as seen:
            workers = supervisor._core.registry.all
            fuzz = Fuzz(SEED, lambda: [(w.slot, w.generation) for w in workers()])
            attacking = asyncio.ensure_future(attack(place, fuzz, MESSAGES, hello=hello))
            await honest.go_on(attacking.done)
            connections = await attacking
            await honest.ask()
            await until(lambda: len(peers_of(supervisor)) == 1)
        print(f"{connections} connections; {honest.figures()}; {dict(fuzz.sent)}")
        assert max(honest.times) < PROMPT
        assert len(fuzz.sent) == len(fuzz._kinds)
        assert seen.signals  # what is looked at is what signals are sent with
        assert resident.status().state is WorkerState.RUNNING
        assert [handle.name for handle in client.handles()] == ["resident"]
        check_slots(supervisor, held=1)
        await until(lambda: procs.open_fds() == before)
        assert not [peer for peer in subscriptions(supervisor) if not peer._open]


async def test_a_worker_that_sends_garbage_to_its_supervisor_ends_as_it_says(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unlimited(monkeypatch)
    supervisor = await make_supervisor(preload=("tests.hostile",))
    assert not peers_of(supervisor)
    before = procs.open_fds()
    path = tmp_path / "sent"
    print(f"AIOBGW_TEST_SEED={SEED}")
    with nothing_escapes(supervisor, monkeypatch):
        handles = [
            await supervisor.register(
                spec(
                    target="tests.hostile:send_garbage",
                    args=(str(path), SEED + code, code),
                    flags=Flags.SHMEM_ACCESS,
                )
            )
            for code in (11, 12)
        ]
        for handle, code in zip(handles, (11, 12), strict=True):
            status = await handle.wait_for_startup()
            assert status.incarnation == 1
            exit = await handle
            assert exit is not None
            assert (exit.code, exit.error) == (code, None)
        await until(lambda: not peers_of(supervisor))
    assert [int(line) for line in path.read_text().split()] == [2_000, 2_000]
    check_slots(supervisor)
    await until(lambda: procs.open_fds() == before)


# One kind of harm each.


async def test_text_that_is_none_is_answered_as_every_other_garbage(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        raw.send(b"\x93\xa5hello\x01\xa1\xff")
        (answer,) = await raw.answers(lambda message: isinstance(message, requests.Refused))
        assert isinstance(answer, requests.Refused)
        assert (answer.number, answer.kind) == (0, "ProtocolMismatch")


@pytest.mark.parametrize("field", ["name", "target", "type", "loop", "main", "restart"])
@pytest.mark.parametrize("text", ["x", "\0", "é"], ids=ascii)
async def test_a_refusal_that_quotes_a_long_text_is_answered_in_one_message(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    field: str,
    text: str,
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    long = text * ((MESSAGE_BYTES - 300) // len(text.encode()))
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        raw.send(register(spec(), 7, **{field: long}))
        answers = await raw.answers(lambda message: isinstance(message, requests.Refused))
        answer = answers[-1]
        assert isinstance(answer, requests.Refused)
        assert (answer.number, answer.kind) == (7, "InvalidSpec")
    check_slots(supervisor)


async def test_a_spec_that_fills_a_message_is_carried_out_or_refused(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path
) -> None:
    """An order to a worker has fields of its own beside those of the request."""
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        base = len(register(spec(), 1, main="path:"))
        for short in range(0, 400, 4):
            main = "path:" + "x" * (MESSAGE_BYTES - base - 2 - short)
            raw.send(register(spec(), 1, main=main))
            await raw.answers(
                lambda message: isinstance(message, (requests.Accepted, requests.Refused))
            )
            await until(lambda: len(supervisor.status().workers) == 0)
    check_slots(supervisor)


async def test_two_latches_of_one_name_are_refused_or_each_worker_gets_what_it_is_told(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    path = tmp_path / "fds"
    fds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
    try:
        with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
            raw.send(register(spec(target="tests.targets:nothing"), 3, latches=("a", "a")), fds)
            answers = await raw.answers(
                lambda message: isinstance(message, (requests.Accepted, requests.Refused))
            )
            assert isinstance(answers[-1], requests.Refused)
            assert answers[-1].kind == "InvalidSpec"
    finally:
        for fd in fds:
            os.close(fd)
    assert not path.exists()
    check_slots(supervisor)


async def test_an_empty_message_brings_no_descriptors_that_stay(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """It looks like the end of the connection."""
    supervisor = await make_supervisor(runtime_dir=place)
    before = procs.open_fds()
    fds = spare_fds()
    try:
        with nothing_escapes(supervisor, monkeypatch):
            for _ in range(5):
                with Raw(place) as raw:
                    await raw.welcome()
                    raw.send(b"", fds)
                    await raw.gone()
    finally:
        for fd in fds:
            os.close(fd)
    left = {fd: what for fd, what in procs.open_fds().items() if before.get(fd) != what}
    for fd in left:
        os.close(fd)
    assert not left


@pytest.mark.parametrize("count", [1, 17, 18, 250])
async def test_descriptors_that_nobody_asked_for_are_closed(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path, count: int
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        reader, writer = os.pipe()
        before = procs.open_fds()
        for message in (requests.pack(requests.Follow()), b"\xc1", register(spec(), 4)):
            raw.send(message, [writer] * count)
            await raw.answers(lambda message: isinstance(message, requests.Refused))
        os.close(writer)
        assert os.read(reader, 1) == b""  # the last copy is closed, here and everywhere
        os.close(reader)
        del before[reader], before[writer]
        assert procs.open_fds() == before
    check_slots(supervisor)


@pytest.mark.parametrize("count", [1, 20])
async def test_a_descriptor_whose_close_takes_long_holds_up_nobody(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path, count: int
) -> None:
    """A TCP socket that lingers: who closes its last descriptor waits until all is sent."""
    await make_supervisor(runtime_dir=place)
    with socket.create_server(("127.0.0.1", 0)) as server, Raw(place) as raw:
        await raw.welcome()
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        sender.setblocking(False)
        try:
            while True:
                sender.send(b"x" * 65_536)
        except BlockingIOError:
            pass
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
        raw.send(requests.pack(requests.Follow()), [sender.fileno()] * count)
        os.close(sender.detach())  # on its way: not the last one
        began = time.monotonic()
        await raw.answers(lambda message: isinstance(message, requests.Refused))
        took = time.monotonic() - began
        receiver.close()
    assert took < 1


async def test_watching_workers_that_never_were_fills_no_memory(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    unlimited(monkeypatch)
    supervisor = await make_supervisor(runtime_dir=place, max_workers=8)
    before = set(peers_of(supervisor))
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor) - before
        sent, quiet = 0, 0
        while sent < 20_000 and quiet < 200:
            try:
                for _ in range(16):
                    raw.send(requests.pack(requests.Watch(sent % 8, STRANGE + sent)))
                    sent += 1
                quiet = 0
            except BlockingIOError:
                quiet += 1  # it is not read from any more, as it should be
            await asyncio.sleep(0)
        assert len(peer.outbox.changed) < 5_000
        raw.drain()  # once it reads it is heard again
        raw.send(register(spec(), 8))
        await raw.answers(lambda message: isinstance(message, requests.Accepted))


async def test_garbage_piece_by_piece_is_held_back_as_all_at_once(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """Who sends the next message only when the last one was answered sends garbage, too."""
    monkeypatch.setattr(module, "PER_SECOND", 200)
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor)
        for _ in range(2 * module.BURST // module.GARBAGE_COSTS):
            raw.send(b"\xc1")
            waited = time.monotonic()
            while not raw.drain() and not peer._held_back:
                assert time.monotonic() < waited + 5
                await asyncio.sleep(0)
            if peer._held_back:
                return
    pytest.fail("twice as much as a burst allows, and never held back")


async def test_what_all_ask_together_is_limited_too(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """Each of many peers stays below the limit of one."""
    monkeypatch.setattr(module, "ALL_BURST", 200)
    monkeypatch.setattr(module, "ALL_PER_SECOND", 100)
    supervisor = await make_supervisor(runtime_dir=place)
    raws = [Raw(place) for _ in range(4)]
    try:
        with nothing_escapes(supervisor, monkeypatch):
            for raw in raws:
                await raw.welcome()
            for raw in raws:
                for _ in range(80):
                    raw.send(requests.pack(requests.Unwatch(0, STRANGE)))
            await until(lambda: any(peer._held_back for peer in peers_of(supervisor)))
            for raw in raws:
                raw.send(register(spec(), 5))
            for raw in raws:
                await raw.answers(lambda message: isinstance(message, requests.Accepted))
    finally:
        for raw in raws:
            raw.close()


async def test_who_floods_is_held_back_and_heard_again(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor)
        sent = 0
        while not peer._held_back:
            assert sent < 10_000
            try:
                for _ in range(16):
                    raw.send(b"\xc1")
                    sent += 1
            except BlockingIOError:
                pass
            raw.drain()
            await asyncio.sleep(0)
        assert sent >= module.BURST / module.GARBAGE_COSTS
        held_at = time.monotonic()
        for _ in range(200):
            try:
                raw.send(register(spec(), 5))
                break
            except BlockingIOError:
                raw.drain()
                await asyncio.sleep(0.05)
        else:
            pytest.fail("never read from again")
        answers = await raw.answers(lambda message: isinstance(message, requests.Accepted))
        print(f"held back after {sent}; heard again after {time.monotonic() - held_at:.2f} s")
        assert answers
        await until(lambda: not peer._held_back)


@pytest.mark.parametrize("what", ["garbage", "requests", "watches"])
@pytest.mark.parametrize("flooders", [1, 4])
async def test_a_flood_does_not_slow_honest_clients_down(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    what: str,
    flooders: int,
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    processes = [procs.start_script(FLOODER, str(place), what) for _ in range(flooders)]
    try:
        with nothing_escapes(supervisor, monkeypatch):
            async with aiobgw.attach(place) as client:
                loop = asyncio.get_running_loop()
                for process in processes:
                    assert process.stdout is not None
                    line = await loop.run_in_executor(None, process.stdout.readline)
                    assert line == "up\n"
                for attempt in range(5):  # another load of the machine may be the slow one
                    honest = Honest(client)
                    end = time.monotonic() + 0.7
                    await honest.go_on(lambda end=end: time.monotonic() > end)  # type: ignore[misc]
                    print(f"{flooders} x {what}, attempt {attempt}: {honest.figures()}")
                    if max(honest.times) < PROMPT:
                        break
                else:
                    pytest.fail(f"never within {PROMPT} s: {honest.figures()}")
                assert len(peers_of(supervisor)) == 1 + flooders  # none was let go for it
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    await until(lambda: not peers_of(supervisor))


async def test_a_peer_that_reads_nothing_is_not_read_from_and_costs_a_bounded_memory(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    unlimited(monkeypatch)
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor)
        raw.send(requests.pack(requests.Follow()))
        raw.send(b"\xc1")
        await raw.answers(lambda message: isinstance(message, requests.Refused))
        gc.collect()
        tracemalloc.start()
        at_first = tracemalloc.get_traced_memory()[0]
        sent, quiet = 0, 0
        while quiet < 200:  # until it is not read from any more
            assert sent < 100_000
            try:
                raw.send(b"\xc1" * 100)
                sent, quiet = sent + 1, 0
            except BlockingIOError:
                quiet += 1
            await asyncio.sleep(0)
        assert 0 < len(peer.outbox.answers) <= 2 * module.MESSAGES_PER_TURN
        for _ in range(40):  # events that it misses
            handle = await supervisor.register(spec())
            exit = await handle
            assert exit is not None
        del handle, exit
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - at_first
        tracemalloc.stop()
        print(f"{sent} messages, {peer.outbox.lost} events lost, {grown} bytes more")
        assert peer.outbox.lost >= 40
        assert len(peer.outbox.answers) <= 2 * module.MESSAGES_PER_TURN
        assert not peer.outbox.changed
        assert grown < 500_000


async def test_a_peer_that_did_not_read_is_told_how_many_events_it_missed(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    witness = supervisor.events()
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor)
        raw.send(requests.pack(requests.Follow()))
        await until(lambda: peer._follows)
        while peer.outbox.lost < 50:
            exit = await (await supervisor.register(spec("w" * 95)))
            assert exit is not None
            exit.check()

        heard: list[Any] = []

        def take() -> bool:
            for message in raw.drain():
                assert isinstance(message, requests.Happened)
                heard.append(requests.event_of(message))
            return not peer.outbox.blocked

        await until(take)
        last = await supervisor.register(spec("last"))
        await last
        await until(lambda: take() and heard[-1].status.name == "last" and _is_retired(heard[-1]))
        lost = [event for event in heard if isinstance(event, aiobgw.EventsLost)]
        assert sum(event.count for event in lost) >= 50

        published = 0
        async for event in witness:
            if isinstance(event, aiobgw.EventsLost):
                published += event.count
            else:
                published += 1
                if _is_retired(event) and event.status.name == "last":  # type: ignore[attr-defined]
                    break
        assert len(heard) - len(lost) + sum(event.count for event in lost) == published


def _is_retired(event: object) -> bool:
    return isinstance(event, aiobgw.Retired)


async def test_the_changes_a_peer_does_not_read_are_one_for_each_worker(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    handles = [
        await supervisor.register(spec(f"w{number}", target=targets.sleep)) for number in range(3)
    ]
    for handle in handles:
        await handle.wait_for_startup()
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        (peer,) = peers_of(supervisor)
        for handle in handles:
            raw.send(requests.pack(requests.Watch(handle.slot, handle.generation)))
        await raw.answers(lambda message: isinstance(message, requests.Changed))
        assert len(subscriptions(supervisor)) == 3
        while not peer.outbox.changed:  # change them until what it does not read is full
            for worker in list(peer._watching):
                for _ in range(200):
                    worker.changes.tell()
                    peer.outbox.flush()
        for _ in range(100):
            for worker in list(peer._watching):
                worker.changes.tell()
        assert len(peer.outbox.changed) == 3
        for handle in handles:
            handle.kill()
            await handle
        assert len(peer.outbox.changed) == 3
        assert not peer._watching
        told: dict[tuple[int, int], bytes | None] = {}

        def take() -> bool:
            for message in raw.drain():
                assert isinstance(message, requests.Changed)
                told.update({(slot, gen): body for slot, gen, body in message.workers})
            return len(told) == 3 and all(told.values())

        await until(take)
        assert not peer.outbox.changed


async def test_who_may_only_look_changes_nothing_with_the_right_slot_and_generation(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr("aiobgw._supervisor.access.Access.rights", lambda self, who: Rights.VIEW)
    supervisor = await make_supervisor(runtime_dir=place)
    handle = await supervisor.register(spec(target=targets.sleep))
    status = await handle.wait_for_startup()
    with nothing_escapes(supervisor, monkeypatch) as seen, Raw(place) as raw:
        await raw.welcome()
        for verb in Verb:
            for argument in (0, signal.SIGKILL, signal.SIGTERM, 64):
                raw.send(
                    requests.pack(requests.Ask(verb, handle.slot, handle.generation, argument))
                )
        raw.send(register(spec(), 6))
        answers = await raw.answers(lambda message: isinstance(message, requests.Refused))
        assert [message.kind for message in answers if isinstance(message, requests.Refused)] == [
            "AccessDenied"
        ]
        assert not seen.signals
    assert handle.status() == status
    check_slots(supervisor, held=1)


async def test_a_request_for_the_slots_last_tenant_does_nothing_to_the_next_one(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1)
    first = await supervisor.register(spec())
    await first
    second = await supervisor.register(spec(target=targets.sleep))
    status = await second.wait_for_startup()
    assert (second.slot, second.generation) == (first.slot, first.generation + 1)
    with nothing_escapes(supervisor, monkeypatch) as seen, Raw(place) as raw:
        for generation in (first.generation, second.generation + 1, 0, STRANGE):
            for verb in Verb:
                raw.send(requests.pack(requests.Ask(verb, second.slot, generation, 9)))
            raw.send(requests.pack(requests.Unwatch(second.slot, generation)))
        raw.send(register(spec(), 6))
        await raw.answers(lambda message: isinstance(message, requests.Refused))
        assert not seen.signals
    assert second.status() == status


async def test_a_client_that_is_gone_before_its_answer_leaves_no_subscription(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch):
        with Raw(place) as raw:
            await raw.welcome()
            raw.send(register(spec(target=targets.sleep), 1))
        await until(lambda: len(supervisor.status().workers) == 1)
        await until(lambda: not peers_of(supervisor))
        assert not subscriptions(supervisor)


@pytest.mark.parametrize("half", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
async def test_half_a_connection_is_let_go_and_spins_nobody(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path, half: int
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        try:
            for _ in range(100):
                raw.send(b"\xc1")
        except BlockingIOError:
            pass
        raw.socket.shutdown(half)
        await until(lambda: not peers_of(supervisor))


async def test_a_peer_that_is_held_back_when_it_dies_is_let_go(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr(module, "BURST", 400)
    monkeypatch.setattr(module, "PER_SECOND", 1)  # it would have to wait for minutes
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch):
        with Raw(place) as raw:
            await raw.welcome()
            (peer,) = peers_of(supervisor)
            for _ in range(30):
                raw.send(b"\xc1")
            await until(lambda: peer._held_back)
        await until(lambda: not peers_of(supervisor), bound=5)


# Arguments in memory of strangers.


def unsealed() -> int:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * 100)
    return fd


def half_sealed() -> int:
    fd = unsealed()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def too_large() -> int:
    return payload_memfd(b"x" * 100_001)


def a_file() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (unsealed, "InvalidSpec"),
        (half_sealed, "InvalidSpec"),
        (a_file, "InvalidSpec"),
        (too_large, "PayloadTooLarge"),
    ],
)
async def test_arguments_that_could_still_be_changed_are_refused(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    make: Callable[[], int],
    kind: str,
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_payload=100_000)
    with nothing_escapes(supervisor, monkeypatch), Raw(place) as raw:
        await raw.welcome()
        before = procs.open_fds()
        fd = make()
        raw.send(register(spec(), 2, payload=None), [fd])
        os.close(fd)
        (answer,) = await raw.answers(lambda message: isinstance(message, requests.Refused))
        assert isinstance(answer, requests.Refused)
        assert (answer.number, answer.kind) == (2, kind)
        await until(lambda: procs.open_fds() == before)  # a thread closes what may linger
    check_slots(supervisor)


async def test_arguments_that_are_no_pickle_hurt_only_their_worker(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    with nothing_escapes(supervisor, monkeypatch):
        events = supervisor.events()
        with Raw(place) as raw:
            raw.send(register(spec("bad"), 2, payload=b"\x80\x05garbage"))
            await raw.answers(lambda message: isinstance(message, requests.Accepted))
        async for event in events:
            if isinstance(event, aiobgw.Exited):
                assert event.status.exit is not None
                assert event.status.exit.kind is aiobgw.ExitKind.FAILED
                break
        await until(lambda: not supervisor.status().workers)
        await (await supervisor.register(spec()))
    check_slots(supervisor)


# The board.


async def board_of(place: Path) -> int:
    """Return a descriptor of the board, as every client is given it; to be closed."""
    with Raw(place) as raw:
        got: list[tuple[bytes, list[int]]] = []

        def has_come() -> bool:
            message = raw.receive()
            got.extend([message] if message else [])
            return bool(got)

        await until(has_come)
        board, pidfd = got[0][1]
        os.close(pidfd)
        return board


async def test_the_board_cannot_be_written_resized_or_unsealed_by_who_has_it(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    handle = await supervisor.register(spec(target=targets.sleep))
    await handle.wait_for_startup()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    with nothing_escapes(supervisor, monkeypatch):
        given = await board_of(place)
        again = os.open(f"/proc/self/fd/{given}", os.O_RDWR | os.O_CLOEXEC)
        reader = BoardReader(given)
        record = reader.read(handle.slot)
        assert record
        try:
            for fd in (given, again):
                size = os.fstat(fd).st_size
                with pytest.raises(PermissionError):
                    mmap.mmap(fd, size)
                with pytest.raises(PermissionError):
                    mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_WRITE)
                for offset in (0, 64, size - 1, size):
                    with pytest.raises(PermissionError):
                        os.pwrite(fd, b"x", offset)
                for length in (0, size - 1, size + 1):
                    with pytest.raises(PermissionError):
                        os.ftruncate(fd, length)
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                for seal in (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL, 0):
                    with pytest.raises(PermissionError):
                        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals
                punch = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
                assert libc.fallocate(fd, punch, 0, size) == -1
                with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
                    with pytest.raises(TypeError):
                        shared[0] = 0
                    with pytest.raises(OSError):
                        shared.madvise(mmap.MADV_REMOVE)
                    address = _address(libc, fd, size)
                    assert libc.mprotect(address, ctypes.c_size_t(size), 0x1 | 0x2) == -1
                    libc.munmap(address, ctypes.c_size_t(size))
            assert reader.read(handle.slot) == record
        finally:
            reader.close()
            os.close(again)
            os.close(given)


def _address(libc: ctypes.CDLL, fd: int, size: int) -> ctypes.c_void_p:
    """Map for reading, at an address that is known."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return ctypes.c_void_p(address)


async def test_a_handful_of_connections_that_say_nothing_keep_nobody_out_for_long(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr(module, "HELLO_TIMEOUT", 0.3)
    supervisor = await make_supervisor(runtime_dir=place, max_clients=4)
    silent = [Raw(place, hello=False) for _ in range(4)]
    try:
        await until(lambda: len(peers_of(supervisor)) == 4)
        with nothing_escapes(supervisor, monkeypatch):
            with pytest.raises(aiobgw.AccessDenied, match="4 places"):
                async with aiobgw.attach(place):
                    pass
            await until(lambda: not peers_of(supervisor), bound=5)
            async with aiobgw.attach(place) as client:
                await (await client.register(spec()))
    finally:
        for raw in silent:
            raw.close()


async def test_a_supervisor_with_hostile_peers_shuts_down_as_fast_as_without(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    """Neither who reads nothing nor who is held back is waited for."""
    supervisor = await make_supervisor(runtime_dir=place)
    raws = [Raw(place) for _ in range(3)]
    try:
        for raw in raws:
            await raw.welcome()
            try:
                while True:
                    raw.send(b"\xc1")
            except BlockingIOError:
                await asyncio.sleep(0)
        await until(
            lambda: any(peer.outbox.answers or peer._held_back for peer in peers_of(supervisor))
        )
        with nothing_escapes(supervisor, monkeypatch):
            began = time.monotonic()
            await supervisor.shutdown()
            assert time.monotonic() - began < 5
        for raw in raws:
            poll = select.poll()
            poll.register(raw.socket, 0)
            assert poll.poll(0)[0][1] & select.POLLHUP
    finally:
        for raw in raws:
            raw.close()
