"""What workers run in the tests of faults."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import Any

import aiobgw

from ..targets import write


class Untakeable(Exception):
    """An error that pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))


def fail_untakeably() -> None:
    raise Untakeable("as asked")


def start_thread() -> int:
    """Have one more thread, which works."""

    def work() -> None:
        while True:
            time.sleep(0.01)

    threading.Thread(target=work, daemon=True).start()
    return threading.active_count()


async def survive(path: str) -> None:
    """Catch the first error where it is awaited, and go on; end by the second one."""
    child = asyncio.ensure_future(asyncio.sleep(3600))
    # Ordering: from a callback, so that this task does wait when the test hears of it.
    asyncio.get_running_loop().call_soon(aiobgw.current_worker().latches["up"].set)
    try:
        await child
    except ConnectionError as error:
        task = asyncio.current_task()
        assert task is not None
        found = {"error": str(error), "child": child.cancelled(), "cancelling": task.cancelling()}
    # A timeout works by a cancellation, too: it must not find one that is left over.
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(3600)
    except TimeoutError:
        found["timeout"] = True
    write(path, json.dumps(found))
    aiobgw.current_worker().latches["up"].set()
    await asyncio.sleep(3600)


async def be_busy() -> None:
    """Await nothing at all."""
    aiobgw.current_worker().latches["up"].set()
    while True:
        time.sleep(0.001)  # noqa: ASYNC251


async def wait_beside_busy_tasks() -> None:
    """Wait, while other tasks and callbacks of the loop run all the time."""
    loop = asyncio.get_running_loop()

    def call_again() -> None:
        loop.call_soon(call_again)

    async def go_round() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    call_again()
    tasks = [asyncio.ensure_future(go_round()) for _ in range(3)]
    aiobgw.current_worker().latches["up"].set()
    await asyncio.gather(*tasks)


def wait_for_a_lock() -> None:
    """Wait in C code that a signal interrupts."""
    lock = threading.Lock()
    lock.acquire()
    aiobgw.current_worker().latches["up"].set()
    lock.acquire()


def wait_at_exit(path: str) -> None:
    """Have the end of this process wait until the path is there, and tell that it does."""
    aiobgw.current_worker().latches["up"].set()
    while not os.path.exists(path):
        time.sleep(0.001)
