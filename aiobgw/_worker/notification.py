"""The descriptor on which a command says that it is ready: s6's protocol, the worker's side."""

from __future__ import annotations

import os

from .._ipc.channel import Channel


def give(fd: int, number: int, channel: Channel, lifeline: int) -> tuple[Channel, int]:
    """Make *fd* the program's descriptor *number*; return where channel and lifeline are then.

    Whatever else has that number is closed by it.  Ownership: a channel that moves leaves its
    number at once, or its old object would close the new tenant.  A copy of the lifeline is as
    armed as the lifeline is: that belongs to the open file description.
    """
    if channel.fd == number:
        channel = Channel.adopt(_elsewhere(channel.detach()))
    if lifeline == number:
        lifeline = _elsewhere(lifeline)
    if fd == number:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, number)
        os.close(fd)
    return channel, lifeline


def _elsewhere(fd: int) -> int:
    """Copy a descriptor to another number; its own one is about to be taken."""
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    return fcntl(fd, F_DUPFD_CLOEXEC, 3)
