"""What workers run in tests: importable by name, and not tests themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

import aiobgw


def nothing() -> None:
    """Return at once."""


async def nothing_async() -> None:
    """Return at once, from an event loop."""


def write(path: str, text: str = "") -> None:
    """Append a line to a file, so that a test sees that, and how often, this ran."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(fd, (text or str(os.getpid())).encode() + b"\n")
    os.close(fd)


def sleep(seconds: float = 3600.0) -> None:
    """Sleep, and end by SIGTERM as a plain target does."""
    time.sleep(seconds)


async def sleep_async(seconds: float = 3600.0) -> None:
    await asyncio.sleep(seconds)


def say_up() -> None:
    """Set the latch "up", if the spec has one."""
    latch = aiobgw.current_worker().latches.get("up")
    if latch is not None:
        latch.set()


def hear_nothing() -> None:
    """Wait in a thread that no SIGTERM comes to: another one takes it."""
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    say_up()
    time.sleep(3600)


def spin() -> None:
    """Stay in C for ever: no Python handler runs here."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    say_up()
    sum(range(10**15))


def ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_up()
    while True:
        time.sleep(3600)


def exit_with(code: int) -> None:
    """End with a code of its own, in order."""
    sys.exit(code)


def exit_rudely(code: int) -> None:
    """End without a farewell."""
    os._exit(code)


def kill_self(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(60)


def fail(message: str = "as asked") -> None:
    raise ValueError(message)


def note_and_fail(path: str) -> None:
    """Append which start this is, and when; then fail."""
    write(path, f"{aiobgw.current_worker().incarnation} {time.time()}")
    raise ValueError("as asked")


async def fail_async(message: str = "as asked") -> None:
    raise ValueError(message)


def wait_then_exit(code: int) -> None:
    """Exit, without a word, when the latch "go" is set."""
    aiobgw.current_worker().latches["go"].wait_blocking()
    os._exit(code)


def fds(path: str) -> None:
    """Write down which descriptors there are, and what they are."""
    found = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass
    write(path, "\n".join(found))


async def fds_async(path: str) -> None:
    fds(path)


def modules(path: str) -> None:
    write(path, "\n".join(sorted(sys.modules)))


def write_pid_and_sleep(path: str) -> None:
    """Write the pid into a pipe, and sleep."""
    with open(path, "w") as pipe:
        pipe.write(str(os.getpid()))
    time.sleep(3600)


def wait_for_latch(path: str) -> None:
    """Wait on the worker's own latch, and say so before and after."""
    worker = aiobgw.current_worker()
    latch = worker.latch
    write(path, "waiting")
    latch.wait_blocking()
    write(path, "woken")


async def describe(path: str) -> None:
    worker = aiobgw.current_worker()
    spec = worker.spec
    write(
        path, f"{worker.name} {worker.incarnation} {spec.type} {spec.extra!r} {spec.restart.name}"
    )


def start_threads(path: str) -> None:
    """Leave a thread behind that still has something to do."""

    def late() -> None:
        time.sleep(0.2)
        write(path, "thread")

    threading.Thread(target=late).start()


def echo(path: str, *args: Any, **kwargs: Any) -> None:
    write(path, repr((args, kwargs)))
