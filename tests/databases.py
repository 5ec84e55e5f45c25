"""Connectors, and what workers do with what they connect to: importable by name."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from typing import Any

import aiobgw
from aiobgw import Interrupted, current_worker

from . import targets

DATABASE, OUT, DSN = "AIOBGW_TEST_DATABASE", "AIOBGW_TEST_OUT", "AIOBGW_TEST_DSN"

# Tells once that it runs, and is in C code from then on.
LONG = """
    with recursive n(i) as (select up() union all select i + 1 from n limit 1000000000000)
    select count(*) from n
"""


def note(text: str) -> None:
    targets.write(os.environ[OUT], text)


class Noted(sqlite3.Connection):
    """Says when it is closed."""

    def close(self) -> None:
        note("closed")
        super().close()


def sqlite() -> sqlite3.Connection:
    connection = sqlite3.connect(os.environ[DATABASE], factory=Noted)
    connection.create_function("up", 0, say_up)
    note(f"connected {current_worker().incarnation}")
    return connection


def say_up() -> int:
    targets.say_up()
    return 1


def count() -> None:
    rows = current_worker().connection.execute("select count(*) from item").fetchone()[0]
    note(f"rows {rows}")


def count_once() -> None:
    count()


def interrupted_in_c(times: int = 1) -> None:
    worker = current_worker()
    count()
    for _ in range(times):
        try:
            with worker.interruptible():
                worker.connection.execute(LONG).fetchall()
        except Interrupted as error:
            note(f"interrupted {type(error.__cause__).__name__}")
    count()


def interrupted_in_python() -> None:
    try:
        with current_worker().interruptible():
            try:
                targets.say_up()
                time.sleep(3600)
            except Exception:
                note("swallowed")
    except Interrupted as error:
        note(f"interrupted {isinstance(error.__cause__, KeyboardInterrupt)}")
    count()


def idle_then_query() -> None:
    """Be outside of a block until told, then in one for longer than a stray byte would live."""
    worker = current_worker()
    targets.say_up()
    worker.latches["go"].wait_blocking()
    with worker.interruptible():
        worker.connection.execute(LONG.replace("1000000000000", "2000000")).fetchall()
    count()


def cleanup_is_terminated() -> None:
    try:
        with current_worker().interruptible():
            try:
                targets.say_up()
                time.sleep(3600)
            finally:
                note("cleanup")
                current_worker().latches["cleanup"].set()
                time.sleep(3600)
    except Interrupted:
        note("interrupted")


def signals_all_the_time() -> None:
    """Get SIGINT at every instruction there is; only blocks may notice."""
    worker, over, caught = current_worker(), threading.Event(), 0

    def storm() -> None:
        while not over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.0001)

    threading.Thread(target=storm).start()
    try:
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            try:
                with worker.interruptible():
                    worker.connection.execute("select count(*) from item").fetchone()
            except Interrupted:
                caught += 1
            worker.connection.execute(LONG.replace("1000000000000", "1000")).fetchone()
    finally:
        over.set()
    note(f"caught {caught > 0}")


def misuse() -> None:
    """Enter blocks where they cannot work."""
    block = current_worker().interruptible()
    with block:
        pass
    attempts: list[Any] = [lambda: block.__enter__(), in_thread, lambda: asyncio.run(in_loop())]
    for attempt in attempts:
        try:
            attempt()
        except RuntimeError as error:
            note(str(error))


def in_thread() -> None:
    failed: list[RuntimeError] = []

    def enter() -> None:
        try:
            with current_worker().interruptible():
                pass
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    raise failed[0]


async def in_loop() -> None:
    with current_worker().interruptible():
        pass


def nested() -> None:
    """Be interrupted in the inner block, and go on in the outer one."""
    worker = current_worker()
    with worker.interruptible():
        try:
            with worker.interruptible():
                worker.connection.execute(LONG).fetchall()
        except Interrupted:
            note("inner")
        count()
    note("outer went on")


def ask_without() -> None:
    for ask in (lambda: current_worker().connection, lambda: current_worker().interruptible()):
        try:
            ask()
        except aiobgw.NotAttached as error:
            note(f"{error}; {error.__notes__[0]}")


def fail() -> None:
    raise ZeroDivisionError("after connecting")


# Connectors that fail.


def refuse() -> None:
    raise ConnectionRefusedError("no such database")


async def refuse_async() -> None:
    raise ConnectionRefusedError("no such database")


def hang() -> None:
    targets.say_up()
    time.sleep(3600)


async def hang_async() -> None:
    targets.say_up()
    await asyncio.sleep(3600)


# A connection of asyncio's kind.


class Fake:
    """Counts, waits for ever, and says when it is closed."""

    def __init__(self) -> None:
        self.counted = 0
        self.loop = asyncio.get_running_loop()

    async def count(self) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop
        self.counted += 1
        note(f"counted {self.counted}")

    async def wait(self) -> None:
        targets.say_up()
        await asyncio.sleep(3600)

    async def close(self) -> None:
        await asyncio.sleep(0)
        note("closed")


async def fake() -> Fake:
    await asyncio.sleep(0)
    note(f"connected {current_worker().incarnation}")
    return Fake()


def fake_plainly() -> Fake:
    return Fake()


class OnlyAclose:
    async def aclose(self) -> None:
        note("aclosed")


def only_aclose() -> OnlyAclose:
    return OnlyAclose()


class BadClose:
    def close(self) -> None:
        raise ValueError("cannot be closed")


def bad_close() -> BadClose:
    return BadClose()


class DeadServer:
    async def close(self) -> None:
        note("closing")
        targets.say_up()
        await asyncio.sleep(3600)


def dead_server() -> DeadServer:
    from aiobgw._worker import connection

    connection.CLOSE_TIMEOUT = 0.2
    return DeadServer()


def no_connection() -> object:
    return object()


async def nothing() -> None:
    """Return at once."""


async def fail_async() -> None:
    raise ZeroDivisionError("after connecting")


async def interrupted_async() -> None:
    connection = current_worker().connection
    await connection.count()
    try:
        async with current_worker().interruptible():
            await connection.wait()
    except Interrupted as error:
        task = asyncio.current_task()
        assert task is not None
        note(f"interrupted {type(error.__cause__).__name__} {task.cancelling()}")
    await connection.count()


async def idle_then_count() -> None:
    loop = asyncio.get_running_loop()
    go = current_worker().latches["go"]
    targets.say_up()
    await loop.run_in_executor(None, go.wait_blocking)
    async with current_worker().interruptible():
        await asyncio.sleep(0.05)
        await current_worker().connection.count()


async def interrupted_at_the_end_of_the_body() -> None:
    async with current_worker().interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.05)
    note("went on")


async def cancelled_by_another_too() -> None:
    main = asyncio.current_task()
    assert main is not None

    def both() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        main.cancel()

    asyncio.get_running_loop().call_later(0.01, both)
    try:
        async with current_worker().interruptible():
            await asyncio.sleep(3600)
    except BaseException as error:
        note(type(error).__name__)


async def blocks_of_tasks() -> None:
    """Have two tasks in blocks, one of them in two, and one in none."""
    worker, names = current_worker(), []

    async def action(name: str) -> None:
        try:
            async with worker.interruptible():
                await asyncio.sleep(3600)
        except Interrupted:
            names.append(name)

    async def two() -> None:
        async with worker.interruptible():
            await action("inner")
            await asyncio.sleep(0.05)
            names.append("outer went on")

    async def none() -> None:
        await asyncio.sleep(0.1)
        names.append("none")

    async with asyncio.TaskGroup() as group:
        for job in (action("one"), two(), none()):
            group.create_task(job)
        await asyncio.sleep(0)
        group.create_task(asyncio.to_thread(targets.say_up))
    note(", ".join(sorted(names)))


def returns_a_coroutine() -> Any:
    count()
    return later()


async def later() -> None:
    await asyncio.sleep(0)
    count()


# A real server, with asyncpg.


async def postgres() -> Any:
    import asyncpg

    connection = await asyncpg.connect(os.environ[DSN])
    note(f"connected {connection.get_server_pid()}")
    return connection


async def count_in_postgres() -> None:
    connection = current_worker().connection
    rows = await connection.fetchval("select count(*) from item")
    note(f"rows {rows} {connection.get_server_pid()}")


async def interrupted_in_postgres() -> None:
    connection = current_worker().connection
    await count_in_postgres()
    try:
        async with current_worker().interruptible():
            await connection.execute("select pg_sleep(60)")
    except Interrupted:
        note("interrupted")
    await count_in_postgres()


async def terminated_in_postgres() -> None:
    async with current_worker().interruptible():
        await current_worker().connection.execute("select pg_sleep(60)")
