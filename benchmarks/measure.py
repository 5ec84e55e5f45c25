"""What every benchmark needs: samples by round, figures from them, and a table.

A figure is the median over the rounds of what a round gave (its median, its p99), so that a
bad round counts once.  A ratio is taken within a round, and only then is the median taken:
what slows a whole round down slows both sides of it.  The p99 of a few dozen samples is about
the worst of them: read it as such.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Rounds = list[list[float]]


class Figure(NamedTuple):
    """What is told of one thing: seconds, and how many times the base's it is."""

    median: float
    p99: float
    ratio: float
    rounds: list[float]


class Samples:
    """Seconds by what was measured and by round."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, str], Rounds] = {}

    def add(self, name: str, metric: str, samples: Iterable[float]) -> None:
        """Add a round."""
        self._rounds.setdefault((name, metric), []).append(list(samples))

    def figure(self, name: str, metric: str, base: tuple[str, str]) -> Figure | None:
        """Return a figure, compared with *base*; None if it was not measured."""
        rounds = self._rounds.get((name, metric))
        if rounds is None:
            return None
        medians = [median(samples) for samples in rounds]
        bases = [median(samples) for samples in self._rounds[base]]
        ratios = [one / other for one, other in zip(medians, bases, strict=True)]
        worst = median(percentile(samples, 0.99) for samples in rounds)
        return Figure(median(medians), worst, median(ratios), medians)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that *share* of all do not exceed."""
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def rotated(things: Sequence[T], by: int) -> list[T]:
    """Return *things* with another one first, so that none always follows the same."""
    at = by % len(things)
    return [*things[at:], *things[:at]]


def table(rows: Mapping[str, Sequence[Figure | None]], columns: Sequence[str]) -> str:
    """Return figures as text: microseconds, and ratios."""
    width = max(map(len, rows))
    head = f"{'us':{width}}" + "".join(f" | {name:>12} {'p99':>7} {'ratio':>6}" for name in columns)
    lines = [head, "-" * len(head)]
    for name, figures in rows.items():
        lines.append(f"{name:{width}}" + "".join(f" | {_cell(figure)}" for figure in figures))
    return "\n".join(lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return f"{'-':>12} {'-':>7} {'-':>6}"
    return f"{figure.median * 1e6:12,.0f} {figure.p99 * 1e6:7,.0f} {figure.ratio:6.2f}"


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the host's event loop: "asyncio" or "uvloop"."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop
