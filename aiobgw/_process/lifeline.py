"""The lifeline: a pipe whose last write end only the supervisor has.

When that end goes, by ``close``, by SIGKILL or by ``execv``, the kernel itself sends SIGKILL to
the group of everybody who has armed a read end: also to processes that ignore signals,
are stuck in C, or are stopped.

Ownership: owner and signal of a read end (F_SETOWN, F_SETSIG) belong to its *open file
description*, not to the descriptor.  So each child gets a description of its own, opened by the
zygote before the fork; it stays armed as long as anybody holds a copy.  For commands the
zygote keeps one: a program that closes all its descriptors is still ended.

Race: the supervisor may be gone before the pipe is armed, so whoever has armed it looks once
afterwards.
"""

from __future__ import annotations

import fcntl
import os
import select
from _signal import SIGKILL  # a plain number: an enum's member runs much code to become one

_F_SETSIG = 10
_ARMED = os.O_NONBLOCK | os.O_ASYNC


class Lifeline:
    """The supervisor's side: both ends of the pipe."""

    __slots__ = ("read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Let go; if this is the last copy of the write end, all who are armed die now."""
        for fd in (self.write_end, self.read_end):
            if fd >= 0:
                os.close(fd)
        self.write_end = self.read_end = -1


def reopen(read_end: int) -> int:
    """Open the pipe again, as a description of its own."""
    # O_NONBLOCK: without a writer, opening would wait for one.
    return os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def arm(fd: int, signum: int = SIGKILL) -> None:
    """Have the caller's process group get *signum* when the supervisor goes."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, _F_SETSIG, signum)
    fcntl.fcntl(fd, fcntl.F_SETFL, _ARMED)


def is_cut(fd: int) -> bool:
    """Tell whether the supervisor is gone.  (A read would raise at each look: 50 us.)"""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
