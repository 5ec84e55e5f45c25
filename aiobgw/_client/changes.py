"""Who wants to know that something changed: tasks that wait, and plain callbacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("aiobgw")


class Changes:
    """A subject that tells its observers to look again; says nothing about what changed."""

    __slots__ = ("_callbacks", "_waiters")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []

    async def wait(self) -> None:
        """Return at the next change.  Cancelling it takes nothing from the others."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def call(self, callback: Callable[[], None]) -> None:
        """Call *callback* at every change, from inside the supervisor's turn."""
        self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def tell(self) -> None:
        """Have everybody look again; waiters run in a later turn of the loop."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
        for callback in list(self._callbacks):
            try:
                callback()
            except Exception:
                log.exception("an observer failed")  # the others must be told all the same
