"""Streams of events: bounded, and honest about what they lost."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import final

from ..status import Closed, Event, EventsLost

LIMIT = 1024


@final
class EventStream:
    """Iterate over it with ``async for``; it was subscribed when it was made.

    Holds LIMIT events.  What comes while it is full is counted, and an EventsLost tells the
    number before the next one.  Ends after Closed.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._lost = 0
        self._closed = self._ended = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: Event) -> None:
        """Take an event; never waits, never raises.  Nothing comes after Closed."""
        if self._closed:
            return
        self._closed = isinstance(event, Closed)
        if len(self._events) >= LIMIT and not isinstance(event, Closed):
            self._lost += 1
            return
        if self._lost:
            self._events.append(EventsLost(time.time(), self._lost))
            self._lost = 0
        self._events.append(event)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise *error* after what has come so far: nothing more will come, not even Closed."""
        if not self._closed:
            self._closed = True
            self._failure = error
            self._wake()

    def take(self) -> Event | None:
        """Return the next event, None if there is none yet; raises StopIteration at the end."""
        if self._events:
            event = self._events.popleft()
            self._ended = isinstance(event, Closed)
            return event
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise StopIteration
        return None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while True:
            try:
                event = self.take()
            except StopIteration:
                raise StopAsyncIteration from None
            if event is not None:
                return event
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("one task at a time may iterate over a stream of events")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
