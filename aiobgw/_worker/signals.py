"""What signals do in a worker that runs Python.

SIGTERM   async target: cancels its main task, once.  Plain target: sets ``stop_requested``
          and the latch, then raises Terminated; again every second while the target runs
          on, unless the last one is still on its way: an exception that a handler raises is
          lost in ``__del__`` and in callbacks, but a ``finally`` at work is left alone.
SIGQUIT   default action, without a core file unless the spec sets that limit: a Python handler
          never runs inside C code.
SIGUSR1   sets the worker's latch.
SIGINT    ends the action in hand of a worker with a database connection (interrupt.py).
SIGURG    ends a wait of the main thread, so that it hears of what came right before the wait:
          the supervisor sends it after other signals (PostgreSQL's latches use it so, too).
SIGHUP, SIGUSR2, else SIGINT   handlers that do nothing: SIG_IGN would leak into subprocesses.

They are blocked from the fork until ``open_all``: a SIGTERM that comes earlier waits.

The handlers are functions of this module, which find the worker themselves: the zygote
installs them, and its children inherit them.
"""

from __future__ import annotations

import resource
import sys
import weakref

# The functions of the module ``signal`` turn every number and set into enums and back, which
# costs a fresh process 100 us; these are the same without.
from _signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGHUP,
    SIGINT,
    SIGPIPE,
    SIGQUIT,
    SIGTERM,
    SIGURG,
    SIGUSR1,
    SIGUSR2,
    SIGXFSZ,
    pthread_kill,
    pthread_sigmask,
)
from _signal import getsignal as handler_of
from _signal import signal as set_handler

from ..errors import Terminated
from .context import CurrentWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

AGAIN_AFTER = 1.0

_ALL = (
    SIGTERM,
    SIGINT,
    SIGHUP,
    SIGQUIT,
    SIGUSR1,
    SIGUSR2,
    SIGURG,
)


class Handlers:
    """The handlers of one worker."""

    def __init__(
        self, worker: CurrentWorker, *, rehearsal: bool = False, keep_core: bool = False
    ) -> None:
        self.rehearsal = rehearsal
        self._keep_core = keep_core or rehearsal
        self._worker = worker
        self._raised: weakref.ref[Terminated] | None = None
        self._repeating = False
        self._over = False

    def install(self) -> None:
        global _current
        _current = self
        for number, handler in _HANDLERS.items():
            if handler_of(number) is not handler:
                set_handler(number, handler)

    def open_all(self) -> None:
        """Let signals in: everything they need stands."""
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (soft if self._keep_core else 0, hard))
        pthread_sigmask(SIG_UNBLOCK, () if self.rehearsal else _ALL)

    def open_term(self) -> None:
        """Let SIGTERM in, which has waited while an event loop was made ready for it."""
        pthread_sigmask(SIG_UNBLOCK, () if self.rehearsal else (SIGTERM,))

    def shut_term(self) -> None:
        pthread_sigmask(SIG_BLOCK, (SIGTERM,))

    def shut(self) -> None:
        """Keep signals out: the target is over, and what follows is short."""
        self._over = True
        pthread_sigmask(SIG_BLOCK, (SIGTERM, SIGUSR1))

    def on_wake(self) -> None:
        self._worker.wake()

    def on_term(self, frame: FrameType | None) -> None:
        self._worker.request_stop()
        if self._worker.database is not None:
            self._worker.database.interrupts.on_term(frame)
        if self._over or (self._raised is not None and self._raised() is not None):
            return  # it is on its way, through a cleanup perhaps

        self._repeat()
        error = Terminated()
        self._raised = weakref.ref(error)
        try:
            raise error
        finally:
            del error  # or its traceback would keep it alive, through this very frame

    def on_int(self, frame: FrameType | None) -> None:
        database = self._worker.database
        if database is not None and not self._over:
            database.interrupts.on_int(frame)

    def _repeat(self) -> None:
        """Have SIGTERM sent again every second, by a thread that nobody joins."""
        if not self._repeating:
            self._repeating = True
            import _thread

            _thread.start_new_thread(_send_again, (self, _thread.get_ident()))


def _send_again(handlers: Handlers, main: int) -> None:
    import time

    while not handlers._over:
        time.sleep(AGAIN_AFTER)
        if not handlers._over:
            pthread_kill(main, SIGTERM)


def _on_wake(number: int, frame: FrameType | None) -> None:
    if _current is not None:
        _current.on_wake()


def _on_term(number: int, frame: FrameType | None) -> None:
    if _current is not None:
        _current.on_term(frame)


def _on_int(number: int, frame: FrameType | None) -> None:
    if _current is not None:
        _current.on_int(frame)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Interrupt a waiting system call, and nothing else."""


_current: Handlers | None = None
_HANDLERS: dict[int, Any] = {
    SIGTERM: _on_term,
    SIGUSR1: _on_wake,
    SIGHUP: _nothing,
    SIGINT: _on_int,
    SIGUSR2: _nothing,
    SIGURG: _nothing,
    SIGQUIT: SIG_DFL,
}


def restore_defaults() -> None:
    """Give a program that is about to be executed the signals it expects; last of all."""
    for number in (SIGPIPE, SIGXFSZ):
        set_handler(number, SIG_DFL)  # Python ignores them; exec keeps SIG_IGN
    sys.stdout.flush()
    pthread_sigmask(SIG_SETMASK, ())
