"""Memory: looks once a second at what workers with a ``memory_max`` have resident.

It is the process's own, as the kernel counts it: pages that it shares with the zygote are in it,
its children are not.  While no such worker is up there is no timer, and psutil is not imported.

Race: a pid may be another process by the time it is read.  It is the worker's as long as its
pidfd can be signalled, so that is looked at after each reading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._policy.happenings import Happening, OverLimit
from .._process.events import Launch
from .._process.watcher import Watcher
from .registry import RegisteredWorker

if TYPE_CHECKING:
    import psutil

INTERVAL = 1.0
PER_TURN = 20
"""Readings in one turn: about half a millisecond."""

log = logging.getLogger("aiobgw")


class Memory:
    """The workers whose memory is looked at."""

    def __init__(
        self, watcher: Watcher, post: Callable[[RegisteredWorker, Happening], None]
    ) -> None:
        self._watcher = watcher
        self._post = post
        self._watched: dict[RegisteredWorker, _Incarnation] = {}
        self._left: list[RegisteredWorker] = []
        self._next_at = 0.0

    def watch(self, worker: RegisteredWorker) -> None:
        """Look at a worker whose process has just come up, if it has a limit, until its end."""
        if worker.spec.memory_max is None or worker.launch is None:
            return
        self._watched[worker] = _Incarnation(worker.launch)
        if not self._watcher.has_timer("memory"):
            self._begin_round()

    def _begin_round(self) -> None:
        """Look at everybody a second after the last time."""
        self._next_at = time.monotonic() + INTERVAL
        self._left = []
        self._watcher.timer("memory", self._next_at, self._look)

    def _look(self) -> None:
        """Look at some, and go on in the next turn; at the end, wait for the next second."""
        if not self._left:
            self._left = list(self._watched)
        some, self._left = self._left[:PER_TURN], self._left[PER_TURN:]
        for worker in some:
            self._look_at(worker)
        if self._left:
            self._watcher.timer("memory", time.monotonic(), self._look)
        elif self._watched:
            self._begin_round()

    def _look_at(self, worker: RegisteredWorker) -> None:
        incarnation = self._watched[worker]
        limit = worker.spec.memory_max
        if worker.launch is not incarnation.launch or worker.pid is None or limit is None:
            del self._watched[worker]
            return
        size = incarnation.resident(worker.pid)
        if size is None:
            del self._watched[worker]
        elif size > limit:
            why = f"resident memory {size} bytes is above memory_max ({limit})"
            self._post(worker, OverLimit(why))


class _Incarnation:
    """One process that is looked at."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._process: psutil.Process | None = None

    def resident(self, pid: int) -> int | None:
        """Return its resident bytes; None if it is over."""
        import psutil

        try:
            if self._process is None:
                self._process = psutil.Process(pid)
            size = int(self._process.memory_info().rss)
        except psutil.Error as error:
            log.debug("memory of pid %d: %s", pid, error)
            return None
        return size if self.launch.signal(0) else None
