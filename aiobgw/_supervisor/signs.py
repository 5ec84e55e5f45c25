"""Signs: the ways in which workers tell, or show, that they are ready.

What a Python target says comes over its channel, and is the loop's.  Here are the others: commands
that notify (one socket for all of them), commands with s6's pipe, and probes.  All of them come
to an end with the launch that they belong to, whatever has ended that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from .._ipc.notify import Notice
from .._policy import happenings
from .._policy.happenings import Happening
from .._policy.moves import WAITING
from .._process.events import Order
from .._process.seam import LauncherSeam
from .._process.watcher import Watcher
from ..spec import Readiness
from ..status import WorkerState
from .loop import Loop
from .notification import Notification
from .notify import NotifySocket, speaks_notify, takes_ready
from .probes import Probe, make_probe
from .registry import RegisteredWorker, Registry

WITHOUT_LAUNCH = (*WAITING, WorkerState.STOPPED)

log = logging.getLogger("aiobgw")


class Signs:
    """The signs of one supervisor's workers.  Owns the socket, the pipes and the probes."""

    def __init__(
        self,
        registry: Registry,
    ) -> None:
        self._registry = registry
        self._loop: Loop | None = None
        self._launcher: LauncherSeam | None = None
        self._probe_order: Callable[[RegisteredWorker], Order] | None = None
        self._notify: NotifySocket | None = None
        self._pipes: dict[RegisteredWorker, Notification] = {}
        self._probes: dict[RegisteredWorker, Probe] = {}

    def attach(
        self,
        loop: Loop,
        launcher: LauncherSeam,
        probe_order: Callable[[RegisteredWorker], Order],
    ) -> None:
        """Work with these; *probe_order* has a worker's probing program launched."""
        self._loop = loop
        self._launcher = launcher
        self._probe_order = probe_order

    @property
    def _watcher(self) -> Watcher:
        assert self._launcher is not None
        return self._launcher.watcher

    # Before a launch.

    def environ(self, worker: RegisteredWorker) -> dict[str, str]:
        """Return what a command finds in its environment; raises OSError."""
        if not speaks_notify(worker):
            return {}
        if self._notify is None:
            self._notify = NotifySocket(self._registry, self._watcher, self._on_notice)
        found = {"NOTIFY_SOCKET": self._notify.address}
        if worker.spec.watchdog is not None:
            found["WATCHDOG_USEC"] = str(round(worker.spec.watchdog * 1e6))
        return found

    def open_pipe(self, worker: RegisteredWorker) -> tuple[int, ...]:
        """Return the end for writing of a new pipe, for a command with a notification_fd.

        Raises OSError.  It is open until the launch has a process.
        """
        if worker.spec.notification_fd is None:
            return ()
        self._close_pipe(worker)
        pipe = Notification(self._watcher, lambda: self._on_ready(worker))
        self._pipes[worker] = pipe
        return (pipe.write_end,)

    # While it runs.

    def follow(self, worker: RegisteredWorker) -> None:
        """Adapt to what has become of a worker; called after each change."""
        life = worker.life
        if life.has_process and worker in self._pipes:
            self._pipes[worker].taken()
        elif life.state in WITHOUT_LAUNCH:
            self._close_pipe(worker)
        if worker.spec.ready is Readiness.PROBE:
            self._have_probed(worker, life.state is WorkerState.RUNNING and not life.ready)

    def _have_probed(self, worker: RegisteredWorker, wanted: bool) -> None:
        probe = self._probes.get(worker)
        if wanted and probe is None:
            self._probes[worker] = self._begin_probe(worker)
        elif probe is not None and not wanted:
            del self._probes[worker]
            probe.close()

    def _begin_probe(self, worker: RegisteredWorker) -> Probe:
        assert self._loop and self._launcher and self._probe_order
        return make_probe(
            worker,
            self._launcher,
            self._loop,
            order=partial(self._probe_order, worker),
            on_ready=lambda: self._on_ready(worker),
        )

    def hear(self) -> None:
        """Take in what commands have said; called when the rest of a turn's events is handled."""
        if self._notify is not None:
            self._notify.hear()

    def _on_ready(self, worker: RegisteredWorker) -> None:
        self._post(worker, happenings.SaidReady())

    def _post(self, worker: RegisteredWorker, happening: Happening) -> None:
        assert self._loop is not None
        self._loop.post(worker, happening)

    def _on_notice(self, worker: RegisteredWorker, notice: Notice, pid: int) -> None:
        """Pass on what a command says: the state that it is in first, then what follows."""
        if notice.renames:
            log.warning(
                "worker %s: pid %d names another main process: ignored, it is pid %s",
                worker.spec.name,
                pid,
                worker.pid,
            )
        if notice.says is not None and notice.says != worker.says and self._loop is not None:
            worker.says = notice.says
            self._loop.note(worker)
        for happening in _happenings(notice, takes_ready(worker)):
            self._post(worker, happening)

    # The end.

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that they hold; -1 for what they do not have."""
        if self._notify is not None:
            yield from self._notify.descriptors()
        for pipe in self._pipes.values():
            yield from pipe.descriptors()
        for probe in self._probes.values():
            yield from probe.descriptors()

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host, and touch nothing that is shared."""
        if self._notify is not None:
            self._notify.close_copies()
        for pipe in self._pipes.values():
            pipe.close_copies()
        for probe in self._probes.values():
            probe.close_copies()

    def close(self) -> None:
        """Give everything back; legal on a closed host loop.

        Ordering: before the launcher's watcher, which still knows all of it.
        """
        for probe in self._probes.values():
            probe.close()
        for pipe in self._pipes.values():
            pipe.close()
        if self._notify is not None:
            self._notify.close()
        self._probes.clear()
        self._pipes.clear()
        self._notify = None

    def _close_pipe(self, worker: RegisteredWorker) -> None:
        pipe = self._pipes.pop(worker, None)
        if pipe is not None:
            pipe.close()


def _happenings(notice: Notice, takes_ready: bool) -> Iterator[Happening]:
    if notice.ready and takes_ready:
        yield happenings.SaidReady()
    if notice.reloading and takes_ready:
        yield happenings.SaidReloading()
    if notice.stopping:
        yield happenings.SaidStopping()
    if notice.extend is not None:
        yield happenings.Extend(notice.extend)
    if notice.beat:
        yield happenings.Beat()
