"""A member of a group: what its leader knows of one worker, and when it failed."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import NeverStarted, WorkerFailed
from ..status import ExitKind, ExitStatus, WorkerState
from . import waits
from .handle import WorkerHandle


class Member:
    """One worker, as its group last saw it.  The group is its one observer."""

    __slots__ = ("_blamed", "_observer", "came_up", "handle", "is_over")

    def __init__(self, handle: WorkerHandle) -> None:
        self.handle = handle
        self.came_up = self.is_over = False
        self._blamed = -1  # the incarnation whose failure was returned; 0: it never had one
        self._observer: Callable[[], None] | None = None

    def observe(self, observer: Callable[[], None]) -> None:
        """Call *observer* at every change, from inside the supervisor's turn."""
        self._observer = observer
        self.handle._port.changes.call(observer)

    def forget(self) -> None:
        """Drop the observer: nothing changes any more, and no cycle shall be left."""
        if self._observer is not None:
            self.handle._port.changes.forget(self._observer)
            self._observer = None

    def look(self) -> Exception | None:
        """See how it is; return its failure, the first time that it is seen."""
        status = self.handle._port.look()
        if status is None:
            return None  # it is told when more is known
        ended = status.exit.incarnation if status.exit is not None else 0
        self.is_over = status.state is WorkerState.STOPPED
        failure = None
        try:
            if not self.came_up:
                seen = max(self._blamed, 0)
                self.came_up = waits.look_ready(status, seen) is not None
            if self.is_over:
                failure = self.handle._failure()
        except (NeverStarted, WorkerFailed) as error:
            failure = error.with_traceback(None)

        if failure is None or self._blamed == ended:
            return None
        self._blamed = ended
        return failure

    @property
    def exit(self) -> ExitStatus:
        """How it ended for good; of unknown kind, incarnation 0, if it never ran."""
        status = self.handle.status()
        return status.exit or ExitStatus(
            incarnation=0, kind=ExitKind.UNKNOWN, reason=status.reason, name=status.name
        )
