"""Signs of life, for workers whose spec has a watchdog.

An async target gives them by itself, from its event loop: one that is blocked gives none.  A
plain one calls ``beat()``, as often as it likes.

A beat never waits.  One that finds much unread in the channel is left out: a supervisor that does
not read (it may be stopped) must not find the channel full of them, nor the worker no room
for what it has to say.
"""

from __future__ import annotations

import os
from time import monotonic

from .._ipc import launch
from .._ipc.channel import Channel
from ..errors import WrongProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

IN_LOOP = 1 / 3
AT_MOST = 1 / 10
"""Parts of the watchdog's time: how often a loop beats, and how often anybody is heard."""

UNREAD = 8_192
"""Bytes, as the kernel counts them, that may wait in the channel before beats are left out."""


class Beats:
    """The beats of one worker.  Any thread may use it: at worst there is a beat too many."""

    def __init__(self, channel: Channel, watchdog: float) -> None:
        self._channel = channel
        self._watchdog = watchdog
        self._next_at = 0.0
        self._pid = os.getpid()

    def beat(self) -> None:
        """Give a sign of life, unless there was one a moment ago."""
        now = monotonic()
        if now < self._next_at:
            return
        if os.getpid() != self._pid:
            raise WrongProcess("current_worker()")  # a fork must not speak for its parent
        self._next_at = now + self._watchdog * AT_MOST
        try:
            if self._channel.unread() <= UNREAD:
                self._channel.send(launch.beat())
        except OSError:
            pass  # no room, or nobody listens: a beat is not worth waiting

    def come_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have *loop* beat, for as long as it runs: what it does after the target, too."""
        loop.call_later(self._watchdog * IN_LOOP, self._beat_from, loop)

    def _beat_from(self, loop: asyncio.AbstractEventLoop) -> None:
        self.beat()
        self.come_from(loop)
