"""What workers run in tests of liveness, limits and stops."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time

import aiobgw

from . import targets


def stuck_in_python() -> None:
    time.sleep(3600)


def stuck_in_c() -> None:
    """Wait with Python's lock held: no other thread runs, no handler either."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def asleep_in_c() -> None:
    """Sleep with Python's lock held, until any signal comes."""
    ctypes.PyDLL(None).sleep(3600)


async def block(where: str) -> None:
    """Let the loop run for a moment, and then no more."""
    await asyncio.sleep(0.05)
    {"python": stuck_in_python, "c": stuck_in_c, "sleep": asleep_in_c}[where]()


def say_nothing() -> None:
    """Be a plain target that knows nothing of its watchdog."""
    stuck_in_python()


def say_nothing_in_threads() -> None:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    stuck_in_python()


def beat() -> None:
    targets.say_up()
    while True:
        aiobgw.current_worker().beat()
        time.sleep(0.02)


def beat_in_a_thread() -> None:
    threading.Thread(target=beat, daemon=True).start()
    time.sleep(3600)


async def beat_and_sleep() -> None:
    """Be an async target that calls what only plain ones must."""
    aiobgw.current_worker().beat()
    await asyncio.sleep(3600)


async def sleep_as_the_last() -> None:
    """Be at the end of every queue for the processor."""
    os.nice(19)
    await asyncio.sleep(3600)


def beat_without_a_watchdog() -> None:
    for _ in range(1000):
        aiobgw.current_worker().beat()


def read_nothing() -> None:
    """Crash in C."""
    ctypes.string_at(0)


def _stacks_fd() -> int:
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if "aiobgw-stacks" in os.readlink(f"/proc/self/fd/{fd}"):
                return fd
        except FileNotFoundError:
            pass  # the descriptor that listdir() itself was using
    raise AssertionError("there is none")


def scribble_and_die(how: str) -> None:
    """Write whatever there is room for where the stacks go, and try for more."""
    fd = _stacks_fd()
    room = os.fstat(fd).st_size
    os.pwrite(fd, b"\xff scribbled " * (room // 12), 0)
    for attempt in (
        lambda: os.pwrite(fd, b"x", room),
        lambda: os.ftruncate(fd, 2 * room),
        lambda: os.ftruncate(fd, 0),
    ):
        try:
            attempt()
        except PermissionError:
            continue
        os._exit(99)
    if how == "abort":
        os.abort()
    sys.exit(3)


def member(filler: bytes) -> None:
    """Beat until the latch "go" is set, if everything that came with the order is in its place."""
    worker = aiobgw.current_worker()
    assert len(filler) == 20_000
    assert worker.status().name == "test"
    worker.latches["up"].set()
    while not worker.latches["go"].is_set():
        worker.beat()
        time.sleep(0.02)
    stuck_in_python()


def hold(size: int) -> None:
    """Have so much memory, touched, and keep it."""
    held = b"\1" * size
    targets.say_up()
    time.sleep(3600)
    del held


def end_with(code: int) -> None:
    """End, when asked to, with a code of its own."""
    targets.say_up()
    try:
        time.sleep(3600)
    except aiobgw.Terminated:
        sys.exit(code)


async def end_with_async(code: int) -> None:
    targets.say_up()
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        sys.exit(code)


async def end_slowly(seconds: float) -> None:
    """Take a while for the clean-up."""
    targets.say_up()
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(seconds)


def ignore_term_with_a_child(path: str) -> None:
    """Have a child, and no intention to end, neither of the two."""
    child = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; sleep 1000"])
    targets.write(path, str(child.pid))
    targets.ignore_term()
