"""A child of the zygote, as the supervisor holds it: a channel, and then a pidfd.

Ownership: both descriptors are the Child's.  ``launch`` is the order it has; None: a spare.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from .._ipc import launch as protocol
from .._ipc.channel import BrokenMessage, Channel
from . import exits

if TYPE_CHECKING:
    from .events import Launch

FRAMES_PER_TURN = 32


class Child:
    """A process of ours, from the request for its fork to its end."""

    __slots__ = (
        "at_end",
        "channel",
        "executed",
        "failure",
        "frames",
        "heard",
        "kind",
        "late",
        "launch",
        "number",
        "pid",
        "pidfd",
        "status",
        "unread",
        "zygote",
    )

    def __init__(self, number: int, kind: str, channel: Channel, zygote: int) -> None:
        self.number = number
        self.kind = kind
        self.zygote = zygote
        self.launch: Launch | None = None
        self.channel: Channel | None = channel
        self.pid = 0
        self.pidfd = -1
        self.frames: list[bytes] = []
        self.status: int | None = None
        self.failure: str | None = None
        self.at_end = False
        self.executed = False
        self.heard = False
        self.late = False
        self.unread = False

    @property
    def said_hello(self) -> bool:
        return self.pidfd >= 0

    @property
    def is_command(self) -> bool:
        return self.launch is not None and self.launch.order.command

    def give_order(self, launch: Launch) -> None:
        """Put an order into the channel; raises OSError if the child is gone, or too busy."""
        if self.channel is None:
            raise BrokenPipeError("the child is gone")
        self.channel.send(launch.order.data, launch.order.fds)
        self.launch = launch
        launch.child = self

    def drain(self, most: int = FRAMES_PER_TURN) -> bool:
        """Take what the child has sent, a bounded part of it; return False at its end."""
        if self.channel is None or self.at_end:
            return False
        self.at_end = not self._take_some(self.channel, most)
        return not self.at_end

    def _take_some(self, channel: Channel, most: int) -> bool:
        for _ in range(most):
            try:
                data, fds = channel.receive(0 if self.said_hello else 1)
            except BlockingIOError:
                return True
            except (OSError, BrokenMessage) as error:
                # ECONNRESET: it ended, and had not read what we sent.
                self.unread = isinstance(error, ConnectionResetError) and not self.heard
                return False
            if not (self._take_frame(data) if self.said_hello else self._take_hello(data, fds)):
                return False
        return True

    def _take_frame(self, data: bytes) -> bool:
        if not data:
            self.executed = self.is_command and self.failure is None
            return False

        self.heard = True
        if data[:1] == protocol.FAILED:
            self._take_failure(data)
        else:
            self.frames.append(data)
        return True

    def _take_hello(self, data: bytes, fds: list[int]) -> bool:
        if data[:1] == protocol.FAILED:
            self._take_failure(data)
        elif data:
            self._take_identity(data, fds)
        if self.failure is None and fds:
            self.pidfd = fds.pop()
        for fd in fds:
            os.close(fd)
        return self.said_hello

    def _take_identity(self, data: bytes, fds: list[int]) -> None:
        try:
            self.pid = protocol.read_hello(data)
        except protocol.BadFrame as error:
            self.failure = str(error)

    def _take_failure(self, data: bytes) -> None:
        try:
            self.failure = protocol.read_coded(data)[1]
        except protocol.BadFrame as error:
            self.failure = str(error)

    def signal(self, signum: int) -> bool:
        """Send a signal; False if there is no process (yet, or any more)."""
        return self.pidfd >= 0 and exits.send(self.pidfd, signum)

    def kill_group(self) -> bool:
        """Send SIGKILL to all of its group, and to itself, which may not lead one yet.

        If it has a cgroup, that is killed first, with all sessions in it.
        """
        if self.launch is not None and self.launch.order.cgroup is not None:
            self.launch.order.cgroup.kill()
        if self.pidfd < 0:
            return False
        group = exits.kill_group(self.pidfd)
        return exits.send(self.pidfd, signal.SIGKILL) or group

    def find_status(self) -> int | None:
        """Look for the wait status: in the pidfd, else in /proc."""
        if self.status is None:
            self.status = exits.reaped_status(self.pidfd)
        if self.status is None:
            self.status = exits.zombie_status(self.pid, self.pidfd)
        return self.status

    def close(self) -> None:
        """Give both descriptors back; without its channel a child calls no target."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
