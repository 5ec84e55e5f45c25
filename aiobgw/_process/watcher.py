"""The watcher: one epoll for every descriptor, and the few timers of this package.

The epoll is the host loop's single reader: bounded work per turn, and the same code on
asyncio and uvloop.  It never waits; whoever owns the loop asks when to look again.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Hashable

EVENTS_PER_TURN = 16
"""A turn holds the host's loop for a millisecond or two, not for as long as there is work."""

SKIPPED_AT_MOST = 64

RETRY_DELAY = 0.1

log = logging.getLogger("aiobgw")

ONCE = select.EPOLLIN | select.EPOLLONESHOT
"""For pidfds: a level-triggered pidfd of a zombie that nobody reaps spins the loop."""

AT_REAP = select.EPOLLONESHOT
"""For pidfds again: EPOLLHUP, which comes at the reap, need not be asked for."""


class Watcher:
    """Descriptors and moments, and what to do about them."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.is_behind = False
        self._handlers: dict[int, Callable[[], None]] = {}
        self._timers: dict[Hashable, tuple[float, Callable[[], None]]] = {}

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call *handler* in the turns in which *fd* has something; raises OSError."""
        self.epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self.epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget *fd*, which its owner is about to close."""
        self.cancel(("again", fd))
        if self._handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def poll(self) -> None:
        """Handle what is there, a bounded part of it; level-triggered, the rest comes again."""
        events = self.epoll.poll(0, EVENTS_PER_TURN)
        self.is_behind = len(events) == EVENTS_PER_TURN
        for fd, _ in events:
            handler = self._handlers.get(fd)
            if handler is not None:  # an earlier handler of this turn may have closed it
                self._call(("again", fd), handler)

    def timer(self, name: Hashable, at: float, handler: Callable[[], None]) -> None:
        """Call *handler* once, at a moment on the monotonic clock; replaces the one before."""
        self._timers[name] = (at, handler)

    def cancel(self, name: Hashable) -> bool:
        """Forget a timer; return whether there was one."""
        return self._timers.pop(name, None) is not None

    def has_timer(self, name: Hashable) -> bool:
        return name in self._timers

    def run_timers(self, now: float) -> None:
        for name, (at, handler) in list(self._timers.items()):
            if at <= now and self._timers.pop(name, None) is not None:
                self._call(name, handler)

    def _call(self, name: Hashable, handler: Callable[[], None]) -> None:
        """Call a handler; one that fails is called again: its event may never come again."""
        try:
            handler()
        except Exception:
            log.exception("a handler failed; it is called again")
            self.timer(name, time.monotonic() + RETRY_DELAY, handler)

    def wake_at(self) -> float | None:
        """Return when the next timer is due."""
        return min((at for at, _ in self._timers.values()), default=None)

    def close(self) -> None:
        self.epoll.close()
        self._handlers.clear()
        self._timers.clear()


class LateWatcher(Watcher):
    """A watcher inside another one, for what is handled after all else that has come.

    Its timers are the other one's.  Ownership: it belongs to whoever made it, and is closed
    before the other one.
    """

    def __init__(self, first: Watcher) -> None:
        super().__init__()
        self._first = first
        self._ready = False
        self._skipped = 0
        first.watch(self.epoll.fileno(), self._note)

    def _note(self) -> None:
        self._ready = True

    def poll(self) -> None:
        """Handle what is there, unless the other one has not come to its end.

        It waits SKIPPED_AT_MOST turns: nobody's noise can keep it waiting for ever.
        """
        if not self._ready:
            return
        if self._first.is_behind and self._skipped < SKIPPED_AT_MOST:
            self._skipped += 1
            return
        self._skipped = 0
        self._ready = False
        super().poll()

    def timer(self, name: Hashable, at: float, handler: Callable[[], None]) -> None:
        self._first.timer(name, at, handler)

    def cancel(self, name: Hashable) -> bool:
        return self._first.cancel(name)

    def has_timer(self, name: Hashable) -> bool:
        return self._first.has_timer(name)

    def close(self) -> None:
        self._first.unwatch(self.epoll.fileno())
        super().close()
