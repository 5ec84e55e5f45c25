"""The deadlines of all workers: at most one each, the earliest found at once.

A heap with lazy deletion.  Invariant: ``_current`` holds the truth; an entry of the heap
that disagrees with it is dead and is dropped when it comes to the top.  Dead entries are
swept when they outnumber the living ones, so that memory follows the number of workers.
"""

from __future__ import annotations

import heapq


class Deadlines:
    """Moments on the monotonic clock, by a number."""

    __slots__ = ("_current", "_heap")

    def __init__(self) -> None:
        self._current: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def set(self, key: int, at: float | None) -> None:
        """Set, move or (None) clear the deadline of *key*."""
        if self._current.get(key) == at:
            return
        if at is None:
            del self._current[key]
        else:
            self._current[key] = at
            heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._current) + 16:
            self._heap = [(moment, key) for key, moment in self._current.items()]
            heapq.heapify(self._heap)

    def first(self) -> float | None:
        """Return the earliest moment, None if there is none."""
        heap = self._heap
        while heap and self._current.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> int | None:
        """Remove and return a key whose moment has come."""
        first = self.first()
        if first is None or first > now:
            return None

        key = heapq.heappop(self._heap)[1]
        del self._current[key]
        return key

    def __len__(self) -> int:
        return len(self._current)
