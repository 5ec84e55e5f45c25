"""Keeps a zygote: starts it, hears what it says, replaces it when it dies.

Its death touches no worker.  The next one is started at once, then with a growing pause,
and after ZYGOTE_ATTEMPTS failures in a row not any more; if the very first one does not
come up, nothing is tried again, since whoever starts the supervisor is waiting.  Only one that
said READY counts as a success, so that a failing preload cannot spin.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator

from .._ipc.channel import BrokenMessage
from .._policy.backoff import ZYGOTE_ATTEMPTS, zygote_delay
from ..errors import SupervisorFailed, Unsupported
from . import exits, wire
from .lifeline import Lifeline
from .watcher import ONCE, Watcher
from .zygote import Boot, Zygote

HELLO_TIMEOUT = 20.0

log = logging.getLogger("aiobgw")


class Keeper:
    """Owns the zygote of a supervisor, and the lifeline that everybody hangs on."""

    def __init__(
        self,
        boot: Boot,
        watcher: Watcher,
        *,
        on_ready: Callable[[int], None],
        on_report: Callable[[int, int], None],
        on_death: Callable[[int], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.boot = boot
        self.zygote: Zygote | None = None
        self.lifeline = Lifeline()
        self._watcher = watcher
        self._on_ready = on_ready
        self._on_report = on_report
        self._on_death = on_death
        self._on_failure = on_failure
        self._failures = 0
        self._ever_ready = False
        self._last_error: Exception = SupervisorFailed("the zygote ended before it was ready")
        self._closing = False

    @property
    def ready(self) -> Zygote | None:
        """The zygote, if it can be asked for forks."""
        zygote = self.zygote
        return zygote if zygote is not None and zygote.ready else None

    def start(self) -> None:
        """Start a zygote; whether it comes up is told later."""
        try:
            self_fd = os.pidfd_open(os.getpid())
            try:
                zygote = Zygote.spawn(self.boot, self.lifeline, self_fd)
            finally:
                os.close(self_fd)
        except OSError as error:
            self._failed(Unsupported(f"{self.boot.python} cannot be started: {error}"))
            return
        self.zygote = zygote
        self._watcher.watch(zygote.control.fd, lambda: self._hear(zygote))
        self._watcher.watch(zygote.pidfd, lambda: self._died(zygote), ONCE)
        self._watcher.timer("zygote", time.monotonic() + HELLO_TIMEOUT, self._too_late)

    def _hear(self, zygote: Zygote) -> None:
        while self.zygote is zygote:
            try:
                data, _ = zygote.control.receive()
            except BlockingIOError:
                return
            except (OSError, BrokenMessage):
                data = b""
            if not data:
                # Its pidfd tells the rest; a closed channel would only spin.
                self._watcher.unwatch(zygote.control.fd)
                return
            self._take(zygote, data)

    def _take(self, zygote: Zygote, data: bytes) -> None:
        verb = data[:1]
        if verb == wire.EXITED:
            _, number, status = wire.REPORT.unpack(data)
            self._on_report(number, status)
        elif verb == wire.READY:
            self._came_up(zygote, wire.REPORT.unpack(data)[2])
        elif verb == wire.UP:
            self._watcher.cancel("zygote")
            self._check(zygote, data)
        elif verb == wire.REFUSED:
            self._last_error = _preload_error(data[1:].decode("utf-8", "replace"))

    def _check(self, zygote: Zygote, data: bytes) -> None:
        try:
            zygote.greeted(data)
        except Exception as error:
            self._last_error = error
            exits.send(zygote.pidfd, signal.SIGKILL)

    def _came_up(self, zygote: Zygote, threads: int) -> None:
        if threads > 1:
            log.warning(
                "preloaded modules have started %d threads in the zygote; workers inherit none"
                " of them, and may hang on what they hold",
                threads - 1,
            )
        zygote.ready = self._ever_ready = True
        self._failures = 0
        self._on_ready(zygote.pid)

    def _too_late(self) -> None:
        if self.zygote is not None:
            self._last_error = Unsupported(
                f"{self.boot.python} does not come up as a Python interpreter",
                hint="give the path of one: Supervisor(python=...)",
            )
            exits.send(self.zygote.pidfd, signal.SIGKILL)

    def _died(self, zygote: Zygote) -> None:
        """Take leave of a dead zygote; its last reports are still in the channel."""
        self._hear(zygote)
        was_ready = zygote.ready
        self._put_away(zygote)
        if self._closing:
            return

        self._on_death(zygote.pid)
        if was_ready:
            log.warning("the zygote (pid %d) died; it is replaced", zygote.pid)
            self.start()
        else:
            self._failed(self._last_error)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= ZYGOTE_ATTEMPTS or not self._ever_ready:
            self._on_failure(error)
            return
        at = time.monotonic() + zygote_delay(self._failures)
        log.error("no zygote: %s", error)
        self._watcher.timer("zygote", at, self.start)

    def _put_away(self, zygote: Zygote) -> None:
        self._watcher.cancel("zygote")
        self._watcher.unwatch(zygote.control.fd)
        self._watcher.unwatch(zygote.pidfd)
        zygote.reap()
        zygote.close()
        self.zygote = None

    def dismiss(self) -> None:
        """Let the zygote go, in order: it sees the end of its channel."""
        self._closing = True
        self._watcher.cancel("zygote")
        if self.zygote is not None:
            self.zygote.control.shut_down()

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds."""
        yield from (self.lifeline.read_end, self.lifeline.write_end)
        if self.zygote is not None:
            yield from (self.zygote.control.fd, self.zygote.pidfd)

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host."""
        self.lifeline.close()
        if self.zygote is not None:
            self.zygote.close()

    def close(self) -> None:
        """Drop the lifeline: the kernel ends everybody who hangs on it.

        Plain, for finalisers and the end of the interpreter.  Waits up to a second for the
        zygote, which may have stragglers to end, so that it leaves no zombie behind.
        """
        self._closing = True
        self.lifeline.close()
        zygote = self.zygote
        if zygote is not None:
            zygote.control.shut_down()
            if not exits.wait_for(zygote.pidfd, 1.0):
                exits.send(zygote.pidfd, signal.SIGKILL)
                exits.wait_for(zygote.pidfd, 1.0)
            self._put_away(zygote)


def _preload_error(text: str) -> SupervisorFailed:
    last = text.strip().splitlines()[-1] if text.strip() else "no reason given"
    error = SupervisorFailed(f"the zygote could not be prepared: {last}")
    error.add_note(text.rstrip())
    return error
