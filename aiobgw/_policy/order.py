"""Dependencies: what a worker waits for that names others (``after``), and circles of them.

A name means the newest worker that has it.  A dependency is looked at before each start, and
only then: who has started is not ended because of it, but for a stop of the supervisor,
in which those that depend on others (STARTED, READY) end before them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

from ..spec import After
from ..status import WorkerState
from .groups import is_ready
from .life import Life

Node = TypeVar("Node", bound=Hashable)


class Ended(NamedTuple):
    """How the newest worker of a name ended for good."""

    ok: bool
    how: str


class Unmet(NamedTuple):
    """Why a worker may not start; ``for_good``: it never may."""

    why: str
    for_good: bool = False


def unmet(name: str, after: After, newest: Life | Ended | None) -> Unmet | None:
    """Return what a dependency lacks, None if it holds; *newest* of *name*, None: nobody."""
    if newest is None:
        return Unmet(f"waits for {name!r}, which is not registered")
    if isinstance(newest, Ended):
        return _after_its_end(name, after, newest)
    match after:
        case After.STARTED:
            started = newest.state is WorkerState.RUNNING and not newest.with_group
            return None if started else Unmet(f"waits for {name!r} to start")
        case After.READY:
            return None if is_ready(newest) else Unmet(f"waits for {name!r} to be ready")
        case After.COMPLETED:
            return Unmet(f"waits for {name!r} to complete")


def _after_its_end(name: str, after: After, ended: Ended) -> Unmet | None:
    if after is not After.COMPLETED:
        return Unmet(f"depends on {name!r}, which is over: {ended.how}", for_good=True)
    if not ended.ok:
        return Unmet(f"depends on {name!r}, which did not complete: {ended.how}", for_good=True)
    return None


def find_cycle(start: Node, edges: Callable[[Node], Iterable[Node]]) -> list[Node] | None:
    """Return a way along *edges* from *start* back to it, without its end; None if none."""
    seen = {start}
    way = [start]
    ahead = [iter(edges(start))]
    while ahead:
        for step in ahead[-1]:
            if step == start:
                return way
            if step not in seen:
                seen.add(step)
                way.append(step)
                ahead.append(iter(edges(step)))
                break
        else:
            ahead.pop()
            way.pop()
    return None
