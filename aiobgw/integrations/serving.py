"""Finds out when the host serves: no framework calls anybody at that moment.

The host serves when its start-up is over and this process listens on a stream socket.  A
socket that listened before (gunicorn's, systemd's) counts: whoever connects to it is
accepted as soon as the start-up is over.  So does another server of the same process: then
"serves" means "has started up", and no more.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable

FIRST_LOOK = 0.005
LAST_LOOK = 0.25
SLOWER = 1.5


def is_listening() -> bool:
    """Tell whether this process holds a stream socket on which it listens."""
    return any(_listens(int(name)) for name in os.listdir("/proc/self/fd"))


def _listens(fd: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        # Ownership: a copy, since another thread may close the original meanwhile.
        with socket.socket(fileno=os.dup(fd)) as copy:
            listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return copy.type == socket.SOCK_STREAM and bool(listens)
    except OSError:
        return False  # closed since it was listed


class Serving:
    """Calls *then* once the host serves.

    Nothing tells, so it looks: from every 5 ms to four times a second, until it is so or
    ``close`` is called.  A timer of the loop, no task: hosts wait for tasks when they end.
    """

    def __init__(self, then: Callable[[], None], *, is_up: Callable[[], bool]) -> None:
        self._then = then
        self._is_up = is_up
        self._delay = FIRST_LOOK
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self._delay, self._look)
        self._delay = min(self._delay * SLOWER, LAST_LOOK)

    def _look(self) -> None:
        self._timer = None
        if self._is_up() and is_listening():
            self._then()
        else:
            self._wait()

    def close(self) -> None:
        """Stop looking; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
