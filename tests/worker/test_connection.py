"""Workers with a database connection: who opens it, who closes it, and what SIGINT ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Restart, WorkerHandle, WorkerSpec

from .. import databases, procs
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

CONNECTED = Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a database of three rows; return where workers write down what they did."""
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("create table item (name text)")
    connection.executemany("insert into item values (?)", [("a",), ("b",), ("c",)])
    connection.commit()
    connection.close()
    monkeypatch.setenv(databases.DATABASE, str(path))
    monkeypatch.setenv(databases.OUT, str(tmp_path / "out"))
    return tmp_path / "out"


class Work:
    """One worker, its latches, and what it wrote."""

    def __init__(self, make_supervisor: MakeSupervisor, out: Path) -> None:
        self._make_supervisor = make_supervisor
        self.latches = {name: aiobgw.Latch() for name in ("up", "go", "cleanup")}
        self._out = out

    async def start(self, connector: Any, target: Any, **more: Any) -> WorkerHandle:
        """Register it with a supervisor that has this connector."""
        supervisor = await self._make_supervisor(connector=connector)
        more = {"flags": CONNECTED, "restart": Restart.NEVER, "latches": self.latches} | more
        self.handle = await supervisor.register(WorkerSpec(name="worker", target=target, **more))
        return self.handle

    async def up(self) -> None:
        """Return when the worker has said that it is up, again perhaps."""
        await self.latches["up"].wait()
        self.latches["up"].reset()

    async def exit(self, kind: ExitKind = ExitKind.CLEAN) -> aiobgw.ExitStatus:
        exit = await self.handle.wait_for_shutdown()
        assert exit is not None and exit.kind is kind, f"{exit}: {exit and exit.error}"
        return exit

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines() if self._out.exists() else []


@pytest.fixture
def work(make_supervisor: MakeSupervisor, out: Path) -> Iterator[Work]:
    work = Work(make_supervisor, out)
    yield work
    for latch in work.latches.values():
        latch.close()


# Opening and closing.


@pytest.mark.parametrize("connector", [databases.sqlite, f"{databases.__name__}:sqlite"])
async def test_a_plain_target_finds_its_connection_open_and_it_is_closed_at_the_end(
    work: Work, connector: Any
) -> None:
    await work.start(connector, databases.count_once)
    await work.exit()
    assert work.lines == ["connected 1", "rows 3", "closed"]


@LOOPS
async def test_an_async_target_finds_its_connection_open_and_it_is_closed_at_the_end(
    work: Work, loop: str
) -> None:
    await work.start(databases.fake, databases.nothing, loop=loop)
    await work.exit()
    assert work.lines == ["connected 1", "closed"]


@pytest.mark.parametrize(
    ("connector", "target"),
    [
        (databases.sqlite, databases.fail),
        (databases.sqlite, databases.fail_async),
        (databases.fake, databases.fail_async),
    ],
)
async def test_it_is_closed_after_an_exception_that_stays_the_reason_of_the_exit(
    work: Work,
    connector: Callable[[], Any],
    target: Callable[[], Any],
) -> None:
    await work.start(connector, target)
    exit = await work.exit(ExitKind.FAILED)
    assert "ZeroDivisionError: after connecting" in (exit.error or "")
    assert work.lines == ["connected 1", "closed"]


async def test_every_incarnation_gets_a_connection_of_its_own(work: Work) -> None:
    handle = await work.start(databases.sqlite, databases.interrupted_in_python)
    for _ in range(2):
        await work.up()
        handle.restart()
    await work.up()
    handle.signal(signal.SIGINT)
    await work.exit()
    assert [line for line in work.lines if line != "closed"] == [
        "connected 1",
        "connected 2",
        "connected 3",
        "interrupted True",
        "rows 3",
    ]
    assert work.lines.count("closed") == 3


async def test_a_plain_target_that_returns_a_coroutine_has_its_connection_in_both(
    work: Work,
) -> None:
    await work.start(databases.sqlite, databases.returns_a_coroutine)
    await work.exit()
    assert work.lines == ["connected 1", "rows 3", "rows 3", "closed"]


async def test_what_has_no_close_is_closed_by_aclose_or_not_at_all(
    work: Work,
) -> None:
    await work.start(databases.only_aclose, databases.nothing)
    await work.exit()
    assert work.lines == ["aclosed"]

    for target in (databases.nothing, "os:getpid"):
        await work.start(databases.no_connection, target)
        await work.exit()


@pytest.mark.parametrize(
    ("connector", "target", "message"),
    [
        (databases.bad_close, "os:getpid", "ValueError: cannot be closed"),
        (databases.bad_close, databases.nothing, "ValueError: cannot be closed"),
        (databases.only_aclose, "os:getpid", "TypeError: its close is async"),
        (databases.dead_server, databases.nothing, "it was given 0.2 s"),
    ],
)
async def test_an_error_while_closing_is_printed_and_changes_nothing_of_the_exit(
    work: Work,
    capfd: pytest.CaptureFixture[str],
    connector: Any,
    target: Any,
    message: str,
) -> None:
    await work.start(connector, target)
    await work.exit()
    printed = capfd.readouterr().err
    assert "the database connection was not closed in order" in printed
    assert message in printed
    assert "never awaited" not in printed


async def test_sigterm_while_closing_changes_nothing_of_the_exit(work: Work) -> None:
    handle = await work.start(databases.dead_server, databases.nothing)
    await work.up()
    handle.signal(signal.SIGTERM)
    await work.exit()


# Connectors that fail, and workers that have none.


@pytest.mark.parametrize(
    ("connector", "target", "message"),
    [
        (databases.refuse, "os:getpid", "ConnectionRefusedError: no such database"),
        (databases.refuse_async, databases.nothing, "ConnectionRefusedError: no such database"),
        (databases.fake, "os:getpid", "is async \\(it returned coroutine\\), and a plain target"),
        ("no.such.module:connect", "os:getpid", "ModuleNotFoundError: No module named 'no'"),
    ],
)
async def test_a_connector_that_fails_is_a_worker_that_never_started(
    work: Work,
    capfd: pytest.CaptureFixture[str],
    connector: Any,
    target: Any,
    message: str,
) -> None:
    options: dict[str, Any] = {"restart": Restart.ON_FAILURE, "restart_delay": 60}
    handle = await work.start(connector, target, **options)
    with pytest.raises(aiobgw.NeverStarted, match=message) as raised:
        await handle.wait_for_startup()
    assert raised.value.next_start_at is not None, "the restart rule applies"
    handle.terminate()
    await work.exit(ExitKind.FAILED)
    assert "never awaited" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("connector", "target"),
    [(databases.hang, "os:getpid"), (databases.hang_async, databases.nothing)],
)
async def test_a_connector_that_hangs_can_be_terminated(
    work: Work, connector: Any, target: Any
) -> None:
    handle = await work.start(connector, target)
    await work.up()
    handle.terminate()
    with pytest.raises(aiobgw.NeverStarted):
        await handle.wait_for_startup()
    assert (await work.exit(ExitKind.TERMINATED)).code == 1


async def test_without_a_connector_the_flag_is_refused(supervisor: aiobgw.Supervisor) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match="this supervisor has no connector") as raised:
        await supervisor.register(WorkerSpec(name="w", target="os:getpid", flags=CONNECTED))
    assert "Supervisor(connector=" in raised.value.__notes__[0]


async def test_without_the_flag_there_is_no_connection(work: Work) -> None:
    await work.start(databases.sqlite, databases.ask_without, flags=Flags.SHMEM_ACCESS)
    await work.exit()
    hint = "hint: register it with Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION"
    assert work.lines == [f"worker 'worker' has no database connection; {hint}"] * 2


SCRIPT = """
import asyncio, sqlite3
import aiobgw
from aiobgw import Flags, WorkerSpec

def connect():
    return sqlite3.connect(":memory:")

async def main():
    flags = Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION
    async with aiobgw.Supervisor(name="script", connector=connect) as supervisor:
        handle = await supervisor.register(
            WorkerSpec(name="w", target="os:getpid", flags=flags)
        )
        print((await handle.wait_for_shutdown()).kind)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_connector_may_be_a_function_of_the_main_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(procs.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "ExitKind.CLEAN\n", ran.stderr


# SIGINT, in plain targets.


@pytest.mark.parametrize("times", [1, 2])
async def test_a_long_query_is_interrupted_and_the_worker_goes_on(work: Work, times: int) -> None:
    handle = await work.start(databases.sqlite, databases.interrupted_in_c, args=(times,))
    for _ in range(times):
        await work.up()
        handle.signal(signal.SIGINT)
    await work.exit()
    interrupted = ["interrupted OperationalError"] * times
    assert work.lines == ["connected 1", "rows 3", *interrupted, "rows 3", "closed"]


async def test_python_code_is_interrupted_and_cannot_swallow_it_as_an_exception(work: Work) -> None:
    handle = await work.start(databases.sqlite, databases.interrupted_in_python)
    await work.up()
    handle.signal(signal.SIGINT)
    await work.exit()
    assert work.lines == ["connected 1", "interrupted True", "rows 3", "closed"]


async def test_only_the_innermost_block_is_interrupted(work: Work) -> None:
    handle = await work.start(databases.sqlite, databases.nested)
    await work.up()
    handle.signal(signal.SIGINT)
    await work.exit()
    assert work.lines == ["connected 1", "inner", "rows 3", "outer went on", "closed"]


async def test_sigint_outside_of_a_block_does_nothing_and_is_not_kept_for_the_next(
    work: Work,
) -> None:
    handle = await work.start(databases.sqlite, databases.idle_then_query)
    await work.up()
    handle.signal(signal.SIGINT)
    work.latches["go"].set()
    await work.exit()
    assert work.lines == ["connected 1", "rows 3", "closed"]


async def test_sigterm_ends_a_long_query_and_the_worker(work: Work) -> None:
    handle = await work.start(databases.sqlite, databases.interrupted_in_c, stop_timeout=60.0)
    await work.up()
    handle.terminate()
    assert (await work.exit(ExitKind.TERMINATED)).code == 1
    assert work.lines == ["connected 1", "rows 3", "closed"]


async def test_terminated_goes_before_interrupted(work: Work) -> None:
    handle = await work.start(databases.sqlite, databases.cleanup_is_terminated)
    await work.up()
    handle.signal(signal.SIGINT)
    await work.latches["cleanup"].wait()
    handle.signal(signal.SIGINT)  # a cleanup at work is left alone
    handle.terminate()
    assert (await work.exit(ExitKind.TERMINATED)).code == 1
    assert work.lines == ["connected 1", "cleanup", "closed"]


async def test_a_storm_of_signals_is_felt_in_blocks_only(work: Work) -> None:
    await work.start(databases.sqlite, databases.signals_all_the_time)
    await work.exit()
    assert work.lines == ["connected 1", "caught True", "closed"]


async def test_blocks_say_where_they_cannot_work(work: Work) -> None:
    await work.start(databases.sqlite, databases.misuse)
    await work.exit()
    assert work.lines[1:-1] == [
        "an interruptible block is entered once",
        "'with interruptible()' is for the main thread, which gets signals",
        "in a coroutine it is 'async with interruptible()'",
    ]


# SIGINT, in async targets.


@LOOPS
async def test_an_await_is_interrupted_and_the_worker_goes_on(work: Work, loop: str) -> None:
    handle = await work.start(databases.fake, databases.interrupted_async, loop=loop)
    await work.up()
    handle.signal(signal.SIGINT)
    await work.exit()
    assert work.lines == [
        "connected 1",
        "counted 1",
        "interrupted CancelledError 0",
        "counted 2",
        "closed",
    ]


@LOOPS
async def test_sigint_outside_of_a_block_cancels_nothing(work: Work, loop: str) -> None:
    handle = await work.start(databases.fake, databases.idle_then_count, loop=loop)
    await work.up()
    handle.signal(signal.SIGINT)
    work.latches["go"].set()
    await work.exit()
    assert work.lines == ["connected 1", "counted 1", "closed"]


@LOOPS
async def test_sigint_at_the_end_of_a_block_does_not_hit_what_comes_after(
    work: Work, loop: str
) -> None:
    await work.start(databases.fake, databases.interrupted_at_the_end_of_the_body, loop=loop)
    await work.exit()
    assert work.lines == ["connected 1", "went on", "closed"]


@LOOPS
async def test_sigterm_in_a_block_ends_the_worker(work: Work, loop: str) -> None:
    handle = await work.start(databases.fake, databases.interrupted_async, loop=loop)
    await work.up()
    handle.terminate()
    await work.exit(ExitKind.TERMINATED)
    assert work.lines == ["connected 1", "counted 1", "closed"]


@LOOPS
async def test_sigterm_and_sigint_at_once_end_the_worker(work: Work, loop: str) -> None:
    handle = await work.start(databases.fake, databases.interrupted_async, loop=loop)
    await work.up()
    pid = handle.status().pid or 0
    procs.stop(pid)
    handle.signal(signal.SIGINT)
    handle.terminate()  # which wakes it
    await work.exit(ExitKind.TERMINATED)
    assert "counted 2" not in work.lines
    assert work.lines[-1] == "closed"


@LOOPS
async def test_the_cancellation_of_somebody_else_goes_first(work: Work, loop: str) -> None:
    await work.start(databases.fake, databases.cancelled_by_another_too, loop=loop)
    await work.exit()
    assert work.lines == ["connected 1", "CancelledError", "closed"]


@LOOPS
async def test_every_task_is_interrupted_in_its_innermost_block(work: Work, loop: str) -> None:
    handle = await work.start(databases.fake, databases.blocks_of_tasks, loop=loop)
    await work.up()
    handle.signal(signal.SIGINT)
    await work.exit()
    assert work.lines[1:-1] == ["inner, none, one, outer went on"]
