"""The pipe on which a command says that it is ready: s6's protocol, the supervisor's side.

The program writes a newline to the descriptor that it was given.  What comes after it, or
instead of it, is thrown away; the end of the pipe says nothing.

Ownership: both ends are the Notification's.  The end for writing is copied into the order of the
launch, and given up when that launch has a process: then the program's own end is the last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from .._process.watcher import Watcher

BYTES_PER_TURN = 4_096


class Notification:
    """One launch's pipe; raises OSError."""

    __slots__ = ("_on_ready", "_watcher", "read_end", "write_end")

    def __init__(self, watcher: Watcher, on_ready: Callable[[], None]) -> None:
        self._watcher = watcher
        self._on_ready = on_ready
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self.read_end, False)  # not the program's end, which it shares
            watcher.watch(self.read_end, self._on_data)
        except OSError:
            self.close_copies()
            raise

    def taken(self) -> None:
        """Give up the end for writing: the launch has a process, which has its own."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def _on_data(self) -> None:
        try:
            data = os.read(self.read_end, BYTES_PER_TURN)
        except BlockingIOError:
            return
        if not data:
            self.close()
        elif b"\n" in data:
            self._on_ready()

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""
        yield from (self.read_end, self.write_end)

    def close(self) -> None:
        """Give both ends back; idempotent."""
        if self.read_end >= 0:
            self._watcher.unwatch(self.read_end)
        self.close_copies()

    def close_copies(self) -> None:
        """Close both ends, and touch nothing that a fork of the host shares."""
        for fd in self.descriptors():
            if fd >= 0:
                os.close(fd)
        self.read_end = self.write_end = -1
