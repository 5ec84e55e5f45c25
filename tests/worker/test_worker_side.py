"""Inside a worker: signals, the end, and what ``current_worker()`` says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Restart, WorkerSpec

from .. import procs, targets
from ..conftest import MakeSupervisor, NewLatch

pytestmark = pytest.mark.anyio


async def started(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("restart", Restart.NEVER)
    handle = await supervisor.register(WorkerSpec(**options))
    await handle.wait_for_startup()
    return handle


async def written(path: Path, text: str) -> None:
    """Wait until a worker has written something; files cannot be awaited."""
    give_up = time.monotonic() + 10
    while not path.exists() or text not in path.read_text():  # noqa: ASYNC240
        assert time.monotonic() < give_up, f"no {text!r} in {path}"
        await asyncio.sleep(0.005)


def test_current_worker_is_for_workers() -> None:
    with pytest.raises(aiobgw.NotAttached, match="no worker"):
        aiobgw.current_worker()


async def test_a_worker_knows_itself(supervisor: aiobgw.Supervisor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    handle = await started(
        supervisor,
        name="naïve",
        type="kind",
        extra=b"\0x",
        target=targets.describe,
        args=(str(out),),
        flags=Flags.SHMEM_ACCESS,
    )
    await handle
    assert out.read_text() == "naïve 1 kind b'\\x00x' NEVER\n"


async def test_the_process_title_names_supervisor_and_worker(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(spares=1)
    handle = await started(supervisor, name="mailer", target=targets.sleep)
    assert procs.title(handle.status().pid or 0) == "aiobgw: test worker mailer"
    assert procs.title(supervisor.status().zygote_pid or 0) == "aiobgw: test zygote"


def catch_terminated(path: str) -> None:
    worker = aiobgw.current_worker()
    try:
        targets.write(path, "up")
        time.sleep(3600)
    except aiobgw.Terminated:
        targets.write(path, f"terminated {worker.stop_requested} {worker.latch.is_set()}")
        raise


async def test_sigterm_raises_terminated_in_a_plain_target(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await started(supervisor, target=catch_terminated, args=(str(out),))
    await written(out, "up")
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code, exit.error) == (ExitKind.TERMINATED, 1, None)
    assert out.read_text() == "up\nterminated True True\n"


def lose_exceptions(path: str) -> None:
    """Swallow Terminated twice; it must come a third time."""
    targets.write(path, "up")
    for _ in range(2):
        try:
            time.sleep(3600)
        except BaseException as error:
            targets.write(path, type(error).__name__)
    time.sleep(3600)


async def test_terminated_is_raised_again_while_the_target_runs_on(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await started(supervisor, target=lose_exceptions, args=(str(out),))
    await written(out, "up")
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.TERMINATED
    assert out.read_text().count("Terminated") == 2


def clean_up_slowly(path: str) -> None:
    try:
        targets.write(path, "up")
        time.sleep(3600)
    finally:
        time.sleep(1.5)
        targets.write(path, "cleaned up")


async def test_a_cleanup_at_work_is_not_interrupted_again(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await started(supervisor, target=clean_up_slowly, args=(str(out),))
    await written(out, "up")
    handle.terminate()
    await handle
    assert out.read_text() == "up\ncleaned up\n"


async def clean_up_async(path: str) -> None:
    try:
        targets.write(path, "up")
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)
        targets.write(path, f"cancelled {aiobgw.current_worker().stop_requested}")
        raise


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_sigterm_cancels_an_async_target_once(
    supervisor: aiobgw.Supervisor, tmp_path: Path, loop: str
) -> None:
    out = tmp_path / "out"
    handle = await started(supervisor, target=clean_up_async, args=(str(out),), loop=loop)
    await written(out, "up")
    handle.terminate()
    handle.signal(signal.SIGTERM)
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code, exit.error) == (ExitKind.TERMINATED, 1, None)
    assert out.read_text() == "up\ncancelled True\n"


async def finish_in_hand(path: str) -> None:
    targets.write(path, "up")
    await aiobgw.current_worker().wait_for_stop()
    targets.write(path, "finished")


async def test_a_main_task_that_waits_for_the_stop_is_not_cancelled(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await started(supervisor, target=finish_in_hand, args=(str(out),))
    await written(out, "up")
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert exit.code == 0
    assert out.read_text() == "up\nfinished\n"


async def which_loop(path: str) -> None:
    targets.write(path, type(asyncio.get_running_loop()).__module__)


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_async_target_runs_in_the_loop_its_spec_names(
    make_supervisor: MakeSupervisor, tmp_path: Path, loop: str, spares: int
) -> None:
    supervisor = await make_supervisor(spares=spares)
    out = tmp_path / "out"
    for number in range(3):  # the first one teaches which kind of spare is wanted
        await (await started(supervisor, target=which_loop, args=(str(out),), loop=loop))
        while spares and not supervisor.status().spares:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert len(out.read_text().split()) == number + 1
    assert {name.split(".")[0] for name in out.read_text().split()} == {loop}


def harmless(path: str) -> None:
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR2, signal.SIGPIPE):
        os.kill(os.getpid(), signum)
    child = subprocess.run(
        ["/bin/grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    targets.write(path, child.stdout.split()[1])


async def test_hup_int_and_usr2_do_nothing_and_are_not_ignored_in_subprocesses(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exit = await (await started(supervisor, target=harmless, args=(str(out),)))
    assert exit is not None
    exit.check()
    ignored = int(out.read_text(), 16)
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR2, signal.SIGTERM):
        assert not ignored >> (signum - 1) & 1


async def test_sigquit_works_inside_c_code_and_leaves_no_core(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await started(supervisor, target=targets.spin)
    handle.signal(signal.SIGQUIT)
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.CRASHED, signal.SIGQUIT)


async def test_the_mask_is_open_while_the_target_is_imported(
    supervisor: aiobgw.Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "slow_import_for_test.py"
    marker = tmp_path / "marker"
    module.write_text(
        f"import time\nopen({str(marker)!r}, 'w').write('importing')\ntime.sleep(3600)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with aiobgw.Supervisor(name="slow", spares=0) as slow:
        handle = await slow.register(WorkerSpec(name="slow", target=f"{module.stem}:f"))
        await written(marker, "importing")
        handle.terminate()
        with pytest.raises(aiobgw.NeverStarted):
            await handle.wait_for_startup()
        exit = await handle
        assert exit is not None
        assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 1)


def with_atexit(path: str) -> None:
    import atexit

    atexit.register(targets.write, path, "atexit")
    sys.stdout.write("flushed at the end")
    targets.start_threads(path)


async def test_threads_atexit_and_buffers_are_taken_care_of_at_the_end(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exit = await (await started(supervisor, target=with_atexit, args=(str(out),)))
    assert exit is not None
    exit.check()
    assert out.read_text() == "thread\natexit\n"


async def test_exit_codes_of_sys_exit_are_kept(supervisor: aiobgw.Supervisor) -> None:
    for given, code in ((0, 0), (None, 0), (5, 5), ("text", 1)):
        handle = await started(supervisor, target=sys_exit, args=(given,))
        exit = await handle
        assert exit is not None
        assert exit.code == code
        assert exit.kind is (ExitKind.FAILED if code else ExitKind.CLEAN)


def sys_exit(value: Any) -> None:
    sys.exit(value)


async def test_readiness_can_be_said(supervisor: aiobgw.Supervisor) -> None:
    up = aiobgw.Latch()
    handle = await started(supervisor, target=say_ready, latches={"up": up})
    await up.wait()
    assert (await handle.wait_for_ready()).ready


def say_ready() -> None:
    aiobgw.current_worker().ready()
    targets.say_up()
    time.sleep(3600)


def returns_a_coroutine(path: str) -> Any:
    return finish_later(path)


async def finish_later(path: str) -> None:
    await asyncio.sleep(0)
    targets.write(path, "awaited")


async def test_a_plain_function_that_returns_a_coroutine_is_awaited(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exit = await (await started(supervisor, target=returns_a_coroutine, args=(str(out),)))
    assert exit is not None
    exit.check()
    assert out.read_text() == "awaited\n"


async def test_environment_limits_and_mask_are_those_of_the_host(
    make_supervisor: MakeSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOBGW_TEST_VALUE", "seen")
    monkeypatch.setenv("LD_BIND_NOW", "")
    supervisor = await make_supervisor()
    out = tmp_path / "out"
    script = f"echo $AIOBGW_TEST_VALUE $PWD > {out}; ulimit -n >> {out}"
    await (await started(supervisor, command=["/bin/sh", "-c", script]))
    import resource

    expected = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert out.read_text().split() == ["seen", os.getcwd(), str(expected)]


async def test_a_signal_is_heard_in_a_wait_that_it_has_not_ended(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch
) -> None:
    """It came right before the wait, or to another thread: a stop must not run out for that."""
    latch = new_latch()
    handle = await started(
        supervisor, target=targets.hear_nothing, latches={"up": latch}, stop_timeout=60
    )
    await latch.wait()
    handle.terminate()
    async with asyncio.timeout(30):
        exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.TERMINATED
