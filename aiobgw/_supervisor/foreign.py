"""Descriptors of strangers: closing one can take as long as its sender likes.

A socket that lingers, a file of a slow or stopped filesystem: whoever closes the last copy
waits.  So only what is known to be harmless is closed here; everything else by a thread, which
ends when there is nothing left, or with the process.

Invariant: whoever puts something into the queue finds a thread that will look again, or starts
one: both are decided under the lock.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from collections.abc import Sequence

_lock = threading.Lock()
_queue: deque[int] = deque()
_closing = False


def close(fds: Sequence[int]) -> None:
    """Close descriptors that came from a peer; never waits."""
    slow = []
    for fd in fds:
        if _is_harmless(fd):
            os.close(fd)
        else:
            slow.append(fd)
    if slow:
        _leave(slow)


def _is_harmless(fd: int) -> bool:
    """Tell whether it is a memfd, an eventfd or a pipe."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        return True
    except OSError:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(("anon_inode:[eventfd]", "pipe:"))


def _leave(fds: Sequence[int]) -> None:
    global _closing
    with _lock:
        _queue.extend(fds)
        if _closing:
            return
        _closing = True
    threading.Thread(target=_close_all, name="aiobgw-close", daemon=True).start()


def _close_all() -> None:
    global _closing
    while True:
        with _lock:
            if not _queue:
                _closing = False
                return
            fd = _queue.popleft()
        os.close(fd)
