"""The control socket: who connects becomes a peer, if the kernel says that he may.

Ownership: the listening socket, and its name in the runtime directory, which is taken over
from a dead predecessor (the instance lock says that it is dead) and removed at the end.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET
from _socket import socket as Socket
from functools import partial
from typing import TYPE_CHECKING

from .._ipc import requests, rundir
from .._ipc.channel import Channel
from .._process.watcher import Watcher
from ..errors import AccessDenied, AiobgwError
from .access import Access, who_connected
from .instance import Instance

if TYPE_CHECKING:
    from .peers import Peers

BACKLOG = 128
ACCEPTS_PER_TURN = 8
RETRY_DELAY = 1.0
LOG_INTERVAL = 60.0

log = logging.getLogger("aiobgw")


class Control:
    """The listening side of a supervisor with a runtime directory."""

    def __init__(self, instance: Instance, access: Access, peers: Peers, watcher: Watcher) -> None:
        self._instance = instance
        self._access = access
        self._peers = peers
        self._watcher = watcher
        self._logged_at = -LOG_INTERVAL
        self._limit = peers.core.settings.max_clients
        self._socket = Socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
        try:
            self._bind()
            self._socket.listen(BACKLOG)
            watcher.watch(self._socket.fileno(), self._accept)
        except BaseException:
            self._socket.close()
            raise

    def _bind(self) -> None:
        """Take the name over, under the lock; nobody connects before the mode is right.

        Ordering: bound, then its mode set, and only then does it listen.
        """
        self._unlink()
        path = rundir.within(self._instance.directory, rundir.CONTROL)
        self._socket.bind(path)
        os.chmod(path, 0o600 if self._access.is_private else 0o666)

    def _unlink(self) -> None:
        try:
            os.unlink(rundir.CONTROL, dir_fd=self._instance.directory)
        except FileNotFoundError:
            pass

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            self._take(Socket(fileno=fd))

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a while: whoever connects would be refused again and again."""
        now = time.monotonic()
        fd = self._socket.fileno()
        self._watcher.unwatch(fd)
        again = partial(self._watcher.watch, fd, self._accept)
        self._watcher.timer("accept", now + RETRY_DELAY, again)
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            log.warning("no client can attach: %s", errno.errorcode.get(error.errno or 0, error))

    def _take(self, socket: Socket) -> None:
        who = who_connected(socket)
        rights = self._access.rights(who)
        channel = Channel(socket)
        if rights is None:
            log.warning("pid %d of uid %d tried to attach", who.pid, who.uid)
            _turn_away(channel, AccessDenied(f"uid {who.uid} may not attach"))
        elif self._peers.clients >= self._limit:
            error = AccessDenied(f"all {self._limit} places for clients are taken")
            error.add_note("hint: raise Supervisor(max_clients=...)")
            _turn_away(channel, error)
        else:
            own = self._access.is_own(who)
            self._peers.add(channel, rights, own=own, name=f"client (pid {who.pid})")

    def close(self) -> None:
        self._watcher.unwatch(self._socket.fileno())
        self._watcher.cancel("accept")
        self._unlink()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close_copy(self) -> None:
        self._socket.close()


def _turn_away(channel: Channel, error: AiobgwError) -> None:
    try:
        channel.send(requests.pack(requests.refused(0, error)))
    except OSError:
        pass
    channel.close()
