"""Runs in a worker: targets that do on request what a test tells them; ``script`` is the test's
side.

``run`` is a plain target: its main thread carries the requests out, and SIGTERM ends it as it
ends every plain target.  ``run_async`` carries them out in its main task.  One at a time, in
the order in which they came.

A frame is a pickle: the worker begins with (name, incarnation, pid); a request is
(what, args, kwargs), or just RETURN; its answer (True, value) or (False, error).  What ends the
target, or keeps it from answering, is answered before it is done.  EOF: the test is over, and
so is the target.
"""

from __future__ import annotations

import os
import select
import sys
from _pickle import dumps, loads
from _signal import (
    SIG_BLOCK,
    SIG_IGN,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGHUP,
    SIGINT,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    pthread_sigmask,
    set_wakeup_fd,
)
from _signal import signal as set_handler

from .._ipc.channel import Channel
from .._worker.context import current_worker
from .._worker.target import find
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, Self

HANDLED = (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, wire.FAULT_SIGNAL)
LONGEST_SLEEP = 1000.0
RETURN = b"return"

_allocated: list[bytes] = []


def run(address: str) -> None:
    """Carry out the requests of the test that listens at *address*."""
    with _Signals() as signals:
        channel = _join(address)
        while channel is not None:
            signals.wait_for(channel)
            request = _Request(channel, wire.receive(channel))
            if request.is_last:
                return
            try:
                with _LetIn():
                    value = request.perform()
                if hasattr(value, "__await__"):
                    value.close()
                    raise TypeError("a plain target awaits nothing: script.spec(kind='async')")
                request.answer(value)
            except Exception as error:
                _keep_out()  # it may have been raised by letting one in
                request.refuse(error)


async def run_async(address: str) -> None:
    """Carry out the requests of the test that listens at *address*, in the event loop."""
    _keep_out()
    try:
        channel = _join(address)
        while channel is not None:
            request = _Request(channel, await _receive(channel))
            if request.is_last:
                return
            try:
                with _LetIn():
                    value = request.perform()
                    if hasattr(value, "__await__"):
                        value = await value
                request.answer(value)
            except Exception as error:
                _keep_out()  # it may have been raised by letting one in
                request.refuse(error)
    finally:
        _let_in()


async def _receive(channel: Channel) -> bytes:
    """Wait for the next message."""
    import asyncio

    loop = asyncio.get_running_loop()
    while True:
        try:
            return wire.receive(channel)
        except BlockingIOError:
            arrived: asyncio.Future[None] = loop.create_future()
        loop.add_reader(channel.fd, _note, arrived)
        try:
            with _LetIn():
                await arrived
        finally:
            loop.remove_reader(channel.fd)


def _note(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _join(address: str) -> Channel | None:
    """Connect to the test, and say who this is; None if the test is over."""
    channel = wire.connect(address)
    if channel is None:
        return None
    worker = current_worker()
    try:
        channel.send(dumps((worker.name, worker.incarnation, worker.pid)))
    except ConnectionError:
        return None  # it is over, or does not hear this user
    return channel


def _keep_out() -> None:
    pthread_sigmask(SIG_BLOCK, (wire.FAULT_SIGNAL,))


def _let_in() -> None:
    pthread_sigmask(SIG_UNBLOCK, (wire.FAULT_SIGNAL,))


class _LetIn:
    """A block in which faults may raise an error.

    Elsewhere it could be taken for an error of the channel, or come between an answer and the note
    that it was given.

    Ordering: what has come meanwhile is handled, and raised, by the call that changes the mask.
    """

    def __enter__(self) -> None:
        _let_in()

    def __exit__(self, *_: object) -> None:
        _keep_out()


class _Signals:
    """Waits for messages such that every signal is handled at once.

    Race: without a descriptor that a signal makes readable, one that comes right before the
    wait would be handled after it.
    """

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        set_wakeup_fd(self._write, warn_on_full_buffer=False)
        _keep_out()
        return self

    def wait_for(self, channel: Channel) -> None:
        poll = select.poll()
        poll.register(channel.fd, select.POLLIN)
        poll.register(self._read, select.POLLIN)
        ready = False
        while not ready:
            with _LetIn():
                ready = any(fd == channel.fd for fd, _ in poll.poll())
            if not ready:
                os.read(self._read, 4096)

    def __exit__(self, *_: object) -> None:
        set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)
        _let_in()


class _Request:
    """One thing that the test wants done, answered once; no data: the test is over."""

    def __init__(self, channel: Channel, data: bytes) -> None:
        self._channel = channel
        self._data = data
        self._answered = False

    @property
    def is_last(self) -> bool:
        """Whether the target is to return: told so, or left alone."""
        if self._data == RETURN:
            self.answer()
        return self._data in (b"", RETURN)

    def perform(self) -> Any:
        what, args, kwargs = loads(self._data)
        return _REQUESTS[what](self, *args, **kwargs)

    def answer(self, value: object = None) -> None:
        """Tell the test that it is done; only the first time counts."""
        if not self._answered:
            self._send(dumps((True, value)))

    def refuse(self, error: Exception) -> None:
        """Tell the test what went wrong; raises it instead if that was the request."""
        if self._answered:
            raise error
        self._send(_packed(error))

    def _send(self, frame: bytes) -> None:
        try:
            self._channel.send(frame, block=True)
        except ConnectionError:
            pass  # the test is over: the next receive says so
        self._answered = True


def _packed(error: Exception) -> bytes:
    """Pickle an error, with the worker's traceback, or what it says if that does not work."""
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in the worker:\n{text[-4000:]}")
        frame = dumps((False, error))
        loads(frame)
    except Exception:
        frame = dumps((False, RuntimeError(f"{type(error).__name__}: {error}\n{text[-4000:]}")))
    return frame


# Requests.


def _say(request: _Request, text: str, stream: str) -> None:
    print(text, file=getattr(sys, stream), flush=True)


def _raise(request: _Request, error: BaseException) -> None:
    request.answer()
    raise error


def _exit(request: _Request, code: int) -> None:
    request.answer()
    os._exit(code)


def _call(request: _Request, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return (find(target) if isinstance(target, str) else target)(*args, **kwargs)


def _sleep_in_c(request: _Request, seconds: float) -> None:
    """Sleep with the GIL held: no Python code runs, no handler either.

    Ordering: signals are blocked before the answer, so that none that the test sends then can
    be handled ahead of the sleep.  SIGQUIT is not: it needs no handler.
    """
    import ctypes

    sleep = ctypes.PyDLL(None).usleep
    before = pthread_sigmask(SIG_BLOCK, HANDLED)
    try:
        request.answer()
        while seconds > 0:
            sleep(ctypes.c_uint(int(min(seconds, LONGEST_SLEEP) * 1e6)))
            seconds -= LONGEST_SLEEP
    finally:
        pthread_sigmask(SIG_SETMASK, before)


def _ignore(request: _Request, signum: int) -> None:
    set_handler(signum, SIG_IGN)


def _start_child(request: _Request) -> int:
    return os.posix_spawnp("sleep", ["sleep", "86400"], os.environ)


def _allocate(request: _Request, size: int) -> None:
    _allocated.append(b"\1" * size)


def _ready(request: _Request) -> None:
    current_worker().ready()


def _set_latch(request: _Request, name: str) -> None:
    current_worker().latches[name].set()


_REQUESTS: dict[str, Callable[..., Any]] = {
    "say": _say,
    "raise_": _raise,
    "exit": _exit,
    "call": _call,
    "sleep_in_c": _sleep_in_c,
    "ignore": _ignore,
    "start_child": _start_child,
    "allocate": _allocate,
    "ready": _ready,
    "set_latch": _set_latch,
}
