"""What a test and a worker say to each other: where they meet, whom they believe.

They meet at a listening socket of the test, in the abstract namespace: no file is left behind,
whoever dies, and no right of the file system is in the way of a worker with another uid.
Messages are SEQPACKET frames with a pickle in them, and unpickling runs code: so the worker
listens to root and to its own user only, and a test reads no pickle from another user.

Nothing heavy is imported: workers import this.
"""

from __future__ import annotations

import os
from _signal import SIGRTMAX
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET
from _socket import socket as Socket

from .._ipc.channel import Channel
from .._ipc.rundir import peer_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

FAULT_SIGNAL = SIGRTMAX - 7
"""Says to a worker: somebody listens at your ``fault_address``."""

TAKEN, OVER, REFUSED = b"taken", b"over", b"refused "
"""What a worker answers to a fault: no pickles, since it may be of another user."""

BACKLOG = 128


def fault_address(pid: int) -> str:
    """Return where a worker looks for a fault: it knows nothing but its own pid."""
    return f"\0aiobgw/fault/{pid}"


def listen(address: str) -> socket.socket:
    """Return a listening socket; raises OSError (EADDRINUSE) if somebody else listens there."""
    import socket

    listener = socket.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(address: str) -> Channel | None:
    """Connect to a test; None if nobody listens there, or nobody whom this process believes."""
    end = Socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        end.connect(address)
        if peer_of(end)[1] in (0, os.geteuid()):
            return Channel(end)
    except ConnectionError:
        pass  # the test has given up, or is over
    except BaseException:
        end.close()
        raise
    end.close()
    return None


def receive(channel: Channel) -> bytes:
    """Return the next message, b"" at the peer's end; raises BlockingIOError if there is none."""
    try:
        return channel.receive()[0]
    except ConnectionResetError:
        return b""  # it went with something of ours unread
