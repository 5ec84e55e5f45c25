"""Token buckets: how much a peer may ask for at once, and for how long it then waits."""

from __future__ import annotations


class Bucket:
    """A bucket of *size* tokens that fills at *per_second*."""

    __slots__ = ("_at", "_per_second", "_size", "_tokens")

    def __init__(self, size: float, per_second: float) -> None:
        self._size = self._tokens = float(size)
        self._per_second = per_second
        self._at = 0.0

    def take(self, now: float, tokens: float = 1.0) -> None:
        """Take tokens, which may leave a debt."""
        self._fill(now)
        self._tokens -= tokens

    def free_at(self, now: float) -> float:
        """Return when something may be taken again: *now*, or the moment the debt is paid."""
        self._fill(now)
        return now if self._tokens >= 0 else now - self._tokens / self._per_second

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self._at) * self._per_second
        self._tokens = min(self._size, self._tokens + gained)
        self._at = now
