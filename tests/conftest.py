"""Fixtures for all tests.  The first one is the most important: nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import aiobgw

from . import procs

pytest_plugins = ["pytester"]

SETTLE = 5.0

procs.become_subreaper()
uvloop.new_event_loop().close()  # libuv makes a pipe of its own, once for the process

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every async test runs on asyncio, and on uvloop."""
    return request.param


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor, or a file in /dev/shm behind."""
    fds, processes, files = procs.open_fds(), procs.children(), _shared_memory()
    yield
    gc.collect()
    left = _settled(processes)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    titles = [f"{pid}: {procs.title(pid)}" for pid in left]
    assert not titles, f"processes left behind: {titles}"

    after = procs.open_fds()
    leaked = {fd: what for fd, what in after.items() if fds.get(fd) != what}
    assert not leaked, f"descriptors left behind: {leaked}"
    assert _shared_memory() <= files


def _shared_memory() -> set[str]:
    """Return the shared memory of this machine, but that of PostgreSQL servers of others."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("PostgreSQL.")}


def _settled(before: set[int]) -> set[int]:
    """Reap orphans that became ours; return what still runs when it should be over."""
    give_up = time.monotonic() + SETTLE
    while True:
        procs.reap(procs.children() - before)
        left = {pid for pid in procs.children() - before if procs.is_alive(pid)}
        if not left or time.monotonic() > give_up:
            return left
        procs.wait_dead(left, 0.5)


MakeSupervisor = Callable[..., Awaitable[aiobgw.Supervisor]]


@pytest.fixture
async def make_supervisor(anyio_backend: Any) -> AsyncIterator[MakeSupervisor]:
    """Start supervisors, which are shut down at the end of the test."""
    made: list[aiobgw.Supervisor] = []

    async def make(*specs: aiobgw.WorkerSpec, **options: Any) -> aiobgw.Supervisor:
        options.setdefault("name", "test")
        options.setdefault("spares", 0)
        supervisor = aiobgw.Supervisor(**options)
        for spec in specs:
            supervisor.add(spec)
        made.append(await supervisor.__aenter__())
        return supervisor

    yield make
    for supervisor in made:
        try:
            await supervisor.shutdown(aiobgw.ShutdownMode.IMMEDIATE)
        except aiobgw.SupervisorDied:
            pass  # the test abandoned it
    made.clear()  # pytest holds this function for longer, and an abandoned one its latches


@pytest.fixture
async def supervisor(make_supervisor: MakeSupervisor) -> aiobgw.Supervisor:
    return await make_supervisor()


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A runtime directory that is not there yet."""
    return str(tmp_path / "run")


NewLatch = Callable[[], aiobgw.Latch]


@pytest.fixture
def new_latch() -> Iterator[NewLatch]:
    """Make latches, which are closed at the end of the test."""
    made: list[aiobgw.Latch] = []

    def make() -> aiobgw.Latch:
        made.append(aiobgw.Latch())
        return made[-1]

    yield make
    for latch in made:
        latch.close()


@pytest.fixture
def loop_of_the_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hosts in processes of their own run on the loop that the test runs on."""
    backend = request.getfixturevalue("anyio_backend")
    monkeypatch.setenv("AIOBGW_TEST_LOOP", "uvloop" if backend[1]["use_uvloop"] else "asyncio")


@pytest.fixture(params=["kernel", "zygote"])
def reaper(request: pytest.FixtureRequest) -> str:
    """Both ways to learn how a process ended."""
    return str(request.param)
