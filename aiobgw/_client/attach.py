"""Attach to a running supervisor by its name or its runtime directory."""

from __future__ import annotations

import asyncio
import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET
from _socket import socket as Socket
from types import TracebackType
from typing import final

from .._ipc import rundir
from .._ipc.channel import Channel
from ..errors import AccessDenied, NotAttached
from .blocking import BlockingClient
from .client import Client
from .connection import Connection

ATTACH_TIMEOUT = 5.0
RETRY_DELAY = 0.01


def attach(runtime_dir_or_name: str | os.PathLike[str]) -> Attachment:
    """Attach to a supervisor of this machine: ``async with attach("shop") as client:``.

    A name means ``$AIOBGW_RUNTIME_DIR/NAME`` if that is set, else
    ``$XDG_RUNTIME_DIR/aiobgw/NAME``, as root ``/run/aiobgw/NAME``; whatever has a slash is a
    path.  Raises NotAttached if no supervisor is there, AccessDenied,
    ProtocolMismatch, and TimeoutError if it does not answer within 5 s.
    """
    return Attachment(rundir.place(runtime_dir_or_name))


def attach_blocking(runtime_dir_or_name: str | os.PathLike[str]) -> BlockingClient:
    """Attach as ``attach`` does, in plain code; the client is a context manager."""
    give_up = time.monotonic() + ATTACH_TIMEOUT
    path = rundir.place(runtime_dir_or_name)
    while (channel := _connect(path)) is None:
        if time.monotonic() > give_up:
            raise TimeoutError(f"the supervisor at {path} does not accept")
        time.sleep(RETRY_DELAY)
    client = BlockingClient(Connection(channel))
    try:
        client.welcomed(ATTACH_TIMEOUT)
    except BaseException:
        client.close()
        raise
    return client


@final
class Attachment:
    """What ``attach`` returns: entered, a Client; left, it is closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: Client | None = None

    async def __aenter__(self) -> Client:
        async with asyncio.timeout(ATTACH_TIMEOUT):
            while (channel := _connect(self._path)) is None:  # noqa: ASYNC110
                await asyncio.sleep(RETRY_DELAY)  # a full queue tells nobody when it is not
            client = self._client = Client(Connection(channel))
            try:
                await client.welcomed()
            except BaseException:
                client.close()
                raise
        return client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()


def _connect(path: str) -> Channel | None:
    """Connect; None if the supervisor's queue is full at this moment."""
    directory = rundir.find(path)
    try:
        owner = os.fstat(directory).st_uid
        socket = Socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            socket.setblocking(False)
            socket.connect(rundir.within(directory, rundir.CONTROL))
            socket.setblocking(True)
            _check_peer(socket, owner, path)
        except BaseException:
            socket.close()
            raise
    except BlockingIOError:
        return None
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotAttached(f"no supervisor listens at {path}") from None
    except PermissionError as error:
        raise AccessDenied(f"{path}: {error.strerror}") from None
    finally:
        os.close(directory)
    return Channel(socket)


def _check_peer(socket: Socket, owner: int, path: str) -> None:
    _, uid, _ = rundir.peer_of(socket)
    if uid != owner:
        raise AccessDenied(f"who listens at {path} is uid {uid}, not its owner {owner}")
