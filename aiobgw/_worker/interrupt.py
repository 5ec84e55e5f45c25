"""SIGINT cancels the action in hand, not the worker: blocks that it ends early.

PostgreSQL's backends treat SIGINT so (StatementCancelHandler): the statement fails, the session
goes on.  What an action is, here the worker says, by a block; outside of it SIGINT does nothing.
When its end was asked for, either: SIGTERM goes first.

An action ends the way its own world ends one, since drivers know how to behave then:

async     the innermost block of each task is cancelled, as asyncio.timeout does it.
plain     the handler raises a KeyboardInterrupt in the main thread.  ``except Exception``
          in the block does not swallow it, and psycopg cancels its statement on it.
plain, in C code, where no Python handler runs: a thread of our own, to which the kernel's
          signal comes as a byte (signal.set_wakeup_fd), calls the connection's
          ``interrupt()`` (sqlite3) or ``cancel()`` (psycopg2), and the statement fails.
          SIGTERM in a block ends it in this way, too; Terminated follows.

At the end of the block that becomes ``Interrupted``.

Invariant: an error is raised only between the first and the last instruction of a plain
block's body.  ``on_int`` raises nothing while code of this module is what it interrupts, and
entering and leaving is code of this module.
Invariant: what the thread ends is the statement that the signal was for.  Bytes are read, and
the driver is asked, under a lock; whoever enters a block, leaves it, or raises, takes it first,
and takes away the bytes of signals that were dealt with.
"""

from __future__ import annotations

import _thread
import os
import select
import sys
import weakref
from _signal import (
    SIG_BLOCK,
    SIGINT,
    SIGTERM,
    pthread_sigmask,
    set_wakeup_fd,
    valid_signals,
)

from ..errors import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from types import FrameType, TracebackType

    from .connection import Database
    from .context import CurrentWorker

GRACE = 0.02
"""Seconds that the main thread gets to hear a signal itself before the driver is asked."""

ASK = ("interrupt", "cancel")


class _Interrupt(KeyboardInterrupt):
    """What ends the body of a plain block."""


class Interrupts:
    """The blocks that are open in this worker, and the thread that reads signals for them."""

    def __init__(self, worker: CurrentWorker, database: Database) -> None:
        self._worker = worker
        self._database = database
        self._main = _thread.get_ident()
        self._tasks: list[Interruptible] = []
        self._plain: Interruptible | None = None
        self._raised: weakref.ref[_Interrupt] | None = None
        self._lock = _thread.allocate_lock()
        self._pipe: tuple[int, int] | None = None

    def block(self) -> Interruptible:
        return Interruptible(self)

    @property
    def off(self) -> bool:
        """Whether SIGINT has lost its meaning, because the worker is to end."""
        return self._worker.stop_requested

    def on_int(self, frame: FrameType | None) -> None:
        """Handle SIGINT, in the main thread, between two instructions of *frame*."""
        if self.off:
            return
        # Later ones replace earlier ones: the innermost block of each task.
        for block in {id(block.task): block for block in self._tasks}.values():
            block.cancel_soon()

        block_here = self._plain
        if block_here is None or _is_ours(frame):
            return
        if self._raised is not None and self._raised() is not None:
            return  # it is on its way, through a cleanup perhaps
        self._raise(block_here)

    def on_term(self, frame: FrameType | None) -> None:
        """Hear of SIGTERM, after ``stop_requested`` was set: the thread ends nothing more."""
        if self._pipe is not None and not _is_ours(frame):
            with self._lock:
                pass  # what it has begun ends what was running, not the cleanup

    def _raise(self, block: Interruptible) -> None:
        error = _Interrupt()
        with self._lock:
            self._read()  # or the thread would end what the block does next
            block.hit = True
            self._raised = weakref.ref(error)
        try:
            raise error
        finally:
            del error  # or its traceback would keep it alive, through this very frame

    # Blocks of tasks.

    def enter_task(self, block: Interruptible) -> None:
        self._tasks.append(block)

    def leave_task(self, block: Interruptible) -> None:
        self._tasks.remove(block)

    # Blocks of the main thread.

    def enter_plain(self, block: Interruptible) -> None:
        """Make *block* the one that SIGINT ends."""
        if _thread.get_ident() != self._main:
            raise RuntimeError("'with interruptible()' is for the main thread, which gets signals")
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            raise RuntimeError("in a coroutine it is 'async with interruptible()'")

        if self._can_ask():
            # Another's, an event loop's for example, is put back at the end of the block.
            block.old_fd = set_wakeup_fd(self._listen(), warn_on_full_buffer=False)
        with self._lock:
            self._read()  # what came before this block is not for it
            block.outer = self._plain
            self._plain = block

    def leave_plain(self, block: Interruptible) -> None:
        """Undo it; from here on nobody ends what runs."""
        with self._lock:
            self._plain = block.outer
        if block.old_fd is not None:
            set_wakeup_fd(block.old_fd)

    def _can_ask(self) -> bool:
        return any(hasattr(self._database.connection, name) for name in ASK)

    def _listen(self) -> int:
        """Return where signals are to be written; start who reads them, the first time."""
        if self._pipe is None:
            read, write = os.pipe()
            os.set_blocking(read, False)
            os.set_blocking(write, False)
            self._pipe = read, write
            _thread.start_new_thread(self._watch, (read,))
        return self._pipe[1]

    def _watch(self, fd: int) -> None:
        """Have statements ended that no handler can reach; in a thread that nobody joins."""
        import time

        pthread_sigmask(SIG_BLOCK, valid_signals())  # the main thread's waits must end by them
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            poll.poll()
            # Race: in Python code, or in a wait that a signal ends, the main thread raises
            # by itself, and takes the byte; a driver that was asked as well would perhaps
            # end the statement after this one (PostgreSQL's cancel requests name a session).
            time.sleep(GRACE)
            with self._lock:
                self._look()

    def _look(self) -> None:
        numbers = self._read()
        block = self._plain
        if block is None or self.off:
            return
        if SIGINT in numbers:
            block.hit = True
        if SIGINT in numbers or SIGTERM in numbers:
            self._ask()

    def _ask(self) -> None:
        """Call the driver's way to end a statement from another thread."""
        try:
            connection = self._database.connection
            for name in ASK:
                if hasattr(connection, name):
                    getattr(connection, name)()
                    return
        except Exception:
            import traceback

            traceback.print_exc()

    def _read(self) -> bytes:
        """Take the numbers of the signals that came since the last time.  Needs the lock."""
        if self._pipe is None:
            return b""
        try:
            return os.read(self._pipe[0], 65_536)
        except BlockingIOError:
            return b""


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_globals is globals()


class Interruptible:
    """``async with`` or ``with`` it: SIGINT ends the body, and Interrupted is raised instead."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._used = False
        self.hit = False
        self.task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.outer: Interruptible | None = None
        self.old_fd: int | None = None

    def _enter(self) -> None:
        if self._used:
            raise RuntimeError("an interruptible block is entered once")
        self._used = True

    # A task's.

    async def __aenter__(self) -> None:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        self._enter()
        self.task = task
        self._cancelling = task.cancelling()
        self._interrupts.enter_task(self)

    def cancel_soon(self) -> None:
        """Cancel the body, from the signal's handler.

        Race: told from within the body itself, which may end without another await; then
        the cancellation would hit whatever comes after.  Between two steps of the task, it
        hits the await that the body is in.
        """
        task = self.task
        if task is not None and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None and not self.hit and not self._interrupts.off:
            self.hit = True
            self.task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import asyncio

        task, self.task = self.task, None
        self._interrupts.leave_task(self)
        if task is None or not self.hit:
            return
        # Somebody else's cancellation, if there is one, goes first (asyncio.timeout's rule).
        others = task.uncancel() > self._cancelling
        if not others and isinstance(error, asyncio.CancelledError):
            raise Interrupted from error

    # The main thread's.

    def __enter__(self) -> None:
        self._enter()
        self._interrupts.enter_plain(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._interrupts.leave_plain(self)
        # Terminated is none of the two, and goes first.
        if self.hit and isinstance(error, (Exception, _Interrupt)):
            raise Interrupted from error
