"""The client of a worker with SHMEM_ACCESS, on the channel that came with its order."""

from __future__ import annotations

from .._ipc.channel import Channel
from .blocking import BlockingClient, wait_for
from .client import Client
from .connection import Connection

TIMEOUT = 10.0


def open_client(fd: int, is_async: bool) -> Client | BlockingClient:
    """Attach the worker that this process is; owns the channel.

    Waits for the supervisor's answer, a turn of its loop: what follows is plain.
    """
    connection = Connection(Channel.adopt(fd))

    def look() -> bool | None:
        if connection.over is not None:
            raise connection.over
        return connection.welcome is not None or None

    wait_for(connection, look, TIMEOUT)
    return Client(connection) if is_async else BlockingClient(connection)
