"""Hostile peers: raw sockets that say what no client of ours says, and what is seen of it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import aiobgw
from aiobgw import WorkerSpec
from aiobgw._ipc import requests
from aiobgw._ipc.channel import MESSAGE_BYTES
from aiobgw._ipc.record import spec_fields
from aiobgw._supervisor.peers import Peer, Peers

from .client_targets import until

if TYPE_CHECKING:
    import pytest

STRANGE = 2**62  # a generation that nobody has

SEED = int(os.environ.get("AIOBGW_TEST_SEED") or random.SystemRandom().randrange(2**32))


def peers_of(supervisor: aiobgw.Supervisor) -> set[Peer]:
    """Return the peers that a supervisor has now."""
    peers = supervisor._core.outside._peers
    assert isinstance(peers, Peers)
    return peers._peers


def subscriptions(supervisor: aiobgw.Supervisor) -> list[Peer]:
    """Return whose callbacks the workers of a supervisor hold."""
    return [
        callback.func.__self__
        for worker in supervisor._core.registry.all()
        for callback in worker.changes._callbacks
        if isinstance(getattr(callback.func, "__self__", None), Peer)  # type: ignore[attr-defined]
    ]


def check_slots(supervisor: aiobgw.Supervisor, held: int = 0) -> None:
    """Every slot has one tenant or is free, and so many are held."""
    registry = supervisor._core.registry
    assert len(registry) == held
    slots = [*registry._free, *(worker.slot for worker in registry.all())]
    assert sorted(slots) == list(range(registry.max_workers))


def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have supervisors read everything, however much it is."""
    for name in ("BURST", "PER_SECOND", "ALL_BURST", "ALL_PER_SECOND"):
        monkeypatch.setattr(f"aiobgw._supervisor.peers.{name}", 1e9)


def register(spec: WorkerSpec, number: int = 1, **fields: Any) -> bytes:
    """Return a registration as a client sends it, with some fields of the spec exchanged."""
    values = {**spec_fields(spec, b""), **fields}
    payload = values.pop("payload", b"")
    latches = values.pop("latches", ())
    return requests.pack(
        requests.Register(number, requests.Spec(**values), payload, tuple(latches))
    )


HELLO = requests.pack(requests.Hello(requests.WIRE, aiobgw.__version__))


class Raw:
    """A connection to a supervisor that can say anything."""

    def __init__(self, place: Path | str, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/control")
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(directory)
        if hello:
            self.send(HELLO)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Return the next message and its descriptors, None if there is none."""
        try:
            data, rights, _, _ = self.socket.recvmsg(MESSAGE_BYTES, 4096)
        except BlockingIOError:
            return None
        fds = array("i")
        for _, _, some in rights:
            fds.frombytes(some)
        return data, list(fds)

    def drain(self) -> list[requests.Message]:
        """Take what has come; raises ConnectionError at the end of the connection."""
        found: list[requests.Message] = []
        while (got := self.receive()) is not None:
            data, fds = got
            for fd in fds:
                os.close(fd)
            if not data:
                raise ConnectionResetError("let go")
            found.append(requests.read_answer(data))
        return found

    async def answers(self, wanted: Callable[[Any], bool]) -> list[requests.Message]:
        """Take what comes until one is as wanted."""
        found: list[requests.Message] = []

        def is_there() -> bool:
            found.extend(self.drain())
            return any(map(wanted, found))

        await until(is_there)
        return found

    async def welcome(self) -> None:
        await self.answers(lambda message: isinstance(message, requests.Welcome))

    async def gone(self) -> None:
        """Wait until the supervisor has let go."""

        def is_gone() -> bool:
            try:
                self.drain()
            except ConnectionError:
                return True
            return False

        await until(is_gone)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# What is sent.


class Fuzz:
    """Messages of every bad kind, by a seed."""

    def __init__(self, seed: int, workers: Callable[[], list[tuple[int, int]]]) -> None:
        print(f"AIOBGW_TEST_SEED={seed}")
        self.random = random.Random(seed)
        self.workers = workers
        self.sent: dict[str, int] = {}
        self._kinds: list[Callable[[], tuple[bytes, int]]] = [
            self.random_bytes,
            self.empty,
            self.oversized,
            self.truncated,
            self.nested,
            self.damaged,
            self.badly_typed,
            self.unasked_descriptors,
            self.too_many_descriptors,
            self.somebody_elses,
            self.nonsense_to_register,
            self.long_texts,
            self.no_text,
            self.in_the_wrong_place,
        ]

    def message(self) -> tuple[bytes, int]:
        """Return a message, and how many descriptors go with it."""
        kind = self.random.choice(self._kinds)
        self.sent[kind.__name__] = self.sent.get(kind.__name__, 0) + 1
        return kind()

    def random_bytes(self) -> tuple[bytes, int]:
        return self.random.randbytes(self.random.choice([1, 2, 7, 40, 300, MESSAGE_BYTES])), 0

    def empty(self) -> tuple[bytes, int]:
        return b"", self.random.choice([0, 0, 1, 5])

    def oversized(self) -> tuple[bytes, int]:
        size = MESSAGE_BYTES + self.random.choice([1, 100, 50_000])
        return self.valid().ljust(size, b"\0"), self.random.choice([0, 1])

    def truncated(self) -> tuple[bytes, int]:
        whole = self.valid()
        return whole[: self.random.randrange(1, len(whole))], 0

    def nested(self) -> tuple[bytes, int]:
        deep = self.random.choice([b"\x91", b"\x81\x01", b"\x81\xa1a", b"\xdd\0\0\0\x01"])
        start = self.random.choice([b"", b"\x95\xa3ask", b"\x95\xa8register\x01"])
        return start + deep * self.random.randrange(1, 6_000), 0

    def damaged(self) -> tuple[bytes, int]:
        data = bytearray(self.valid())
        for _ in range(self.random.randrange(1, 4)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        return bytes(data), 0

    def badly_typed(self) -> tuple[bytes, int]:
        values = [None, -1, 2**64 - 1, 1.5, "x", b"x", [], {}, True, float("nan"), [[[]]]]
        what = self.random.choice(["hello", "register", "ask", "watch", "unwatch", "follow"])
        fields = self.random.choices(values, k=self.random.randrange(1, 6))
        return msgspec.msgpack.encode([what, *fields]), 0

    def unasked_descriptors(self) -> tuple[bytes, int]:
        return self.valid(), self.random.randrange(1, 18)

    def too_many_descriptors(self) -> tuple[bytes, int]:
        return self.valid(), self.random.choice([18, 19, 100, 250])

    def somebody_elses(self) -> tuple[bytes, int]:
        """Ask for what belongs to others, or to nobody: the slot is right, or nothing is."""
        slot, generation = self.random.choice(self.workers() or [(0, 1)])
        slot = self.random.choice([slot, self.random.randrange(2**32)])
        generation += self.random.choice([STRANGE, 2**40])
        kind = self.random.choice([requests.Watch, requests.Unwatch, None])
        if kind is not None:
            return requests.pack(kind(slot, generation)), 0
        verb = self.random.choice(list(requests.Verb))
        return requests.pack(requests.Ask(verb, slot, generation, self.random.randrange(65))), 0

    def nonsense_to_register(self) -> tuple[bytes, int]:
        wrong: dict[str, Any] = self.random.choice(
            [
                {"name": ""},
                {"name": "\0"},
                {"name": "n" * 1_000},
                {"name": "aiobgw1:1:2:3"},
                {"target": "no target"},
                {"target": None},
                {"command": True},
                {"target": None, "command": True, "payload": b"\0\0"},
                {"target": None, "command": True, "payload": b""},
                {"type": "\x1b[2J"},
                {"extra": b"x" * 129},
                {"flags": -1},
                {"flags": 2**63},
                {"flags": 0x2},
                {"start_when": 9},
                {"restart": "perhaps"},
                {"restart_delay": float("nan")},
                {"stop_timeout": float("inf")},
                {"loop": "trio"},
                {"user": -1},
                {"user": "nobody", "flags": 1},
                {"main": "https://example.org/x.py"},
                {"payload": b"x" * 8_193},
                {"payload": None},
                {"latches": ("a", "b")},
                {"latches": ("a",) * 17},
                {"crash_scope": "everybody"},
            ]
        )
        spec = WorkerSpec(name="hostile", target="tests.targets:nothing")
        return register(spec, self.random.randrange(2**32), **wrong), 0

    def long_texts(self) -> tuple[bytes, int]:
        """Texts that an answer may quote."""
        text = self.random.choice(["x", "\0", "é", "'", "\u2028"])
        room = (MESSAGE_BYTES - 300) // len(text.encode())
        spec = WorkerSpec(name="hostile", target="tests.targets:nothing")
        return self.random.choice(
            [
                lambda: msgspec.msgpack.encode([text * room]),
                lambda: register(spec, name=text * room),
                lambda: register(spec, target=text * room),
                lambda: register(spec, main=text * room),
                lambda: requests.pack(requests.Hello(requests.WIRE, text * room)),
            ]
        )(), 0

    def no_text(self) -> tuple[bytes, int]:
        bad = self.random.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80"])
        whole = self.random.choice([HELLO, self.valid()])
        at = self.random.randrange(1, len(whole))
        return whole[:at] + bad + whole[at + len(bad) :], 0

    def in_the_wrong_place(self) -> tuple[bytes, int]:
        """Messages of the other side, and greetings that come again or from another version."""
        return requests.pack(
            self.random.choice(
                [
                    requests.Welcome(1, "0", 0, requests.Rights.VIEW, 0),
                    requests.Accepted(1, 0, 1),
                    requests.Changed(((0, 1, None),)),
                    requests.Refused(0, "AccessDenied", ("no",), {}),
                    requests.Hello(requests.WIRE, "again"),
                    requests.Hello(requests.WIRE + 1, "later"),
                    requests.Hello(-1, ""),
                ]
            )
        ), 0

    def valid(self) -> bytes:
        """Return a message that is one, and asks for nothing that matters."""
        generation = STRANGE + self.random.randrange(2**61)
        return requests.pack(
            self.random.choice(
                [
                    requests.Follow(),
                    requests.Unfollow(),
                    requests.Watch(self.random.randrange(100), generation),
                    requests.Unwatch(self.random.randrange(100), generation),
                    requests.Ask(requests.Verb.KILL, self.random.randrange(100), generation, 0),
                ]
            )
        )


# What is seen of it.


class Nothing:
    """What must not be seen: errors that escaped, signals to somebody else, bare pids."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.signals: list[tuple[int, int]] = []
        self.strangers: list[tuple[int, int]] = []
        self.bare: list[tuple[object, ...]] = []

    def check(self) -> None:
        assert not self.errors
        assert not self.strangers
        assert not self.bare


class _Handler(logging.Handler):
    def __init__(self, seen: Nothing) -> None:
        super().__init__(logging.ERROR)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r:.300}"
        self._seen.errors.append(text)


@contextmanager
def nothing_escapes(
    supervisor: aiobgw.Supervisor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nothing]:
    """Fail if aiobgw logs an error, the loop hears of one, or others are signalled."""
    seen = Nothing()
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: seen.errors.append(f"loop: {context}"))
    handler = _Handler(seen)
    logging.getLogger("aiobgw").addHandler(handler)
    send, kill, killpg = signal.pidfd_send_signal, os.kill, os.killpg
    zygote = supervisor.status().zygote_pid
    assert zygote is not None

    def recorded(pidfd: int, signum: int, *rest: Any) -> None:
        pid = _pid_of(pidfd)
        seen.signals.append((pid, signum))
        # Race: it may end while it is looked at; then nobody else has its pid.
        if pid > 0 and not _is_below(zygote, pid) and _pid_of(pidfd) == pid:
            seen.strangers.append((pid, signum))
        send(pidfd, signum, *rest)

    def bare(*what: Any) -> None:
        seen.bare.append(what)

    signal.pidfd_send_signal = recorded
    os.kill = os.killpg = bare
    try:
        yield seen
    finally:
        signal.pidfd_send_signal, os.kill, os.killpg = send, kill, killpg
        logging.getLogger("aiobgw").removeHandler(handler)
        loop.set_exception_handler(before)
    seen.check()


def _is_below(ancestor: int, pid: int) -> bool:
    """Tell whether a process is the ancestor, or below it."""
    while pid > 1 and pid != ancestor:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return False
    return pid == ancestor


def _pid_of(pidfd: int) -> int:
    """Return whose pidfd it is; -1 if that process is gone."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise AssertionError(f"{pidfd} is no pidfd")


def spare_fds() -> tuple[int, ...]:
    """Return descriptors to send: a file, both ends of a pipe, a memfd; to be closed."""
    return (
        os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
        *os.pipe(),
        os.memfd_create("hostile", os.MFD_CLOEXEC),
    )


# Targets.


def send_garbage(path: str, seed: int, code: int) -> None:
    """Send garbage on the worker's client channel, then end with a code of its own."""
    worker = aiobgw.current_worker()
    fuzz = Fuzz(seed, lambda: [(worker.slot, worker.generation + 1)])
    channel = socket.socket(fileno=worker._client_fd)
    channel.setblocking(False)
    fds = spare_fds()
    channel.send(HELLO)
    sent = 0
    give_up = time.monotonic() + 5
    while sent < 2_000 and time.monotonic() < give_up:
        data, count = fuzz.message()
        if not data or (data[:7] == HELLO[:7] and data != HELLO):
            continue  # these end the connection
        some = [fds[at % len(fds)] for at in range(count)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", some))] if some else []
        try:
            channel.sendmsg([data], rights)
            sent += 1
        except BlockingIOError:
            try:
                channel.recv(MESSAGE_BYTES)
            except BlockingIOError:
                time.sleep(0.001)  # held back, and nothing to read
        except ConnectionError:
            break
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{sent}\n")
    raise SystemExit(code)


# Clients that are processes of their own.

FLOODER = """
import select, sys
from tests.hostile import HELLO, Raw, requests

raw = Raw(sys.argv[1])
data = {
    "garbage": b"\\xc1" * 40,
    "requests": requests.pack(requests.Ask(requests.Verb.KILL, 0, 2**62, 0)),
    "watches": requests.pack(requests.Watch(0, 2**62)),
}[sys.argv[2]]
print("up", flush=True)
while True:
    try:
        raw.send(data)
    except BlockingIOError:
        select.select([raw.socket], [raw.socket], [], 0.05)
        try:
            raw.drain()
        except BlockingIOError:
            pass
"""

CHURNER = """
import asyncio, os, random, sys
import aiobgw
from aiobgw import Restart, WorkerSpec

place, starts, said, name, seed, seconds = sys.argv[1:7]
rng = random.Random(int(seed))
fd = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

def say(*words):
    os.write(fd, " ".join(map(str, words)).encode() + b"\\n")

def end(mine, how):
    key, handle = mine.pop(rng.randrange(len(mine)))
    say("ended", key)
    getattr(handle, how)()
    return handle

async def register(client, key):
    say("asked", key)
    try:
        handle = await client.register(WorkerSpec(
            name=rng.choice("abc"), target="tests.hostile:start_and_wait",
            args=(starts, key, rng.choice([0.0, 0.0, 0.05, 3600.0])),
            restart=Restart.NEVER, stop_timeout=5,
        ))
    except aiobgw.NoFreeSlot:
        say("refused", key)
        return None
    say("accepted", key)
    return key, handle

async def main():
    async with aiobgw.attach(place) as client:
        events = client.events() if rng.random() < 0.5 else None
        loop = asyncio.get_running_loop()
        until, mine, count = loop.time() + float(seconds), [], 0
        while loop.time() < until:
            do = rng.random()
            if do < 0.5 or not mine:
                count += 1
                registered = await register(client, f"{name}-{count}")
                if registered is not None:
                    mine.append(registered)
                elif mine:
                    end(mine, "kill")
                else:
                    await asyncio.sleep(0.01)  # the others have it all
            elif do < 0.7:
                end(mine, "terminate")
            elif do < 0.75:
                end(mine, "kill")
            elif do < 0.85:
                await rng.choice(mine)[1].wait_for_startup()
            elif do < 0.9:
                client.status()
            elif do < 0.95:
                await end(mine, "terminate")
            else:
                for handle in client.handles()[:3]:
                    handle.status()
        while mine:
            await mine[0][1].wait_for_startup()
            say("ended", mine[0][0])
            mine.pop(0)[1].terminate()
        say("end", name)

asyncio.run(main())
"""


def start_and_wait(path: str, key: str, seconds: float) -> None:
    """Append a key to a file, so that a test sees how often this started, and wait."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(fd, key.encode() + b"\n")
    os.close(fd)
    time.sleep(seconds)
