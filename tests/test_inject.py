"""The marks where two processes meet do what a test asks for, and nothing otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiobgw import _inject


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    _inject.arm("")


def test_an_unarmed_mark_does_nothing() -> None:
    _inject._inject("before_hello")
    _inject.arm("elsewhere:fail")
    _inject._inject("before_hello")


def test_fail_raises_the_error_of_that_number() -> None:
    _inject.arm("fork:fail=12,other:fail")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        _inject._inject("fork")
    with pytest.raises(BlockingIOError):
        _inject._inject("other")


def test_a_token_makes_it_happen_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    _inject.arm(f"fork:fail@{token}")
    with pytest.raises(BlockingIOError):
        _inject._inject("fork")
    _inject._inject("fork")


def test_wait_blocks_until_the_gate_is_opened(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    _inject.arm(f"fork:wait={gate}")
    waiting = threading.Thread(target=_inject._inject, args=("fork",))
    waiting.start()
    os.close(os.open(gate, os.O_WRONLY))  # opens when the other side is there
    waiting.join(10)
    assert not waiting.is_alive()


def test_die_ends_the_process_there() -> None:
    _inject.arm("fork:die")
    pid = os.fork()
    if pid == 0:
        _inject._inject("fork")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77
