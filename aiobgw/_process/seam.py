"""The seam at which tests replace processes: what a supervisor wants of a launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from .events import Launch, Order, ProcessEvent
from .watcher import Watcher


class LauncherMaker(Protocol):
    """What a supervisor is given instead of its own launcher."""

    def make(self) -> LauncherSeam:
        """Return the launcher, once; raises if it is another supervisor's already."""


class LauncherSeam(Protocol):
    """Launches, and tells what became of it; nothing here waits."""

    @property
    def watcher(self) -> Watcher:
        """Every descriptor and timer of the supervisor; its epoll is what the loop reads."""

    def start(self, turn: Callable[[], None]) -> None:
        """Begin; *turn* may be called when something has happened that no descriptor tells."""

    def launch(self, order: Order, owner: object) -> Launch:
        """Begin a launch; what becomes of it comes back as events."""

    def withdraw(self, launch: Launch) -> bool:
        """Take a launch back; False if it is too late for that."""

    def drop(self, launch: Launch) -> None:
        """Forget a launch, whatever becomes of it."""

    def gather(self) -> list[ProcessEvent]:
        """Return what happened since the last call."""

    def take(self) -> list[ProcessEvent]:
        """Return what happened while something was asked for, without looking further."""

    @property
    def pending(self) -> bool:
        """Tell whether something happened that was not gathered yet."""

    def used(self, kind: str) -> None:
        """Take note of a kind of target that was started."""

    @property
    def spare_count(self) -> int:
        """How many processes wait for an order."""

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks; None if there is none."""

    @property
    def childless(self) -> bool:
        """Tell whether all processes that it has launched are over."""

    def dismiss_spares(self) -> None:
        """Let the spares go, in order, and make no more."""

    def dismiss_zygote(self) -> None:
        """Let the zygote go, in order."""

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host."""

    def close(self) -> None:
        """Drop everything at once."""
