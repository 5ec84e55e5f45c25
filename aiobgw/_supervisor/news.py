"""News: turns changes of workers into events, for those who subscribed."""

from __future__ import annotations

import time
from typing import Protocol
from weakref import WeakSet

from .._client.events import EventStream
from ..status import (
    Event,
    Exited,
    Ready,
    Registered,
    Restarting,
    Retired,
    Started,
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

    def changed(self, worker: RegisteredWorker, before: WorkerState) -> None:
        """Tell of the state that a worker has come to."""
        if not self._streams or worker.life.state is before:
            return
        kind = _EVENTS.get(worker.life.state)
        if worker.life.state is WorkerState.STARTING and before is WorkerState.STOPPING:
            kind = Restarting  # at once, because it was asked for
        if kind is None:
            return
        status = worker.status()
        self.publish(kind(time.time(), status))
        if kind is Started and worker.ready:
            self.publish(Ready(time.time(), status))


_EVENTS = {
    WorkerState.RUNNING: Started,
    WorkerState.BACKOFF: Restarting,
    WorkerState.STOPPED: Retired,
}
