"""Groups: who starts after whom, who stops before whom, and who is restarted with whom."""

from __future__ import annotations

from .._policy import life as happenings
from .loop import Loop
from .registry import RegisteredWorker, Registry


class Groups:
    """The groups of one supervisor."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._loop: Loop | None = None

    def attach(self, loop: Loop) -> None:
        """Work with this loop."""
        self._loop = loop

    def stop(self, worker: RegisteredWorker, why: str) -> None:
        """End all others of a worker's group for good; called from within a turn."""
        if self._loop is None or worker.spec.group is None:
            return
        for other in reversed(self._registry.all()):
            if other.spec.group == worker.spec.group:
                self._loop.post(other, happenings.TerminateAsked())
