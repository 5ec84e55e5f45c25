"""Workers connected to a real PostgreSQL server, by asyncpg."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Restart, WorkerHandle, WorkerSpec

from .. import databases, postgres
from ..conftest import MakeSupervisor

asyncpg = pytest.importorskip("asyncpg")
reason = postgres.why_not()
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(reason is not None, reason=f"PostgreSQL: {reason}"),
]

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture(scope="module")  # no longer: it is a child of the test process, its subreaper
def dsn() -> Iterator[str]:
    with postgres.server() as dsn:
        yield dsn


@pytest.fixture
async def session(
    dsn: str, anyio_backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """Make a table of three rows; give a connection of the test's own."""
    monkeypatch.setenv(databases.DSN, dsn)
    monkeypatch.setenv(databases.OUT, str(tmp_path / "out"))
    connection = await asyncpg.connect(dsn)
    await connection.execute("drop table if exists item; create table item (name text)")
    await connection.execute("insert into item values ('a'), ('b'), ('c')")
    yield connection
    await connection.close()


async def started(supervisor: aiobgw.Supervisor, target: Any, loop: str) -> WorkerHandle:
    spec = WorkerSpec(
        name="worker",
        target=target,
        flags=Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION,
        restart=Restart.NEVER,
        loop=loop,
    )
    handle = await supervisor.register(spec)
    await handle.wait_for_startup()
    return handle


async def backend_sleeps(session: Any) -> int:
    """Return the pid of the backend that is in pg_sleep, when there is one."""
    async with asyncio.timeout(30):
        while True:
            pid = await session.fetchval(
                "select pid from pg_stat_activity"
                " where query like 'select pg_sleep%' and state = 'active'"
            )
            if pid is not None:
                return int(pid)


async def backend_gone(session: Any, pid: int) -> None:
    """Return when a backend is gone; its end is not awaited by the client's."""
    async with asyncio.timeout(30):
        while await session.fetchval("select true from pg_stat_activity where pid = $1", pid):
            pass


@LOOPS
async def test_a_worker_is_interrupted_in_a_long_query_and_goes_on_with_its_connection(
    make_supervisor: MakeSupervisor, session: Any, tmp_path: Path, loop: str
) -> None:
    supervisor = await make_supervisor(connector=databases.postgres)
    handle = await started(supervisor, databases.interrupted_in_postgres, loop)
    pid = await backend_sleeps(session)
    handle.signal(signal.SIGINT)
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    exit.check()
    assert (tmp_path / "out").read_text().splitlines() == [
        f"connected {pid}",
        f"rows 3 {pid}",
        "interrupted",
        f"rows 3 {pid}",
    ]
    await backend_gone(session, pid)


@LOOPS
async def test_a_worker_that_is_terminated_in_a_long_query_leaves_no_backend_behind(
    make_supervisor: MakeSupervisor, session: Any, loop: str
) -> None:
    supervisor = await make_supervisor(connector=databases.postgres)
    handle = await started(supervisor, databases.terminated_in_postgres, loop)
    pid = await backend_sleeps(session)
    handle.terminate()
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 1)
    await backend_gone(session, pid)


async def test_a_worker_whose_server_is_not_there_never_starts(
    make_supervisor: MakeSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(databases.DSN, f"postgresql://test@/postgres?host={tmp_path}")
    supervisor = await make_supervisor(connector=databases.postgres)
    spec = WorkerSpec(
        name="worker",
        target=databases.nothing,
        flags=Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION,
        restart_delay=60,
    )
    handle = await supervisor.register(spec)
    with pytest.raises(aiobgw.NeverStarted, match="FileNotFoundError"):
        await handle.wait_for_startup()
