"""Where a worker runs, and how much it may take: what is set before privileges are dropped.

Each of these is as the spec says, or nothing of the worker runs.  To raise a hard limit, or
one's priority, takes a right that is gone afterwards.
"""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    Limit = int | tuple[int, int]

LIMITS = ("cwd", "umask", "nice", "cpus", "rlimits")


def steps(options: Mapping[str, Any], entrance: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return what is to be done, in order, each with the field that it is for."""
    if entrance >= 0:
        yield "cgroup", lambda: _enter(entrance)
    for field in LIMITS:
        if field in options:
            yield field, _step(_STEPS[field], options[field])


def _step(step: Callable[[Any], object], value: object) -> Callable[[], object]:
    return lambda: step(value)


def _enter(entrance: int) -> None:
    """Go into the cgroup that the supervisor has made, and keep no way to it.

    Ordering: before all else that may take something.  The kernel asks who has opened the
    file, which was the supervisor; "0" means whoever writes.
    """
    try:
        os.write(entrance, b"0")
    finally:
        os.close(entrance)


def _set_nice(nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    got = os.getpriority(os.PRIO_PROCESS, 0)
    if got != nice:
        raise ValueError(f"it is {got}")


def _set_cpus(cpus: Sequence[int]) -> None:
    os.sched_setaffinity(0, cpus)
    got = os.sched_getaffinity(0)
    if got != set(cpus):  # the kernel leaves out, without a word, those that are not there
        raise ValueError(f"of these there are only {sorted(got)}")


def _set_rlimits(limits: Mapping[str, Limit]) -> None:
    for name, limit in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        wanted = (limit, limit) if isinstance(limit, int) else (limit[0], limit[1])
        try:
            resource.setrlimit(number, wanted)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
        if resource.getrlimit(number) != wanted:
            raise ValueError(f"{name}: it is {resource.getrlimit(number)}")


_STEPS: dict[str, Callable[[Any], object]] = {
    "cwd": os.chdir,
    "umask": os.umask,
    "nice": _set_nice,
    "cpus": _set_cpus,
    "rlimits": _set_rlimits,
}
