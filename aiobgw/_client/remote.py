"""The way from a handle to a worker of another process's supervisor."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .._ipc.verbs import Verb
from ..status import ExitStatus, WorkerState, WorkerStatus
from .changes import Changes

if TYPE_CHECKING:
    from .connection import Connection

EXITS_KEPT = 16


class Watched:
    """What a client remembers of a worker it watches; shared by all handles of it."""

    __slots__ = ("__weakref__", "changes", "exits", "final", "last")

    def __init__(self) -> None:
        self.changes = Changes()
        self.last: WorkerStatus | None = None
        self.final: WorkerStatus | None = None
        self.exits: deque[ExitStatus] = deque(maxlen=EXITS_KEPT)

    def note(self, status: WorkerStatus, *, final: bool = False) -> None:
        """Remember a status, and each exit once; the last one is remembered for ever."""
        self.last = status
        if final or status.state is WorkerState.STOPPED:
            self.final = status
        exit = status.exit
        if exit is not None and (not self.exits or self.exits[-1] != exit):
            self.exits.append(exit)


class RemotePort:
    """The way from a handle to a worker through a client's connection."""

    __slots__ = ("_connection", "_generation", "_slot", "_watched")

    def __init__(
        self, connection: Connection, watched: Watched, slot: int, generation: int
    ) -> None:
        self._connection = connection
        self._watched = watched
        self._slot = slot
        self._generation = generation

    @property
    def key(self) -> tuple[int, int]:
        return self._slot, self._generation

    @property
    def changes(self) -> Changes:
        return self._watched.changes

    def status(self) -> WorkerStatus:
        """Return how it is; STOPPED without an exit if its slot has another tenant by now."""
        status = self.look()
        if status is not None:
            return status
        last = self._watched.last
        return WorkerStatus(
            name=last.name if last else "",
            type=last.type if last else "",
            state=WorkerState.STOPPED,
            slot=self._slot,
            generation=self._generation,
            reason="over; how it ended is on its way",
        )

    def look(self) -> WorkerStatus | None:
        connection, watched = self._connection, self._watched
        connection.check()
        if watched.final is not None:
            return watched.final
        connection.look_alive()
        status = connection.read(self._slot) if connection.welcome is not None else None
        if status is not None and status.generation == self._generation:
            watched.note(status)
        else:
            connection.drain()  # its last status may have come
            status = watched.final
        if connection.over is not None and watched.final is None:
            raise connection.ending()
        return status

    def exit_of(self, incarnation: int) -> ExitStatus | None:
        exits = self._watched.exits
        return next((exit for exit in exits if exit.incarnation == incarnation), None)

    def request(self, verb: Verb, argument: int = 0) -> None:
        self._connection.check()
        if self._watched.final is None:
            self._connection.ask(verb, self._slot, self._generation, argument)
