"""Looks by a connection: tcp and unix are ready if they accept one, http if it answers well.

Plain sockets in the supervisor's own epoll.  A name is looked up at each look, in the executor
of the host's loop, since that may block; a thread that hangs there holds up no stop, but
the next look waits for it, so that each probe holds one thread at most.  All addresses of a name
are tried at once, and the first that is good counts.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Iterator
from errno import EINPROGRESS
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .._process.watcher import Watcher
from .loop import Loop

ADDRESSES = 8
LINE_BYTES = 4_096
GOOD = range(200, 400)

Address = tuple[int, Any]
"""A family, and an address of it."""


class Place(NamedTuple):
    """Where to connect, and what to ask there; no question: to be connected is enough."""

    path: str
    host: str
    port: int
    question: bytes


def place_of(probe: str) -> Place:
    """Read what a spec says."""
    if probe.startswith("unix:"):
        path = probe.removeprefix("unix:")
        return Place(f"\0{path[1:]}" if path.startswith("@") else path, "", 0, b"")
    parts = urlsplit(probe)
    host = parts.hostname or ""
    if parts.scheme == "tcp":
        return Place("", host, parts.port or 0, b"")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    question = (
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: aiobgw\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    )
    return Place("", host, parts.port or 80, question.encode("ascii"))


class Names:
    """The addresses of one probe's place."""

    def __init__(self, probe: str, loop: Loop) -> None:
        self.place = place_of(probe)
        self._loop = loop
        self._asked: asyncio.Future[list[Address]] | None = None
        self._then: Callable[[list[Address]], None] | None = None

    def ask(self, then: Callable[[list[Address]], None]) -> None:
        """Give *then* the addresses, none if there are none; replaces who asked before."""
        place = self.place
        if place.path:
            then([(socket.AF_UNIX, place.path)])
            return
        try:
            then(_addresses(place, socket.AI_NUMERICHOST))
        except (OSError, UnicodeError):
            self._then = then
            self._look_up()

    def _look_up(self) -> None:
        if self._asked is None:
            self._asked = self._loop.host.run_in_executor(None, _addresses, self.place, 0)
            self._asked.add_done_callback(self._answered)

    def _answered(self, asked: asyncio.Future[list[Address]]) -> None:
        """Pass on what was found.  Comes from the host's loop, between two turns."""
        self._asked = None
        then, self._then = self._then, None
        found = [] if asked.cancelled() or asked.exception() is not None else asked.result()
        if then is not None:
            then(found)
            self._loop.turn()  # timers were set

    def forget(self) -> None:
        """Have nobody told any more."""
        self._then = None

    def close(self) -> None:
        """Ask no more; legal on a closed host loop."""
        self._then = None
        if self._asked is not None and not self._loop.host.is_closed():
            self._asked.cancel()


def _addresses(place: Place, flags: int) -> list[Address]:
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found[:ADDRESSES]]


class SocketLook:
    """One look at all addresses."""

    def __init__(self, names: Names, watcher: Watcher, done: Callable[[bool], None]) -> None:
        self._names = names
        self._watcher = watcher
        self._done = done
        self._left: set[_Connection] = set()

    def begin(self) -> None:
        self._names.ask(self._connect)

    def _connect(self, addresses: list[Address]) -> None:
        question = self._names.place.question
        connections = [
            _Connection(address, question, self._watcher, self._told) for address in addresses
        ]
        self._left = set(connections)
        for connection in connections:
            if connection in self._left:  # unless one before it was good
                connection.begin()
        if not addresses:
            self._done(False)

    def _told(self, connection: _Connection, is_good: bool) -> None:
        self._left.discard(connection)
        if is_good:
            self.close()
        if not self._left:
            self._done(is_good)

    def give_up(self) -> None:
        self.close()
        self._done(False)

    def close(self) -> None:
        self._names.forget()
        left, self._left = self._left, set()
        for connection in left:
            connection.close()

    def descriptors(self) -> Iterator[int]:
        for connection in self._left:
            yield connection.fileno()

    def close_copies(self) -> None:
        for connection in self._left:
            connection.close_copy()


class _Connection:
    """A connection to one address, and the conversation there; ``_step`` is what comes next."""

    def __init__(
        self,
        address: Address,
        question: bytes,
        watcher: Watcher,
        told: Callable[[_Connection, bool], None],
    ) -> None:
        self._family, self._address = address
        self._question = question
        self._watcher = watcher
        self._told = partial(told, self)
        self._answer = b""
        self._socket: socket.socket | None = None
        self._step = self._connected

    def begin(self) -> None:
        try:
            self._socket = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._connect(self._socket)
        except (OSError, ValueError):
            self._end(False)

    def _connect(self, connecting: socket.socket) -> None:
        error = connecting.connect_ex(self._address)
        if error not in (0, EINPROGRESS):
            raise OSError(error, os.strerror(error))
        self._watcher.watch(connecting.fileno(), self._on_event, select.EPOLLOUT)

    def _on_event(self) -> None:
        try:
            if self._socket is not None:
                self._step(self._socket)
        except BlockingIOError:
            pass
        except OSError:
            self._end(False)

    def _connected(self, connected: socket.socket) -> None:
        """Ask, if there is something to ask: a fresh socket has room for it."""
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or is_own_echo(connected):
            self._end(False)
        elif not self._question:
            self._end(True)
        else:
            connected.send(self._question)
            self._step = self._answered
            self._watcher.change(connected.fileno(), select.EPOLLIN)

    def _answered(self, connected: socket.socket) -> None:
        data = connected.recv(LINE_BYTES)
        self._answer += data
        if b"\n" in self._answer or not data or len(self._answer) >= LINE_BYTES:
            self._end(is_good(self._answer))

    def _end(self, good: bool) -> None:
        self.close()
        self._told(good)

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._socket is not None:
            self._watcher.unwatch(self._socket.fileno())
            self.close_copy()

    def close_copy(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def is_own_echo(connected: socket.socket) -> bool:
    """Tell whether a socket is connected to itself.

    Race: a connection to a port of this host that nobody listens on may be given the same port
    as its own, and TCP then connects it with itself.
    """
    if connected.family == socket.AF_UNIX:
        return False
    return bool(connected.getsockname() == connected.getpeername())


def is_good(answer: bytes) -> bool:
    """Tell whether an HTTP answer begins with a status of 200 to 399."""
    version, _, rest = answer.split(b"\n", 1)[0].partition(b" ")
    code = rest[:3]
    ends = rest[3:4] in (b"", b" ", b"\r")
    return version.startswith(b"HTTP/") and code.isdigit() and ends and int(code) in GOOD
