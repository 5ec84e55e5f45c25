"""Where a test hears of what happens in its processes: all say it into one FIFO, in order."""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .asgi_targets import FIFO

BOUND = 30.0
Line = dict[str, Any]


class Ear:
    """The reading end.  Fails a test as soon as one worker runs twice."""

    def __init__(self, directory: Path) -> None:
        os.mkfifo(directory / FIFO)
        # Held for writing, too: it does not end when nobody else has it open.
        self._fd = os.open(directory / FIFO, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self._coming: deque[Line] = deque()
        self.heard: list[Line] = []

    def next(self, bound: float = BOUND) -> Line:
        """Return what is said next; fails if nothing is."""
        give_up = time.monotonic() + bound
        while not self._coming:
            left = give_up - time.monotonic()
            assert left > 0, f"not within {bound} s; before: {self.heard[-10:]}"
            if select.select([self._fd], [], [], left)[0]:
                *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
                self._coming.extend(json.loads(line) for line in lines)
        line = self._coming.popleft()
        self.heard.append(line)
        assert line["what"] != "twice", f"{line} runs twice; before: {self.heard[-10:]}"
        return line

    def wait_for(self, wanted: Callable[[Line], object]) -> Line:
        """Return the next line that is wanted; the others are remembered in ``heard``."""
        while not wanted(line := self.next()):
            pass
        return line

    def starts(self, *names: str) -> dict[str, int]:
        """Wait until each of these workers has started once more; return their pids."""
        found: dict[str, int] = {}
        while found.keys() != set(names):
            line = self.wait_for(lambda line: line["what"] == "start")
            assert line["name"] in names, line
            assert line["name"] not in found, f"{line} started again"
            found[line["name"]] = line["pid"]
        return found

    def all(self, what: str) -> list[Line]:
        """Return everything of a kind that has been said so far, waiting for nothing."""
        while self._coming or select.select([self._fd], [], [], 0)[0]:
            self.next()
        return [line for line in self.heard if line["what"] == what]

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def listening(directory: Path) -> Iterator[Ear]:
    ear = Ear(directory)
    try:
        yield ear
    finally:
        ear.close()
