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
import sys
from _pickle import dumps, loads
from _signal import (
    SIG_BLOCK,
    SIG_IGN,
    SIG_SETMASK,
    SIGHUP,
    SIGINT,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    pthread_sigmask,
)
from _signal import signal as set_handler

from .._ipc.channel import Channel
from .._worker.context import current_worker
from .._worker.target import find
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HANDLED = (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, wire.FAULT_SIGNAL)
LONGEST_SLEEP = 1000.0
RETURN = b"return"

_allocated: list[bytes] = []


def run(address: str) -> None:
    """Carry out the requests of the test that listens at *address*."""
    channel = _join(address)
    while channel is not None:
        request = _Request(channel, wire.receive(channel, block=True))
        if request.is_last:
            return
        try:
            value = request.perform()
            if hasattr(value, "__await__"):
                value.close()
                raise TypeError("a plain target awaits nothing: script.spec(kind='async')")
            request.answer(value)
        except Exception as error:
            request.refuse(error)


async def run_async(address: str) -> None:
    """Carry out the requests of the test that listens at *address*, in the event loop."""
    channel = _join(address)
    while channel is not None:
        request = _Request(channel, await wire.receive_async(channel))
        if request.is_last:
            return
        try:
            value = request.perform()
            request.answer(await value if hasattr(value, "__await__") else value)
        except Exception as error:
            request.refuse(error)


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
