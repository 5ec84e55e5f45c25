"""Ports: the way from a handle to its worker, in the same process or in another one."""

from __future__ import annotations

from typing import Protocol

from .._ipc.verbs import Verb
from ..status import ExitStatus, WorkerStatus
from .changes import Changes


class Port(Protocol):
    """The way from a handle to its worker."""

    @property
    def changes(self) -> Changes:
        """Told whenever the worker's status may have changed."""

    def status(self) -> WorkerStatus:
        """Return how it is; its last state for ever, once it is over.

        Raises SupervisorDied if that cannot be known, WrongProcess in a fork.
        """

    def look(self) -> WorkerStatus | None:
        """Return how it is, None if that will be known only after a change."""

    def exit_of(self, incarnation: int) -> ExitStatus | None:
        """Return how an incarnation ended, or the last one if that is forgotten."""

    def request(self, verb: Verb, argument: int = 0) -> None:
        """Pass a request on; one that comes too late does nothing."""
