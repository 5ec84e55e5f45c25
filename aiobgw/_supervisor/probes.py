"""Probes: look from outside whether a worker is ready, again and again until it is.

From the moment it has started: first after 20 ms, then more and more rarely, up to once a second
(``_policy.probing``).  A look that fails, or lasts longer than 5 s, means "not yet" and nothing
else; who never becomes ready is ended by its ``start_timeout``.  The first look that succeeds
is the last one.  A worker's own ``ready()`` and READY=1 do not count then.

Looks are what descriptors and processes do, on the system's clock: no task is needed, and to
end one is to close something.  Nothing is left to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from .._policy.probing import LOOK_TIMEOUT, look_delay
from .._process.events import Order
from .._process.seam import LauncherSeam
from .._process.watcher import Watcher
from .connecting import Names, SocketLook
from .loop import Loop
from .program import ProgramLook
from .registry import RegisteredWorker

Done = Callable[[bool], None]


class Look(Protocol):
    """One look; it tells once whether it has succeeded, unless it is closed before."""

    def begin(self) -> None:
        """Begin; it may tell within this call."""

    def give_up(self) -> None:
        """End, since it has lasted too long; it tells when nothing of it is left."""

    def close(self) -> None:
        """End, and tell nothing; idempotent."""

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds."""

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host."""


class Probe:
    """The looks at one incarnation of a worker."""

    def __init__(
        self,
        watcher: Watcher,
        make_look: Callable[[Done], Look],
        on_ready: Callable[[], None],
        names: Names | None = None,
    ) -> None:
        self._watcher = watcher
        self._make_look = make_look
        self._on_ready = on_ready
        self._names = names
        self._looks = 0
        self._look: Look | None = None
        self._look_later()

    def _look_later(self) -> None:
        at = time.monotonic() + look_delay(self._looks)
        self._watcher.timer(self, at, self._begin)

    def _begin(self) -> None:
        self._looks += 1
        self._watcher.timer(self, time.monotonic() + LOOK_TIMEOUT, self._give_up)
        self._look = self._make_look(self._done)
        self._look.begin()

    def _give_up(self) -> None:
        if self._look is not None:
            self._look.give_up()

    def _done(self, is_ready: bool) -> None:
        self._look = None
        if is_ready:
            self.close()
            self._on_ready()
        else:
            self._look_later()

    def descriptors(self) -> Iterator[int]:
        if self._look is not None:
            yield from self._look.descriptors()

    def close_copies(self) -> None:
        if self._look is not None:
            self._look.close_copies()

    def close(self) -> None:
        """Look no more; idempotent, and legal on a closed host loop."""
        self._watcher.cancel(self)
        if self._names is not None:
            self._names.close()
        if self._look is not None:
            self._look.close()
            self._look = None


def make_probe(
    worker: RegisteredWorker,
    launcher: LauncherSeam,
    loop: Loop,
    *,
    order: Callable[[], Order],
    on_ready: Callable[[], None],
) -> Probe:
    """Begin to look at a worker in the way that its spec asks for."""
    what = worker.spec.probe
    if isinstance(what, str):
        names = Names(what, loop)
        return Probe(
            launcher.watcher,
            lambda done: SocketLook(names, launcher.watcher, done),
            on_ready,
            names,
        )
    complaints: set[str] = set()
    return Probe(
        launcher.watcher,
        lambda done: ProgramLook(launcher, order, done, worker.spec.name, complaints),
        on_ready,
    )
