"""What workers run in the tests of shared supervisors, and how everybody tells the test."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import aiobgw

FIFO = "fifo"


def say(directory: str | os.PathLike[str], what: str, **details: object) -> None:
    """Tell the test, which holds the other end, in one piece."""
    line = json.dumps({"what": what, "pid": os.getpid(), **details}) + "\n"
    fd = os.open(os.path.join(directory, FIFO), os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, line.encode())
    os.close(fd)


def claim(directory: str) -> None:
    """Hold a lock for the rest of this process; tell of it, or that another one holds it."""
    name = aiobgw.current_worker().name
    lock = os.open(Path(directory, f"{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(directory, "twice", name=name)
        raise
    say(directory, "start", name=name)


def alone(directory: str) -> None:
    """Be the only one of this name, to the end."""
    claim(directory)
    time.sleep(3600)


def alone_and_stubborn(directory: str) -> None:
    """End by nothing but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    claim(directory)
    while True:
        time.sleep(3600)


async def tick(directory: str, seconds: float) -> None:
    """Be the only one of this name, and tell the time."""
    claim(directory)
    while True:
        say(directory, "tick")
        await asyncio.sleep(seconds)


def once(directory: str) -> None:
    """Do what is to be done once."""
    claim(directory)


def on_request(directory: str) -> None:
    """Do what somebody asked for, as often as it is asked for."""
    say(directory, "done")
