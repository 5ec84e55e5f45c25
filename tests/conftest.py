"""Fixtures for all tests.  Supervisors, and the look at what was left behind, are the plugin's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw.integrations.pytest_plugin import MakeSupervisor as MakeSupervisor

from . import procs

pytest_plugins = ["pytester"]

SETTLE = 5.0

procs.become_subreaper()

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every async test runs on asyncio, and on uvloop."""
    return request.param


@pytest.fixture(scope="session")
def aiobgw_options() -> dict[str, Any]:
    return {"name": "test"}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Reap the orphans that became ours, before the plugin looks at what was left behind."""
    before = procs.children()
    yield
    _settle(before)


def _settle(before: set[int]) -> None:
    give_up = time.monotonic() + SETTLE
    while True:
        procs.reap(procs.children() - before)
        left = {pid for pid in procs.children() - before if procs.is_alive(pid)}
        if not left or time.monotonic() > give_up:
            return
        procs.wait_dead(left, 0.5)


@pytest.fixture
def supervisor(aiobgw_supervisor: aiobgw.Supervisor) -> aiobgw.Supervisor:
    return aiobgw_supervisor


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
