"""Channels: SEQPACKET sockets that carry messages and descriptors between two processes.

Ownership: a Channel owns its descriptor.  Descriptors that are sent are copied by the
kernel and stay the sender's; those received belong to the receiver at once, are close-on-exec,
and are closed here if they were not asked for.

Written on ``_socket``: importing ``socket`` would cost each lean worker twenty modules.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    CMSG_LEN,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SHUT_RDWR,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)
from _socket import socket as Socket
from struct import pack, unpack
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGE_BYTES = 32_768
"""The largest message.  Each receive needs a buffer of this size, and a fresh process pays
for every page of it; SO_SNDBUF's default would allow about 200 KB."""

_MSG_CMSG_CLOEXEC = 0x40000000


class BrokenMessage(Exception):
    """The peer sent what no peer of ours sends: too long, or with unasked descriptors."""


class Channel:
    """One end of a SEQPACKET connection."""

    __slots__ = ("_socket", "fd")

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.fd = socket.fileno()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make a connected pair."""
        one, other = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        return cls(one), cls(other)

    @classmethod
    def adopt(cls, fd: int) -> Channel:
        """Own a descriptor that was inherited or received."""
        return cls(Socket(fileno=fd))

    def send(self, data: bytes, fds: Sequence[int] = (), *, block: bool = False) -> None:
        """Send one message, whole or not at all.

        Raises BlockingIOError when the peer does not keep up, and OSError (EPIPE,
        ECONNRESET) when it is gone.
        """
        if len(data) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes; {MESSAGE_BYTES} are possible")
        rights = [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
        flags = MSG_NOSIGNAL if block else MSG_NOSIGNAL | MSG_DONTWAIT
        self._socket.sendmsg([data], rights, flags)

    def receive(
        self,
        max_fds: int = 0,
        *,
        block: bool = False,
        discard: Callable[[Sequence[int]], None] | None = None,
    ) -> tuple[bytes, list[int]]:
        """Return the next message and its descriptors; b"" at the peer's end.

        Raises BlockingIOError when there is none, ConnectionResetError when the peer ended
        without having read all we sent, and BrokenMessage, with everything closed, or given
        to *discard*.  An empty message is an end, whatever came with it.
        """
        room = CMSG_LEN(4 * max_fds) if max_fds else 0
        flags = _MSG_CMSG_CLOEXEC if block else _MSG_CMSG_CLOEXEC | MSG_DONTWAIT
        data, rights, outcome, _ = self._socket.recvmsg(MESSAGE_BYTES, room, flags)
        fds = _descriptors(rights) if rights else []

        # CMSG_LEN leaves no room for padding, but the kernel may still find some for a
        # descriptor more than was asked for: count them.
        broken = outcome & (MSG_TRUNC | MSG_CTRUNC) or len(fds) > max_fds
        if broken or (fds and not data):
            (discard or _close)(fds)
            if broken:
                raise BrokenMessage("truncated message or unasked descriptors")
            return b"", []
        return data, fds

    def unread(self) -> int:
        """Return how much of what was sent is unread, in the kernel's own bytes: a message of
        one byte counts for about 800."""
        from fcntl import ioctl
        from termios import TIOCOUTQ

        return int.from_bytes(ioctl(self.fd, TIOCOUTQ, bytes(4)), byteorder)

    def shut_down(self) -> None:
        """End the connection for both sides; data already sent can still be read."""
        try:
            self._socket.shutdown(SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def detach(self) -> int:
        """Give the descriptor away."""
        return self._socket.detach()

    def close(self) -> None:
        self._socket.close()


def _descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in rights:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            count = len(data) // 4
            found += unpack(f"{count}i", data[: 4 * count])
    return found


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
