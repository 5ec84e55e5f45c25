"""The client of a worker with SHMEM_ACCESS, on the channel that came with its order."""

from __future__ import annotations

from .._ipc.channel import Channel
from .blocking import BlockingClient, wait_for
from .client import Client
from .connection import Connection

TIMEOUT = 10.0


def connect(fd: int) -> Connection:
    """Say hello on the channel of the worker that this process is; owns the channel."""
    return Connection(Channel.adopt(fd))


def open_client(connection: Connection, is_async: bool) -> Client | BlockingClient:
    """Wait for the supervisor's answer, a turn of its loop: what follows is plain.

    A wait that is cut short (by a signal handler that raises) can be begun again.
    """
    wait_for(connection, connection.greeted, TIMEOUT)
    return Client(connection) if is_async else BlockingClient(connection)
