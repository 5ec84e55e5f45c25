"""Guards: cancel a block of code when what it relies on has failed, as asyncio.timeout does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import final

from .changes import Changes


@final
class Guard:
    """``async with`` it: the body is cancelled by a failure, which is then raised instead."""

    def __init__(self, changes: Changes, failure: Callable[[], Exception | None]) -> None:
        self._changes = changes
        self._failure = failure
        self._task: asyncio.Task[object] | None = None
        self._fired = False
        self._soon: asyncio.Handle | None = None
        self._cancelling = 0

    async def __aenter__(self) -> Guard:
        error = self._failure()
        if error is not None:
            raise error
        task = asyncio.current_task()
        if task is None or self._task is not None:
            raise RuntimeError("a guard is entered once, in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._changes.call(self._look)
        return self

    def _look(self) -> None:
        if self._fired or self._task is None or self._failure() is None:
            return
        self._fired = True
        # Race: told from within the body itself, which may end without another await; then
        # a cancellation could not be taken back, and would hit whatever comes after.
        self._soon = self._task.get_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        self._soon = None
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._changes.forget(self._look)
        if not self._fired or self._task is None:
            return

        # Somebody else's cancellation, if there is one, goes first (asyncio.timeout's rule).
        others = self._take_back() > self._cancelling
        failure = self._failure()
        ours = kind is None or issubclass(kind, asyncio.CancelledError)
        if ours and not others and failure is not None:
            raise failure from failure.__cause__ or error

    def _take_back(self) -> int:
        """Undo our cancellation, sent or not; return how many there are besides it."""
        assert self._task is not None
        if self._soon is not None:
            self._soon.cancel()
            return self._task.cancelling()
        return self._task.uncancel()
