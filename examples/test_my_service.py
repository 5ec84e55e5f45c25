"""How a service is tested with aiobgw's pytest plugin and aiobgw.testing.

python -m pytest examples/test_my_service.py
SHOW_LEAK=1 python -m pytest examples/test_my_service.py    # a leak is caught, and named
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiobgw
from aiobgw import Latch, WorkerState
from aiobgw.integrations.pytest_plugin import MakeSupervisor, StartWorker
from aiobgw.testing import FakeLauncher, ManualClock, kill

from .my_service import RETRY_DELAY, capitals

pytestmark = pytest.mark.asyncio


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def done() -> Iterator[Latch]:
    latch = Latch()
    yield latch
    latch.close()


async def test_texts_come_out_in_capitals(
    aiobgw_worker: StartWorker, inbox: Path, outbox: Path, done: Latch
) -> None:
    (inbox / "a").write_text("first")
    handle = await aiobgw_worker(capitals(inbox, outbox, done))
    await done.wait()
    assert (outbox / "a").read_text() == "FIRST"

    done.reset()
    (inbox / "b").write_text("second")
    handle.wake()
    await done.wait()
    assert (outbox / "b").read_text() == "SECOND"
    assert not os.listdir(inbox)


async def test_a_crash_loses_no_text(
    make_supervisor: MakeSupervisor, inbox: Path, outbox: Path, done: Latch
) -> None:
    """A real process, really killed; only the half minute until its restart is not real."""
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    handle = await supervisor.register(capitals(inbox, outbox, done))
    await handle.wait_for_startup()
    await done.wait()

    kill(handle)
    assert (await handle.wait_for_exit()).kind is aiobgw.ExitKind.CRASHED
    done.reset()
    (inbox / "a").write_text("came while nobody was there")
    clock.advance(RETRY_DELAY)
    await done.wait()
    assert handle.status().incarnation == 2
    assert (outbox / "a").read_text() == "CAME WHILE NOBODY WAS THERE"


async def test_what_is_no_text_is_told(
    make_supervisor: MakeSupervisor, inbox: Path, outbox: Path
) -> None:
    (inbox / "picture").write_bytes(b"\xff\xd8\xff\xe0")
    supervisor = await make_supervisor(clock=ManualClock())
    handle = await supervisor.register(capitals(inbox, outbox))
    exit = await handle.wait_for_exit()
    assert "UnicodeDecodeError" in str(exit.error)
    assert handle.status().state is WorkerState.BACKOFF


async def test_it_is_tried_again_every_half_minute_for_a_year(
    make_supervisor: MakeSupervisor,
) -> None:
    """A rule needs no process: this takes as long as it takes to read it."""
    launcher, clock = FakeLauncher(), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    handle = await supervisor.register(capitals(Path("in"), Path("out")))
    for attempt in range(1, 1000):
        launcher["capitals"].fail("UnicodeDecodeError")
        assert handle.status().state is WorkerState.BACKOFF
        assert clock.advance_to_next() == pytest.approx(RETRY_DELAY)
        assert handle.status().restarts == attempt
    assert handle.status().state is WorkerState.RUNNING


@pytest.mark.skipif("SHOW_LEAK" not in os.environ, reason="fails: set SHOW_LEAK=1 to see how")
async def test_a_process_that_is_left_behind_is_caught(aiobgw_worker: StartWorker) -> None:
    handle = await aiobgw_worker(detach)
    assert (await handle) is not None


def detach() -> None:
    """Start a process that leaves the worker's group, and so outlives it."""
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
