"""What workers did while a test ran, as text for its failure report."""

from __future__ import annotations

import enum
import textwrap
from collections import deque
from collections.abc import Iterator

from .._supervisor import census
from .._supervisor.core import Core
from .._supervisor.supervisor import Supervisor
from ..status import Event, Exited, ExitStatus, WorkerEvent, WorkerState, WorkerStatus

WORKERS_KEPT = 50
EXITS_KEPT = 5


class Telling(enum.Enum):
    """Which workers a report has."""

    ALL = "all"
    RECENT = "those that live, and those of which something was heard since"
    FAILED = "those that failed since, with these failures"


class _Story:
    """One worker: how it is or was last, its last pid, its last exits, and what was told of it."""

    __slots__ = ("exits", "fresh", "pid", "status", "told")

    def __init__(self, status: WorkerStatus) -> None:
        self.status = status
        self.pid = status.pid
        self.exits: deque[ExitStatus] = deque(maxlen=EXITS_KEPT)
        self.fresh = True
        self.told = 0

    @property
    def is_over(self) -> bool:
        return self.status.state is WorkerState.STOPPED

    def take(self, status: WorkerStatus) -> None:
        self.fresh = self.fresh or status != self.status
        self.status = status
        self.pid = status.pid or self.pid

    def all_was_told(self) -> None:
        self.fresh = False
        self.told = self.exits[-1].incarnation if self.exits else 0

    def exits_for(self, telling: Telling) -> list[ExitStatus]:
        if telling is not Telling.FAILED:
            return list(self.exits)
        return [exit for exit in self.exits if exit.incarnation > self.told and not exit.ok]

    def is_for(self, telling: Telling) -> bool:
        if telling is Telling.RECENT:
            return self.fresh or not self.is_over
        return telling is Telling.ALL or bool(self.exits_for(telling))

    def lines(self, telling: Telling) -> Iterator[str]:
        status = self.status
        facts = [status.state.value]
        facts += [f"pid {self.pid}"] * bool(self.pid)
        facts += [f"incarnation {status.incarnation}"] * (status.incarnation > 1)
        facts += [f"restarts {status.restarts}"] * (status.restarts > 0)
        facts += [status.reason] * bool(status.reason)
        yield f"  worker {status.name!r}: {', '.join(facts)}"
        for exit in self.exits_for(telling):
            yield f"    incarnation {exit.incarnation}: {exit}"
            if exit.error:
                yield textwrap.indent(exit.error.rstrip(), "      ")


class Record:
    """The workers of one supervisor, heard of from before its start; the last ones are kept.

    Not a stream of events: that one keeps the first.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._name = supervisor.name
        self._core: Core | None = census.core_of(supervisor)
        self._stories: dict[int, _Story] = {}
        self._left_out = 0
        self._end: list[str] = []
        self._core.news.add(self)

    def push(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, WorkerEvent):
            story = self._story(event.status)
            if isinstance(event, Exited) and event.status.exit is not None:
                story.exits.append(event.status.exit)

    def _story(self, status: WorkerStatus) -> _Story:
        story = self._stories.get(status.generation)
        if story is None:
            story = self._stories[status.generation] = _Story(status)
            self._make_room()
        story.take(status)
        return story

    def _make_room(self) -> None:
        """Forget the oldest of those that are over, else the oldest."""
        if len(self._stories) <= WORKERS_KEPT:
            return
        over = (number for number, story in self._stories.items() if story.is_over)
        del self._stories[next(over, next(iter(self._stories)))]
        self._left_out += 1

    def all_was_told(self) -> None:
        """Begin anew: what was heard so far is not recent any more."""
        self._look()
        for story in self._stories.values():
            story.all_was_told()

    def _look(self) -> None:
        for worker in self._core.registry.all() if self._core is not None else ():
            self._story(worker.status())

    def close(self) -> None:
        """Let go of the supervisor: what it refers to would outlive its test."""
        self._look()
        self._end = self._head()
        self._core = None

    def _head(self) -> list[str]:
        if self._core is None:
            return self._end
        lines = [f"supervisor {self._name!r}: {self._core.stage.value}"]
        if self._core.failure is not None:
            lines.append(f"  it gave up: {self._core.failure}")
        return lines

    def text(self, telling: Telling) -> str:
        """Return what is known; "" if there is nothing of what is to be told."""
        self._look()
        stories = [story for story in self._stories.values() if story.is_for(telling)]
        if telling is not Telling.ALL and not stories:
            return ""
        lines = list(self._head())
        if telling is Telling.ALL and self._left_out:
            lines.append(f"  {self._left_out} more workers, not shown")
        lines += [line for story in stories for line in story.lines(telling)] or ["  no workers"]
        return "\n".join(lines)
