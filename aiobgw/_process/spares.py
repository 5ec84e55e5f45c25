"""Which spares there are, and which there should be.

A spare of a kind has made ready for targets of that kind (an event loop, say).  The kinds of
the last few targets tell what will be needed; nobody can know whether "pkg.mod:func" is async
before a worker has imported it, so the first spares are plain.
"""

from __future__ import annotations

from collections import Counter, deque

from .child import Child

PLAIN = "plain"


class Spares:
    """Children that wait for an order; owned by the launcher that forked them."""

    __slots__ = ("_recent", "_waiting", "target")

    def __init__(self, target: int) -> None:
        self.target = target
        self._waiting: list[Child] = []
        self._recent: deque[str] = deque(maxlen=target)

    def add(self, child: Child) -> None:
        self._waiting.append(child)

    def discard(self, child: Child) -> None:
        if child in self._waiting:
            self._waiting.remove(child)

    def take(self, kind: str) -> Child | None:
        """Remove and return the one that fits best: of that kind, else the oldest."""
        for at, child in enumerate(self._waiting):
            if child.kind == kind:
                return self._waiting.pop(at)
        return self._waiting.pop(0) if self._waiting else None

    def used(self, kind: str) -> None:
        """Remember that a target of that kind was started."""
        self._recent.append(kind)

    def missing(self, on_their_way: list[Child]) -> list[str]:
        """Return the kinds to fork, so that there are *target* spares of the recent kinds."""
        have = Counter(child.kind for child in (*self._waiting, *on_their_way))
        wanted = list((Counter(self._recent) - have).elements())
        room = max(0, self.target - have.total())
        return (wanted + [PLAIN] * room)[:room]

    def __len__(self) -> int:
        return len(self._waiting)
