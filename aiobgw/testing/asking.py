"""Asks a worker to do from inside what a fault needs: the test's side of ``inside``."""

from __future__ import annotations

import pickle
import select
import socket
import time
from collections.abc import Callable

from .._ipc.channel import Channel
from .._ipc.rundir import peer_of
from ..errors import Unsupported
from . import wire
from .process import Process, no_process

PRELOAD = "aiobgw.testing.inside"
AGAIN_AFTER = 0.05


def order(process: Process, name: str, argument: object, timeout: float) -> None:
    """Have the worker do something; raises what it answers."""
    answer = ask(process, name, argument, timeout)
    if answer == wire.OVER:
        raise no_process(process.name, "its target is over")
    if answer.startswith(wire.REFUSED):
        why = answer.removeprefix(wire.REFUSED).decode()
        raise ValueError(f"{process.name} cannot unpickle it: {why}")
    if not answer:
        raise process.gone()


def ask(
    process: Process,
    name: str,
    argument: object,
    timeout: float,
    before: Callable[[], None] | None = None,
) -> bytes:
    """Have the worker take a request; return its answer, b"" if it ended before that."""
    _check_listens(process)
    request = pickle.dumps((name, argument))
    give_up = time.monotonic() + timeout
    try:
        listener = wire.listen(wire.fault_address(process.pid))
    except OSError as error:
        raise RuntimeError(f"{process.name}: another fault is under way: {error}") from None
    with listener:
        channel = _accept(listener, process, give_up)
    try:
        if before is not None:
            before()
        channel.send(request)
        return _answer(channel, process, give_up)
    except ConnectionError:
        return b""
    finally:
        channel.close()


def _check_listens(process: Process) -> None:
    """Raise Unsupported unless the signal has a handler: it would end the process."""
    caught = _caught_signals(process)
    # Go programs catch every signal; we catch this one, and not the next.
    if caught >> (wire.FAULT_SIGNAL - 1) & 0b11 != 0b01:
        raise Unsupported(
            f"{process.name} is a command, or was started without {PRELOAD}",
            hint=f'Supervisor(preload=("{PRELOAD}",)), and a Python target',
        )


def _caught_signals(process: Process) -> int:
    try:
        with open(f"/proc/{process.pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        return int(fields["SigCgt"], 16)
    except (FileNotFoundError, ProcessLookupError, KeyError):
        raise process.gone() from None


def _accept(listener: socket.socket, process: Process, give_up: float) -> Channel:
    """Call the worker, until it has connected: the worker, and nobody else.

    Race: Python runs no handler for a signal that comes right before a system call that waits,
    until that call is over.  Another signal ends it.  A worker that has heard both finds nobody
    the second time.
    """
    while time.monotonic() < give_up and not process.has_ended:
        process.send(wire.FAULT_SIGNAL)
        if _wait(listener.fileno(), process, min(give_up, time.monotonic() + AGAIN_AFTER)):
            connection, _ = listener.accept()
            if peer_of(connection)[0] == process.pid:
                return Channel(connection)
            connection.close()
    if process.has_ended:
        raise process.gone()
    raise _too_late(process)


def _answer(channel: Channel, process: Process, give_up: float) -> bytes:
    if not _wait(channel.fd, process, give_up) and not process.has_ended:
        # Race: it may be answering just now.  After this it cannot: it answered, or does nothing.
        channel.shut_down()
        answer = wire.receive(channel)
        if not answer:
            raise _too_late(process)
        return answer
    try:
        return wire.receive(channel)
    except BlockingIOError:
        return b""  # it has ended, and a fork of it holds the connection


def _wait(fd: int, process: Process, give_up: float) -> bool:
    """Wait until there is something to read, or the process has ended; False if nothing."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(process.pidfd, select.POLLIN)
    ready = poll.poll(max(0.0, give_up - time.monotonic()) * 1000)
    return any(which == fd for which, _ in ready)


def _too_late(process: Process) -> TimeoutError:
    return TimeoutError(
        f"{process.name} has run no Python code in time: it is in C code, or frozen"
    )
