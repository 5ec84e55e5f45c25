"""What waits to be told to a peer, bounded, however long it does not read.

Answers in order (a peer whose answers wait is not read from), one entry for each worker that
it has to look at, and the number of events that it has missed.  Nothing here waits: what does
not go now goes when there is room.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from .._ipc import requests
from .._ipc.channel import Channel
from ..status import Event, EventsLost

CHANGES_PER_MESSAGE = 12
"""With a last status each, they fit into a message."""


class Outbox:
    """The way to one peer; *listen* is called when ``blocked`` or ``deaf`` has changed."""

    def __init__(self, channel: Channel, listen: Callable[[], None]) -> None:
        self.answers: deque[bytes] = deque()
        self.changed: dict[tuple[int, int], bytes | None] = {}
        self.lost = 0
        self.blocked = False
        self.deaf = False
        self._channel = channel
        self._listen = listen

    def answer(self, message: requests.Message) -> None:
        """Send an answer, after those that wait."""
        data = requests.pack(message)
        if self.answers or not self._offer(data):
            self.answers.append(data)
            self._wait_for_room()

    def tell(self, event: Event) -> None:
        """Send an event, or count that it was missed."""
        if self.lost and self._offer(requests.happened(EventsLost(time.time(), self.lost))):
            self.lost = 0
        if self.lost or not self._offer(requests.happened(event)):
            self.lost += 1
            self._wait_for_room()

    def flush(self) -> None:
        """Send what waits, in order: answers, then what to look at."""
        while self.answers:
            if not self._offer(self.answers[0]):
                self._wait_for_room()
                return
            self.answers.popleft()
        while self.changed:
            some = list(self.changed.items())[:CHANGES_PER_MESSAGE]
            told = tuple((slot, generation, body) for (slot, generation), body in some)
            if not self._offer(requests.pack(requests.Changed(told))):
                self._wait_for_room()
                return
            for key, _ in some:
                del self.changed[key]
        self.blocked = False
        self._listen()

    def _offer(self, data: bytes) -> bool:
        """Send without waiting; return whether it went, or never will.

        Race: one that is gone may have asked for something before, which is still to be read;
        the end of what it sent is the end of the peer.
        """
        if self.deaf:
            return True
        try:
            self._channel.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self.deaf = True
            self._listen()
        return True

    def _wait_for_room(self) -> None:
        self.blocked = True
        self._listen()
