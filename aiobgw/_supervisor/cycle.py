"""The crash cycle, as the supervisor sees it: begin, all members gone, reset, everybody again.

The rules (``_policy.cycle``) end the members one by one; here is what they have in common.
While a cycle is under way the Situation says so, which keeps the gates of the members closed;
what else runs is not touched, and registrations, requests and handles go on.

Order, and normative (PostgreSQL's PostmasterStateMachine): first the last member has ended, and
the never-restart ones are forgotten; then ``on_reset``; then the cycle is counted and told;
then the gates open.  A member that SIGKILL does not end holds this up: memory that
somebody may still write to is not rebuilt.  A stop ends a cycle wherever it is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from .._inject import _inject
from .._policy import happenings
from .._policy.moves import WAITING
from ..settings import Settings
from ..status import CrashCycle, ExitStatus
from .loop import Loop
from .news import News
from .registry import RegisteredWorker, Registry

log = logging.getLogger("aiobgw")


class Cycle:
    """The crash cycles of one supervisor, one at a time."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        news: News,
        *,
        fail: Callable[[str, BaseException | None], None],
    ) -> None:
        self.number = 0
        self._settings = settings
        self._registry = registry
        self._news = news
        self._fail = fail
        self._loop: Loop | None = None
        self._publish: Callable[[], None] | None = None
        self._crashed: tuple[str, ExitStatus] | None = None
        self._task: asyncio.Task[None] | None = None

    def attach(self, loop: Loop, publish: Callable[[], None]) -> None:
        """Work with this loop; *publish* writes the number of cycles where others see it."""
        self._loop = loop
        self._publish = publish

    def begin(self, worker: RegisteredWorker) -> None:
        """Have all members end, because of how *worker* did; called from within a turn.

        Ordering: the gates are closed before anything else is decided in this turn.
        """
        assert self._loop is not None
        exit = worker.exits[-1]
        why = f"worker {worker.spec.name!r} {exit}"
        log.error("%s: all workers that share its crash scope are ended", why)
        self._crashed = (worker.spec.name, exit)
        self._loop.situation = replace(self._loop.situation, cycle=True)
        self._loop.post_all(happenings.CycleBegan(why))
        if not self._settings.restart_after_crash:
            self._fail(f"{why}, and restart_after_crash is off", None)

    def step(self) -> None:
        """Go on if the last member has ended; called after every turn.

        User code does not run within a turn, so ``on_reset`` gets a task of the host's loop.
        """
        if self._crashed is None or self._task is not None or self._is_stopping:
            return
        if not any(map(_is_up, self._registry.all())):
            self._task = asyncio.get_running_loop().create_task(self._reset())

    async def _reset(self) -> None:
        """Have the application rebuild what its members share, then end the cycle."""
        try:
            _inject("in_cycle")
            on_reset = self._settings.on_reset
            result = on_reset() if on_reset is not None else None
            if inspect.isawaitable(result):
                await result
        except BaseException as error:
            self._task = None  # it is this one, which a stop need not cancel any more
            if not self._is_stopping:
                self._fail(f"on_reset failed: {error!r}", error)
            elif not isinstance(error, asyncio.CancelledError):
                log.exception("on_reset failed while the supervisor was stopping")
            if not isinstance(error, Exception):
                raise
        else:
            self._finish()

    def _finish(self) -> None:
        """Count it, tell it, and let everybody start.

        Ordering: the number is published before any member can look for it.
        """
        if self._is_stopping or self._crashed is None:
            return
        assert self._loop is not None and self._publish is not None
        name, exit = self._crashed
        self._crashed = self._task = None
        self.number += 1
        self._publish()
        self._loop.situation = replace(self._loop.situation, cycle=False)
        self._news.publish(CrashCycle(time.time(), name, exit, self.number))
        log.info("crash cycle %d is over: its workers start again", self.number)
        self._loop.post_all(happenings.Consider())

    @property
    def _is_stopping(self) -> bool:
        return self._loop is None or self._loop.situation.stop is not None

    def cancel(self) -> None:
        """Take no further step; legal on a closed loop, idempotent.

        An ``on_reset`` that is still at work is cancelled, and not waited for: a stop ends.
        """
        task, self._task = self._task, None
        self._crashed = None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()


def _is_up(worker: RegisteredWorker) -> bool:
    """Tell whether a member has a process, or a launch on its way to one."""
    return worker.life.rule.member and worker.life.state not in WAITING
