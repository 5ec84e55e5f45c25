"""Hooks that are held back in the zygote work in whatever its children fork."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

import aiobgw
from aiobgw import Restart, WorkerSpec

from .. import targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


def name_threads(path: str) -> None:
    main = threading.main_thread()
    same = (main is threading.current_thread(), main.native_id == os.getpid())
    targets.write(path, repr(same))


def fork_while_a_thread_logs(path: str) -> None:
    """Fork while another thread holds logging's own lock; the child must be able to log."""
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            held.set()
            free.wait(10)

    # The hook waits for the lock before the fork, so let go of it only when it does.
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    threading.Timer(0.1, free.set).start()
    pid = os.fork()
    if pid == 0:
        logging.getLogger("child").setLevel(logging.INFO)  # takes that lock
        alone = threading.active_count() == 1  # the hook of threading forgot the others
        targets.write(path, f"alone {alone}")
        os._exit(0)
    os.waitpid(pid, 0)
    thread.join()


async def ran(supervisor: aiobgw.Supervisor, target: object, path: Path) -> str:
    spec = WorkerSpec(
        name="w",
        target=target,  # type: ignore[arg-type]
        args=(str(path),),
        restart=Restart.NEVER,
    )
    handle = await supervisor.register(spec)
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    exit.check()
    return path.read_text().strip()  # noqa: ASYNC240


async def test_the_main_thread_of_a_worker_is_its_own(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    assert await ran(supervisor, name_threads, tmp_path / "out") == "(True, True)"


async def test_a_worker_that_forks_runs_the_hooks(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    told = await ran(supervisor, fork_while_a_thread_logs, tmp_path / "out")
    assert told == "alone True"


async def test_a_zygote_with_threads_runs_them_itself(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(preload=("tests.process.holds_thread",))
    assert await ran(supervisor, name_threads, tmp_path / "out") == "(True, True)"
    assert await ran(supervisor, count_threads, tmp_path / "count") == "1"


def count_threads(path: str) -> None:
    targets.write(path, str(threading.active_count()))
