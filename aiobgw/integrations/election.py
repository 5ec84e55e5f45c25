"""Elections: which process of this host owns a supervisor that several share.

The instance lock of the runtime directory decides; here is how a process gets to an answer,
and how long it waits before it asks again after a failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from .._client.attach import attach
from .._client.client import Client
from .._supervisor.supervisor import Supervisor
from ..errors import AlreadyRunning, InvalidSpec, NotAttached, SupervisorDied
from ..settings import Settings
from ..spec import Phase, WorkerSpec

FIRST_LOOK = 0.01
LAST_LOOK = 0.05
SLOWER = 1.5
LOG_INTERVAL = 5.0

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
LEAVING_PAUSE = 1.0
"""Longer than servers take to have all their processes leave: gunicorn's look once a second."""

STEADY_SECONDS = 10.0
"""A supervisor that ran for so long has been no failed attempt, whatever ended it."""

log = logging.getLogger("aiobgw")


class Candidate:
    """What a process needs to take part: which supervisor it is about, and what it would run."""

    def __init__(self, specs: tuple[WorkerSpec, ...], options: dict[str, Any]) -> None:
        self._options = {"runtime_dir": True, **options}
        self.settings = _checked(self._options)
        for spec in specs:
            if not isinstance(spec, WorkerSpec):
                raise InvalidSpec(f"a WorkerSpec is wanted, not {spec!r}")
        self._specs = specs

    async def elect(self, phase: Phase, pause: float = 0.0) -> Supervisor | Client:
        """Attach to the supervisor, or after *pause* start it in *phase*; all or nothing.

        Raises why this process can do neither.  Somebody else's start is waited for.
        """
        began = time.monotonic()
        delay, logged = FIRST_LOOK, began
        while True:
            found = await self._find()
            if found is not None:
                return found
            if time.monotonic() - began >= pause:
                try:
                    return await self._own(phase)
                except AlreadyRunning as error:
                    if time.monotonic() - logged > LOG_INTERVAL:
                        logged = time.monotonic()
                        log.warning("supervisor %r: %s", self.settings.name, error)
            await asyncio.sleep(delay)
            delay = min(delay * SLOWER, LAST_LOOK)

    async def _find(self) -> Client | None:
        """Attach; None if nobody listens or answers."""
        where = self.settings.runtime_dir
        assert where is not None and where is not False
        try:
            return await attach(self.settings.name if where is True else where).__aenter__()
        except (NotAttached, SupervisorDied, TimeoutError):
            return None

    async def _own(self, phase: Phase) -> Supervisor:
        """Start the supervisor; raises AlreadyRunning if another process was faster."""
        supervisor = Supervisor(**{**self._options, "start_phase": phase})
        try:
            for spec in self._specs:
                supervisor.add(spec)
            await supervisor.__aenter__()
        except BaseException:
            supervisor.abandon()
            raise
        log.info("process %d owns supervisor %r", os.getpid(), self.settings.name)
        return supervisor


def _checked(options: dict[str, Any]) -> Settings:
    settings = Settings(**options)
    if settings.runtime_dir is None or settings.runtime_dir is False:
        raise InvalidSpec(
            "a shared supervisor needs a runtime_dir: its processes meet there",
            hint="leave runtime_dir out, or pass a path",
        )
    if settings.runtime_dir is True and "name" not in options:
        raise InvalidSpec(
            "a shared supervisor needs a name: whoever has the same one shares it",
            hint="pass name='my-app', or runtime_dir='/a/path'",
        )
    if settings.handle_signals:
        raise InvalidSpec(
            "a shared supervisor cannot handle signals: they are its server's",
            hint="leave handle_signals out; it ends when its block is left",
        )
    return settings


class Patience:
    """How long to wait before the next election.

    Who died is replaced at once.  Who left in order may be the first of all, at the end of a
    server: to start everything again then would be wrong.  What failed, or ended very soon,
    may do so again, in every process in turn: that must not go round and round.  All
    processes see the ends, so all of them wait.
    """

    def __init__(self) -> None:
        self._failures = 0

    def after_death(self, seconds: float) -> float:
        """Return the pause after a supervisor that was seen for so long, and then died."""
        return 0.0 if seconds > FIRST_PAUSE else self.after_failure(seconds)

    def after_leaving(self, seconds: float) -> float:
        """Return the pause after one that ended in order, for a reason that its owner knows."""
        return max(LEAVING_PAUSE, self.after_failure(seconds))

    def after_failure(self, seconds: float = 0.0) -> float:
        """Return the pause after one that failed: 0.1, 0.2 ... 5 s, until one is steady."""
        self._failures = 1 if seconds > STEADY_SECONDS else self._failures + 1
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 32))
