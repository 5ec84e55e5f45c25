"""What the launcher is asked for, and what it tells: values, and the ticket of a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .cgroup import Cgroup
    from .child import Child


class Order(NamedTuple):
    """What a child shall do: bytes and descriptors that mean nothing here.

    The descriptors stay the caller's, and must stay open until the launch has a process; so
    does the cgroup, which is killed with the process.
    """

    data: bytes
    fds: tuple[int, ...] = ()
    command: bool = False
    kind: str = "plain"
    cgroup: Cgroup | None = None


class Launch:
    """The ticket of a launch: an order, whose it is, and the child that carries it out."""

    __slots__ = ("__weakref__", "child", "order", "owner")

    def __init__(self, order: Order, owner: object) -> None:
        self.order = order
        self.owner = owner
        self.child: Child | None = None

    def signal(self, signum: int) -> bool:
        """Send its process a signal; False if there is none (yet, or any more)."""
        return self.child is not None and self.child.signal(signum)

    def kill_group(self) -> bool:
        """Send SIGKILL to its process, and to all of its group."""
        return self.child is not None and self.child.kill_group()


@runtime_checkable
class Owner(Protocol):
    """Whose launch it is, if it is no worker's: the loop passes its events on."""

    def hear(self, event: ProcessEvent) -> None:
        """Take an event of this launch; it must not wait."""


class SaidHello(NamedTuple):
    """The launch has a process."""

    launch: Launch
    pid: int


class Said(NamedTuple):
    """The process sent a frame."""

    launch: Launch
    frame: bytes


class Executed(NamedTuple):
    """The command's exec succeeded."""

    launch: Launch


class Ended(NamedTuple):
    """The process is over; *status* is its wait status, None if it could not be had.

    *failure*: why it could not do what it was ordered to (an exec that failed).
    """

    launch: Launch
    status: int | None
    failure: str | None


class Lost(NamedTuple):
    """The order reached no process."""

    launch: Launch
    why: str


class Failed(NamedTuple):
    """The fork failed, and the system said why."""

    launch: Launch
    why: str


class ZygoteUp(NamedTuple):
    """A zygote is ready; not the first one if *again*."""

    pid: int
    again: bool


class ZygoteFailed(NamedTuple):
    """No zygote can be started."""

    error: Exception


ProcessEvent = SaidHello | Said | Executed | Ended | Lost | Failed | ZygoteUp | ZygoteFailed
