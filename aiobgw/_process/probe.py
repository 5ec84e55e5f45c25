"""What this machine can do: found out at start, by doing it, not at the first crash."""

from __future__ import annotations

import os
import resource
import select
import sys
from collections.abc import Callable

from ..errors import Unsupported
from . import lifeline

RESERVE = 64
"""Descriptors that are left for everything that is not a worker."""

_PER_WORKER = 3  # channel, pidfd, and one more: a channel as a client, or what its spec brings


def check() -> None:
    """Raise Unsupported, naming what is missing."""
    if sys.platform != "linux":
        raise Unsupported(f"aiobgw runs on Linux, this is {sys.platform}")
    for what, since, attempt in _ATTEMPTS:
        try:
            attempt()
        except (OSError, AttributeError) as error:
            raise Unsupported(
                f"{what} does not work here: {error}",
                hint=f"needs Linux {since}, a mounted /proc, and no seccomp rule against it",
            ) from error


def _try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_memfd() -> None:
    from .._ipc.board import BoardReader, BoardWriter

    board = BoardWriter(1, 0)
    try:
        board.write(0, b"probe")
        BoardReader(board.fd).close()
    finally:
        board.close()


def _try_eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _try_epoll() -> None:
    select.epoll().close()


def _try_lifeline() -> None:
    line = lifeline.Lifeline()
    armed = -1
    try:
        armed = lifeline.reopen(line.read_end)
        # SIGCONT to ourselves would be harmless, but nothing is written to this pipe.
        lifeline.arm(armed, 18)
    finally:
        if armed >= 0:
            os.close(armed)
        line.close()


_ATTEMPTS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("pidfd_open", "5.4", _try_pidfd),
    ("a sealed memfd", "5.4", _try_memfd),
    ("eventfd", "5.4", _try_eventfd),
    ("epoll", "5.4", _try_epoll),
    ("/proc/self/fd with O_ASYNC on a pipe", "5.4", _try_lifeline),
)


def interpreter(python: str | None) -> str:
    """Return the interpreter for workers; raise Unsupported if there is none to guess."""
    if python is not None:
        return python
    if getattr(sys, "frozen", False):
        raise Unsupported(
            "a frozen executable cannot run workers by itself",
            hint="give the path of an interpreter: Supervisor(python=...)",
        )
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        raise Unsupported(
            f"sys.executable is {sys.executable!r}, no interpreter",
            hint="give the path of one: Supervisor(python=...)",
        )
    return sys.executable


def make_room(max_workers: int, spares: int, clients: int) -> int | None:
    """Raise the soft limit of descriptors to what is needed.

    Returns the old one, which workers get back (their ``select`` may depend on it); None if
    nothing was changed.  Raises Unsupported with the figures if the hard limit is too low.
    """
    needed = _PER_WORKER * max_workers + 2 * spares + clients + RESERVE
    needed += len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Unsupported(
            f"{max_workers} workers and {spares} spares need {needed} descriptors,"
            f" {hard} are allowed",
            hint="lower Supervisor(max_workers=...) or raise the limit (ulimit -Hn)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return soft
