"""Latches: PostgreSQL's way to wake somebody up, on an eventfd.

Waiters follow one shape, always:

    while True:
        latch.reset()
        if work_to_do():      # look *after* the reset ...
            return
        await latch.wait()    # ... so that a set in between is not lost

Setters do the mirror image: first write what the waiter looks at, then set().

Ordering: the eventfd's read and write are system calls, and those are the barriers.

Ownership: whoever holds an eventfd can block or drain it for the others, so latches are
shared among processes of one user only, and the supervisor never writes one that others hold.
"""

from __future__ import annotations

import math
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio


class Latch:
    """A flag that processes, threads and signal handlers can set, and that can be awaited.

    It stays set until ``reset()``; setting it twice is setting it once.
    """

    __slots__ = ("__weakref__", "_fd", "_waiters")

    def __init__(self) -> None:
        self._own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @classmethod
    def adopt(cls, fd: int) -> Latch:
        """Make a latch of an eventfd that was received; the latch owns it from now on."""
        latch = cls.__new__(cls)
        latch._own(fd)
        return latch

    def _own(self, fd: int) -> None:
        self._fd = fd
        self._waiters: list[asyncio.Future[None]] = []

    def fileno(self) -> int:
        return self._fd

    def set(self) -> None:
        """Set the latch: plain, cheap, legal in signal handlers and from any thread."""
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:
            pass  # the counter is at its end: it is set

    def reset(self) -> None:
        """Clear the latch; look at what it stands for afterwards."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass  # it was not set

    def is_set(self) -> bool:
        return self.wait_blocking(0)

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """Wait in plain code; return whether the latch is set, after *timeout* seconds at most."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0, math.ceil(timeout * 1000))))

    async def wait(self) -> None:
        """Return when the latch is set.

        Several tasks may wait; a cancelled wait takes nothing away from the others.
        """
        import asyncio

        if self.is_set():
            return

        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if not self._waiters:
            loop.add_reader(self._fd, self._wake)
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
            if not self._waiters and self._fd >= 0:
                loop.remove_reader(self._fd)

    def _wake(self) -> None:
        """Resume all who wait; the last of them removes the reader, which is level-triggered."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Give the descriptor back; nobody may wait any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<Latch closed>"
        return f"<Latch fd={self._fd} {'set' if self.is_set() else 'not set'}>"
