"""What members of a crash cycle run in tests; not tests themselves."""

from __future__ import annotations

import os
import signal
import sys
import time

import aiobgw

from . import targets


def stay(path: str = "") -> None:
    """Say that it is up, and stay; written down first, if there is a path."""
    if path:
        targets.write(path, f"{aiobgw.current_worker().name} {os.getpid()}")
    targets.say_up()
    time.sleep(3600)


def ignore_quit() -> None:
    """Be ended by nothing but SIGKILL, the first time."""
    if aiobgw.current_worker().incarnation == 1:
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay()


def end_at_quit(code: int) -> None:
    """End by a handler of its own, without a farewell, as PostgreSQL's quickdie() does."""
    signal.signal(signal.SIGQUIT, lambda *_: os._exit(code))
    stay()


def leave_at_quit(code: int) -> None:
    """End in order, with a farewell, where others are ended."""
    signal.signal(signal.SIGQUIT, lambda *_: sys.exit(code))
    stay()


def leave(code: int) -> None:
    """End in order when the latch "go" is set, once."""
    targets.say_up()
    if aiobgw.current_worker().incarnation == 1:
        aiobgw.current_worker().latches["go"].wait_blocking()
        sys.exit(code)
    time.sleep(3600)


def leave_rudely(code: int) -> None:
    """End without a farewell when the latch "go" is set, once."""
    targets.say_up()
    if aiobgw.current_worker().incarnation == 1:
        aiobgw.current_worker().latches["go"].wait_blocking()
        os._exit(code)
    time.sleep(3600)


def chatter(times: int) -> None:
    """Say more than the supervisor's channel holds, and end in order."""
    targets.say_up()
    for _ in range(times):
        aiobgw.current_worker().ready()
