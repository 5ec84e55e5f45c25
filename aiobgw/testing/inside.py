"""Runs in a worker: does what a fault needs done from inside.  Preloaded, or not there at all.

``Supervisor(preload=("aiobgw.testing.inside",))`` has it imported in the zygote, where it installs
a handler for one real-time signal; workers inherit it, commands lose it with their exec.  On the
signal a worker connects to whoever listens at the address made of its pid, takes one request,
answers, and does it:

    exit_with CODE    ``os._exit``
    raise_in ERROR    raised in the main thread, or in the main task of an async target
    allocate BYTES    touch so much memory, and answer only if that was possible

Without a fault it costs one handler in the zygote, and async targets a call for each time that
their main task goes on.

Ordering: the answer goes first.  If it cannot be sent the test has given up, and nothing is done.
Race: the signal may come when the target is over, or its coroutine has ended: then that is the
answer.  The test sends the signal only to a worker that has started.
"""

from __future__ import annotations

import os
import select
import sys
from _pickle import loads
from _signal import signal as set_handler
from types import coroutine

from .._ipc.channel import Channel
from .._worker import context, signals, target
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator
    from types import FrameType
    from typing import Any

PATIENCE_MS = 5_000
"""How long a worker waits for the request of somebody who has called it."""

PIECE = 1 << 20

_pending: BaseException | None = None
_attending = False


def _on_fault(number: int, frame: FrameType | None) -> None:
    channel = wire.connect(wire.fault_address(os.getpid()))
    if channel is None:
        return  # the test has given up
    try:
        error = _serve(channel)
    except OSError:
        return  # meanwhile
    finally:
        channel.close()
    if error is not None:
        raise error


def _serve(channel: Channel) -> BaseException | None:
    """Take a request and answer it; return what is to be raised right here."""
    poll = select.poll()
    poll.register(channel.fd, select.POLLIN)
    request = wire.receive(channel) if poll.poll(PATIENCE_MS) else b""
    if not request:
        return None
    try:
        name, argument = loads(request)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        channel.send(wire.REFUSED + text.encode("utf-8", "backslashreplace")[:1000])
        return None

    if name == "exit_with":
        channel.send(wire.TAKEN)
        os._exit(argument)
    if name == "allocate":
        _allocate(argument)
        channel.send(wire.TAKEN)
        return None
    return _raise(channel, argument)


def _allocate(size: int) -> None:
    held: list[bytes] = []
    while len(held) * PIECE < size:
        held.append(b"\1" * PIECE)  # written to: memory that nobody touched counts for nothing


def _raise(channel: Channel, error: BaseException) -> BaseException | None:
    """Return the error if the code that was interrupted is the target's, else send it there."""
    global _pending
    handlers = signals._current
    if handlers is None or handlers._over:
        channel.send(wire.OVER)
        return None

    task, loop = _suspended()
    if task is None:
        channel.send(wire.TAKEN)
        return error
    channel.send(wire.TAKEN)
    _pending = error
    loop.call_soon_threadsafe(_interrupt, task)
    return None


def _suspended() -> tuple[asyncio.Task[object] | None, Any]:
    """Return the main task, and its loop, unless its code is what runs now; None if plain."""
    task: Any = context.current_worker().main_task
    asyncio = sys.modules.get("asyncio")
    if task is None or asyncio is None:
        return None, None
    loop = asyncio._get_running_loop()
    if loop is None or asyncio.current_task(loop) is task:
        return None, None
    return task, loop


# An error cannot be thrown into a task that waits, a cancellation can: it takes what the task
# waits for with it, as it should.  So the task is cancelled, and what arrives is exchanged.


def _interrupt(task: asyncio.Task[object]) -> None:
    global _pending
    if _attending and not task.done():
        task.cancel()
    else:
        _pending = None  # Race: the target has just returned


def _exchanged(error: BaseException | None) -> BaseException | None:
    """Return what is thrown into the target in the place of *error*, or of a result."""
    global _pending
    if _pending is None or (error is not None and type(error).__name__ != "CancelledError"):
        return error
    error, _pending = _pending, None
    task: Any = context.current_worker().main_task
    task.uncancel()
    return error


@coroutine
def _attended(awaitable: Awaitable[object]) -> Generator[Any, None, object]:
    """Await the target as ``await`` does, but throw in what ``raise_in`` asks for."""
    global _attending
    steps = _awaited(awaitable)
    error: BaseException | None = None
    _attending = True
    try:
        while True:
            waits_for = steps.send(None) if error is None else steps.throw(error)
            error = None
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown
            error = _exchanged(error)
    except StopIteration as stop:
        return stop.value
    finally:
        _attending = False


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _attend(run_async: Callable[..., None]) -> Callable[..., None]:
    def run_attended(
        worker: context.CurrentWorker,
        begin: Callable[[], Any],
        runner: asyncio.Runner,
        handlers: signals.Handlers,
    ) -> None:
        run_async(worker, lambda: _attended(begin()), runner, handlers)

    return run_attended


target.run_async = _attend(target.run_async)
set_handler(wire.FAULT_SIGNAL, _on_fault)
