"""News: turns changes of workers into events, for those who subscribed."""

from __future__ import annotations

import time
from typing import Protocol
from weakref import WeakSet

from .._client.events import EventStream
from .._policy.life import Life
from ..status import (
    Event,
    Exited,
    Ready,
    Registered,
    Restarting,
    Retired,
    Started,
    WorkerEvent,
    WorkerState,
)
from .registry import RegisteredWorker


class Sink(Protocol):
    """Who hears of events; it must not wait."""

    def push(self, event: Event) -> None:
        """Take an event."""


class News:
    """The streams of events of one supervisor; a stream that is dropped is forgotten."""

    def __init__(self) -> None:
        self._streams: WeakSet[Sink] = WeakSet()

    def subscribe(self) -> EventStream:
        stream = EventStream()
        self._streams.add(stream)
        return stream

    def add(self, sink: Sink) -> None:
        """Have *sink* hear of everything from now on."""
        self._streams.add(sink)

    def remove(self, sink: Sink) -> None:
        self._streams.discard(sink)

    def publish(self, event: Event) -> None:
        for stream in list(self._streams):
            stream.push(event)

    def registered(self, worker: RegisteredWorker) -> None:
        if self._streams:
            self.publish(Registered(time.time(), worker.status()))

    def exited(self, worker: RegisteredWorker) -> None:
        if self._streams:
            self.publish(Exited(time.time(), worker.status()))

    def changed(self, worker: RegisteredWorker, before: Life) -> None:
        """Tell of the state that a worker has come to, and of its readiness."""
        if not self._streams:
            return
        kind = _event(worker.life, before)
        if kind is not None:
            self.publish(kind(time.time(), worker.status()))
        up = worker.life.state is WorkerState.RUNNING and worker.life.ready
        was_up = before.state is WorkerState.RUNNING and before.ready
        if up and not was_up:
            self.publish(Ready(time.time(), worker.status()))


def _event(life: Life, before: Life) -> type[WorkerEvent] | None:
    """Return the event for a change of state, if there is one for it."""
    if life.state is before.state:
        return None
    if life.state is WorkerState.STARTING and before.state is WorkerState.STOPPING:
        return Restarting  # at once, because it was asked for
    return _EVENTS.get(life.state)


_EVENTS: dict[WorkerState, type[WorkerEvent]] = {
    WorkerState.RUNNING: Started,
    WorkerState.BACKOFF: Restarting,
    WorkerState.STOPPED: Retired,
}
