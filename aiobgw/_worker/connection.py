"""The database connection of a worker: opened before its target is called, closed after it.

What a connection is, only the connector knows: it is a function of the application, imported
in the worker and called there, without arguments, when signals are let in and before STARTED
is said.  So one that fails makes ``wait_for_startup`` raise NeverStarted with its traceback,
the exit FAILED, and the restart rule decides about the next attempt, as of PostgreSQL's
workers that cannot connect.  Each incarnation gets a connection of its own.

The connector of an async target may be async: whatever it returns is awaited if it can be,
in the target's own loop.  Plain targets have no loop, so that theirs must be plain.

An error while closing is printed, and changes nothing of the exit: the target's work is done.
"""

from __future__ import annotations

import sys

from ..errors import NotAttached
from . import target
from .interrupt import Interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .context import CurrentWorker

CLOSE_TIMEOUT = 5.0
"""Seconds that an async close may take: a dead server must not hold up the end."""

_NONE: Any = object()


class Database:
    """The connection of this worker, and what SIGINT does to its users."""

    def __init__(self, worker: CurrentWorker, connector: str) -> None:
        self._connector = connector
        self._connection = _NONE
        self.interrupts = Interrupts(worker, self)

    @property
    def connection(self) -> Any:
        """The open connection; raises NotAttached before and after."""
        if self._connection is _NONE:
            raise NotAttached(
                "the database connection is not open",
                hint="it is from the target's first line to its last",
            )
        return self._connection

    def open(self) -> None:
        """Call a plain connector, for a plain target."""
        made = target.find(self._connector)()
        if hasattr(made, "__await__"):
            _drop(made)
            raise TypeError(
                f"connector {self._connector!r} is async (it returned {type(made).__name__}),"
                " and a plain target cannot await it: make the target async, or this plain"
            )
        self._connection = made

    async def open_async(self) -> None:
        """Call a connector, and await what it returns if that can be awaited.

        Does nothing after ``open()``: the coroutine of a plain target.
        """
        if self._connection is _NONE:
            made = target.find(self._connector)()
            self._connection = await made if hasattr(made, "__await__") else made

    def close(self) -> None:
        """Close it, in plain code; idempotent."""
        try:
            closing = self._begin_close()
            if hasattr(closing, "__await__"):
                _drop(closing)
                raise TypeError("its close is async, and there is no event loop")
        except BaseException as error:
            _complain(error)

    async def close_async(self) -> None:
        """Close it, in the target's loop, within CLOSE_TIMEOUT; idempotent."""
        import asyncio

        try:
            closing = self._begin_close()
            if hasattr(closing, "__await__"):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await closing
        except TimeoutError as error:
            error.add_note(f"it was given {CLOSE_TIMEOUT:g} s")
            _complain(error)
        except BaseException as error:
            _complain(error)

    def _begin_close(self) -> Any:
        """Call what closes the connection, and return what that returned."""
        connection, self._connection = self._connection, _NONE
        close: Callable[[], Any] | None = getattr(connection, "close", None)
        if close is None:
            close = getattr(connection, "aclose", None)
        return close() if close is not None else None


def _drop(coroutine: Any) -> None:
    """Give up what nobody will await, so that it does not complain itself."""
    close = getattr(coroutine, "close", None)
    if close is not None:
        close()


def _complain(error: BaseException) -> None:
    import traceback

    print("aiobgw: the database connection was not closed in order:", file=sys.stderr)
    traceback.print_exception(error)
