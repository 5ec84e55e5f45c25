"""Latches wake whoever waits: tasks, plain code, other processes; and lose no wakeup."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from aiobgw import Latch

from .. import procs

pytestmark = pytest.mark.anyio

ENOUGH = 10.0


@pytest.fixture
def latch() -> Iterator[Latch]:
    latch = Latch()
    yield latch
    latch.close()


async def reach(turns: int = 3) -> None:
    """Let every other task run until it waits."""
    for _ in range(turns):
        await asyncio.sleep(0)


# The flag.


def test_a_new_latch_is_not_set(latch: Latch) -> None:
    assert not latch.is_set()


def test_a_latch_stays_set_until_it_is_reset(latch: Latch) -> None:
    latch.set()
    assert latch.is_set()
    assert latch.is_set()
    latch.reset()
    assert not latch.is_set()
    latch.reset()
    assert not latch.is_set()


def test_setting_it_twice_is_setting_it_once(latch: Latch) -> None:
    latch.set()
    latch.set()
    latch.reset()
    assert not latch.is_set()


def test_setting_a_latch_that_can_count_no_further_neither_blocks_nor_fails(latch: Latch) -> None:
    os.eventfd_write(latch.fileno(), 2**64 - 2)
    latch.set()
    assert latch.is_set()
    latch.reset()
    assert not latch.is_set()


def test_a_latch_is_closed_on_exec_and_never_blocks(latch: Latch) -> None:
    assert not os.get_inheritable(latch.fileno())
    assert not os.get_blocking(latch.fileno())


def test_a_latch_says_how_it_is(latch: Latch) -> None:
    assert repr(latch) == f"<Latch fd={latch.fileno()} not set>"
    latch.set()
    assert repr(latch) == f"<Latch fd={latch.fileno()} set>"
    latch.close()
    assert repr(latch) == "<Latch closed>"
    latch.close()


def test_a_latch_that_is_forgotten_gives_its_descriptor_back() -> None:
    before = procs.open_fds()
    latch = Latch()
    fd = latch.fileno()
    assert fd in procs.open_fds().keys() - before.keys()
    del latch
    assert fd not in procs.open_fds()


# Waiting in plain code.


def test_a_blocking_wait_ends_after_its_timeout_and_says_that_nothing_came(latch: Latch) -> None:
    began = time.monotonic()
    assert not latch.wait_blocking(0.05)
    assert time.monotonic() - began >= 0.045


def test_a_blocking_wait_for_a_set_latch_does_not_wait(latch: Latch) -> None:
    latch.set()
    assert latch.wait_blocking()
    assert latch.wait_blocking(0)
    assert latch.wait_blocking(-1)


def test_a_blocking_wait_ends_when_another_thread_sets_it(latch: Latch) -> None:
    thread = threading.Thread(target=latch.set)
    thread.start()
    assert latch.wait_blocking(ENOUGH)
    thread.join()


def test_a_blocking_wait_ends_when_a_signal_handler_sets_it(latch: Latch) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: latch.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert latch.wait_blocking(ENOUGH)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_blocking_wait_is_not_ended_by_a_signal_that_sets_nothing(latch: Latch) -> None:
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        began = time.monotonic()
        assert not latch.wait_blocking(0.1)
        assert time.monotonic() - began >= 0.095
        assert heard
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Waiting in tasks.


async def test_waiting_for_a_set_latch_returns_at_once(latch: Latch) -> None:
    latch.set()
    await asyncio.wait_for(latch.wait(), ENOUGH)
    assert latch.is_set(), "waiting does not reset"


async def test_a_task_waits_until_the_latch_is_set(latch: Latch) -> None:
    waiter = asyncio.create_task(latch.wait())
    await reach()
    assert not waiter.done()
    latch.set()
    await asyncio.wait_for(waiter, ENOUGH)


async def test_all_who_wait_are_woken_by_one_set(latch: Latch) -> None:
    waiters = [asyncio.create_task(latch.wait()) for _ in range(5)]
    await reach()
    latch.set()
    await asyncio.wait_for(asyncio.gather(*waiters), ENOUGH)


async def test_a_cancelled_wait_takes_nothing_away_from_the_others(latch: Latch) -> None:
    waiters = [asyncio.create_task(latch.wait()) for _ in range(3)]
    await reach()
    waiters[0].cancel()
    await reach()
    assert [waiter.done() for waiter in waiters] == [True, False, False]

    latch.set()
    await asyncio.wait_for(asyncio.gather(*waiters[1:]), ENOUGH)


async def test_a_wait_that_is_cancelled_while_it_is_woken_takes_nothing_away(latch: Latch) -> None:
    waiters = [asyncio.create_task(latch.wait()) for _ in range(2)]
    await reach()
    latch.set()
    waiters[0].cancel()
    await asyncio.wait_for(waiters[1], ENOUGH)
    await asyncio.wait(waiters, timeout=ENOUGH)
    assert waiters[0].cancelled()
    assert latch.is_set()


async def test_a_latch_that_nobody_waits_for_any_more_is_not_watched(latch: Latch) -> None:
    """Level-triggered: a reader left behind would spin for as long as the latch is set."""
    for ending in ("set", "cancelled"):
        waiter = asyncio.create_task(latch.wait())
        await reach()
        if ending == "set":
            latch.set()
        else:
            waiter.cancel()
        await asyncio.wait([waiter], timeout=ENOUGH)
        assert not asyncio.get_running_loop().remove_reader(latch.fileno())
        latch.reset()


async def test_a_latch_can_be_waited_for_again_and_again(latch: Latch) -> None:
    for _ in range(50):
        waiter = asyncio.create_task(latch.wait())
        await reach(1)
        latch.set()
        await asyncio.wait_for(waiter, ENOUGH)
        latch.reset()


async def test_a_wait_takes_a_timeout_and_can_be_made_again(latch: Latch) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await latch.wait()
    latch.set()
    await asyncio.wait_for(latch.wait(), ENOUGH)


async def test_a_latch_is_set_from_a_thread(latch: Latch) -> None:
    waiter = asyncio.create_task(latch.wait())
    await reach()
    thread = threading.Thread(target=latch.set)
    thread.start()
    await asyncio.wait_for(waiter, ENOUGH)
    thread.join()


async def test_a_latch_is_set_from_a_signal_handler(latch: Latch) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: latch.set())
    try:
        waiter = asyncio.create_task(latch.wait())
        await reach()
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(waiter, ENOUGH)
    finally:
        signal.signal(signal.SIGUSR1, before)


def _have_a_child_set_it(fd: int) -> subprocess.Popen[bytes]:
    """Hand the descriptor to another process, which makes a latch of it again."""
    source = "import sys, aiobgw; aiobgw.Latch.adopt(int(sys.argv[1])).set()"
    return subprocess.Popen([sys.executable, "-c", source, str(fd)], pass_fds=[fd], cwd=procs.ROOT)


async def test_a_latch_is_set_from_another_process(latch: Latch) -> None:
    waiter = asyncio.create_task(latch.wait())
    await reach()
    child = _have_a_child_set_it(latch.fileno())
    await asyncio.wait_for(waiter, ENOUGH)
    assert child.wait(ENOUGH) == 0


async def test_reset_then_look_loses_no_wakeup(latch: Latch) -> None:
    """The shape of the docstring, against a setter that writes first and sets then."""
    total, given, taken, woken = 2_000, 0, 0, 0

    def give() -> None:
        nonlocal given
        for _ in range(total):
            given += 1
            latch.set()

    thread = threading.Thread(target=give)
    thread.start()
    async with asyncio.timeout(ENOUGH):
        while True:
            latch.reset()
            taken = given
            if taken == total:
                break
            await latch.wait()
            woken += 1
    thread.join()
    assert (taken, given) == (total, total)
    assert woken <= total
