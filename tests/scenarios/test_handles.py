"""Handles: what they wait for, what they ask, and whom they never speak for."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Latch, NeverStarted, Restart, WorkerSpec, WorkerState

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def register(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("target", targets.sleep)
    return await supervisor.register(WorkerSpec(**options))


async def started(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    handle = await register(supervisor, **options)
    await handle.wait_for_startup()
    return handle


async def in_backoff(supervisor: aiobgw.Supervisor, delay: float = 3600.0) -> aiobgw.WorkerHandle:
    handle = await started(supervisor, target=targets.fail, restart_delay=delay)
    await handle.wait_for_exit()
    assert handle.status().state is WorkerState.BACKOFF
    return handle


async def test_a_worker_that_ran_and_ended_at_once_has_started(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await register(supervisor, target=targets.nothing)
    await handle
    assert (await handle.wait_for_startup()).state is WorkerState.STOPPED
    assert (await handle.wait_for_ready()).state is WorkerState.STOPPED
    assert (await handle.wait_for_exit()).kind is ExitKind.CLEAN


async def test_terminate_before_the_start_frees_the_slot_and_tells_the_waiter(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=1, start_phase=aiobgw.Phase.CONSISTENT_STATE)
    handle = await register(supervisor)
    waiting = asyncio.ensure_future(handle.wait_for_startup())
    await asyncio.sleep(0)
    handle.terminate()
    with pytest.raises(NeverStarted, match="terminated before it started"):
        await waiting
    assert await handle is None
    with pytest.raises(NeverStarted):
        await handle.wait_for_exit()
    await register(supervisor)  # the slot is free


async def test_terminate_during_the_delay_is_final_at_once(supervisor: aiobgw.Supervisor) -> None:
    handle = await in_backoff(supervisor)
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.FAILED
    assert handle.status().incarnation == 1


async def test_terminate_together_with_the_exit_is_never_followed_by_a_start(
    supervisor: aiobgw.Supervisor,
) -> None:
    for _ in range(20):
        handle = await started(
            supervisor, target=targets.nothing, restart=Restart.ALWAYS, restart_delay=0
        )
        await handle.wait_for_exit()
        handle.terminate()
        await handle
        incarnation = handle.status().incarnation
        await asyncio.sleep(0)
        assert handle.status().incarnation == incarnation
        assert handle.status().state is WorkerState.STOPPED


async def test_terminate_at_any_moment_after_register_always_ends_it(
    make_supervisor: MakeSupervisor,
) -> None:
    """SIGTERM may come before the fork, before hello, before the handlers, or later."""
    supervisor = await make_supervisor(spares=2)
    chance = random.Random(7)
    for number in range(60):
        handle = await register(
            supervisor,
            target=[targets.sleep, targets.sleep_async][number % 2],
            restart=Restart.ALWAYS,
            restart_delay=0,
        )
        await asyncio.sleep(chance.random() * 0.006)
        handle.terminate()
        exit = await handle
        assert exit is None or (exit.kind, exit.code) == (ExitKind.TERMINATED, 1), exit


async def test_kill_at_any_moment_after_register_kills_it(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(spares=2)
    chance = random.Random(8)
    for _ in range(40):
        handle = await register(supervisor, target=targets.ignore_term, stop_timeout=3600)
        await asyncio.sleep(chance.random() * 0.004)
        handle.kill()
        exit = await handle
        assert exit is None or (exit.kind, exit.signal) == (ExitKind.TERMINATED, 9), exit


async def test_terminate_escalates_to_sigkill_after_stop_timeout(
    supervisor: aiobgw.Supervisor,
) -> None:
    up = Latch()
    handle = await started(supervisor, target=targets.spin, stop_timeout=0.1, latches={"up": up})
    await up.wait()
    handle.terminate()
    handle.terminate()
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, 9)
    assert "did not end within stop_timeout (0.1 s)" in exit.reason


async def has_content(path: Path) -> None:
    """Wait until a command has written something; files cannot be awaited."""
    give_up = time.monotonic() + 10
    while not path.exists() or not path.stat().st_size:  # noqa: ASYNC240
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


async def test_what_ends_on_request_and_in_time_is_terminated_whatever_its_code(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "up"
    obedient = f"echo >> {out}; exec sleep 100"
    original = f"trap 'exit 9' TERM; echo >> {out}; sleep 100 & wait"
    for script in (obedient, original):
        handle = await started(supervisor, target=None, command=["/bin/sh", "-c", script])
        await has_content(out)
        out.unlink()
        handle.terminate()
        exit = await handle
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED
        assert exit.ok


async def test_signal_leaves_the_rest_to_the_restart_rule(supervisor: aiobgw.Supervisor) -> None:
    handle = await started(supervisor, restart_delay=0)
    first = handle.status().pid
    handle.signal(signal.SIGKILL)
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.signal) == (ExitKind.CRASHED, signal.SIGKILL)
    again = await _running_again(handle, first)
    assert again.restarts == 1
    handle.signal(signal.SIGTERM)  # not through terminate(): exit 1, so it returns
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code) == (ExitKind.FAILED, 1)
    assert (await _running_again(handle, again.pid)).generation == again.generation


async def _running_again(handle: aiobgw.WorkerHandle, before: int | None) -> aiobgw.WorkerStatus:
    while True:
        status = handle.status()
        if status.state is WorkerState.RUNNING and status.pid != before:
            return status
        await asyncio.sleep(0.001)


async def test_restart_counts_for_nothing_and_in_backoff_means_now(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    handle = await started(supervisor, restart=Restart.NEVER)
    first = handle.status().pid
    handle.restart()
    exit = await handle.wait_for_exit()
    assert exit.kind is ExitKind.TERMINATED
    status = await _running_again(handle, first)
    assert (status.incarnation, status.restarts) == (2, 0)

    delayed = await in_backoff(supervisor)
    assert delayed.status().next_start_at is not None
    delayed.restart()
    delayed.restart()
    await delayed.wait_for_exit()
    assert delayed.status().incarnation == 2
    assert delayed.status().restarts == 0


async def test_restarts_follow_the_rule(supervisor: aiobgw.Supervisor, tmp_path: Path) -> None:
    rows = [
        (Restart.NEVER, targets.nothing, False),
        (Restart.NEVER, targets.fail, False),
        (Restart.ON_FAILURE, targets.nothing, False),
        (Restart.ON_FAILURE, targets.fail, True),
        (Restart.ALWAYS, targets.nothing, True),
        (Restart.ALWAYS, targets.fail, True),
    ]
    for restart, target, returns in rows:
        handle = await register(supervisor, target=target, restart=restart, restart_delay=3600)
        await handle.wait_for_exit()
        state = handle.status().state
        assert state is (WorkerState.BACKOFF if returns else WorkerState.STOPPED), restart
        handle.terminate()


async def test_the_restart_delay_is_kept(supervisor: aiobgw.Supervisor) -> None:
    handle = await started(supervisor, target=targets.fail, restart_delay=0.2)
    loop = asyncio.get_running_loop()
    await handle.wait_for_exit()
    ended = loop.time()
    while handle.status().incarnation < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert 0.19 <= loop.time() - ended < 2


async def test_a_worker_that_fails_at_once_for_ever_leaves_the_loop_responsive(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await register(
        supervisor,
        target="no.such:target",
        restart=Restart.ALWAYS,
        restart_delay=0,
        max_restarts=None,
    )
    other = await started(supervisor, name="other")
    while handle.status().restarts < 20:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert other.status().state is WorkerState.RUNNING
    with pytest.raises(NeverStarted) as caught:
        await handle.wait_for_startup()
    assert "No module named" in (caught.value.error or "")


async def test_cancelling_a_waiter_loses_nothing_and_disturbs_nobody(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await register(supervisor)
    waits = [handle.wait_for_startup, handle.wait_for_exit, handle.wait_for_shutdown]
    tasks = [asyncio.ensure_future(waits[n % 3]()) for n in range(60)]
    await asyncio.sleep(0)
    # It may have started by now, and those who waited for that have what they waited for.
    cancelled = [task for task in tasks[::2] if task.cancel()]
    assert len(cancelled) >= 20
    handle.terminate()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task for task in tasks if task.cancelled()] == cancelled
    await handle.wait_for_shutdown()


async def test_waits_take_a_timeout_and_can_be_repeated(supervisor: aiobgw.Supervisor) -> None:
    handle = await started(supervisor)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await handle.wait_for_exit()
    handle.terminate()
    await handle.wait_for_exit()


async def test_waits_go_on_across_restarts(supervisor: aiobgw.Supervisor) -> None:
    handle = await started(supervisor, target=targets.fail, restart_delay=0, max_restarts=None)
    over = asyncio.ensure_future(handle.wait_for_shutdown())
    while handle.status().incarnation < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert not over.done()
    handle.terminate()
    await over


async def test_a_stale_handle_never_touches_the_next_tenant_of_its_slot(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=1)
    old = await started(supervisor, name="old")
    old.terminate()
    exit = await old
    new = await started(supervisor, name="new")
    assert (new.slot, new.generation) == (old.slot, old.generation + 1)
    assert old != new
    old.terminate()
    old.kill()
    old.restart()
    old.signal(signal.SIGKILL)
    old.wake()
    assert old.status().state is WorkerState.STOPPED
    assert await old.wait_for_exit() == exit
    assert old.status().pid is None
    await asyncio.sleep(0.05)
    assert new.status().state is WorkerState.RUNNING
    assert supervisor.get(old.token) is None


async def test_the_slot_is_free_before_the_waiters_are_told(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=1, max_parallel_workers=1)
    for _ in range(10):
        handle = await register(supervisor, target=targets.nothing, flags=Flags.CLASS_PARALLEL)
        with pytest.raises(aiobgw.AiobgwError):
            await register(supervisor, flags=Flags.CLASS_PARALLEL)
        await handle
    (await register(supervisor)).terminate()


async def test_a_guard_is_cancelled_by_the_failure_of_its_worker_only(
    supervisor: aiobgw.Supervisor,
) -> None:
    go = Latch()
    handle = await started(
        supervisor,
        target=targets.wait_then_exit,
        args=(3,),
        latches={"go": go},
        restart=Restart.NEVER,
    )
    with pytest.raises(aiobgw.WorkerFailed, match="exit code 3"):
        async with handle.guard():
            go.set()
            await asyncio.sleep(30)

    calm = await started(supervisor)
    async with calm.guard():
        calm.terminate()
        await calm
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), (await started(supervisor)).guard():
            await asyncio.sleep(30)


async def test_max_workers_refuses_the_next_and_a_delayed_worker_holds_its_slot(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=2)
    delayed = await in_backoff(supervisor)
    await started(supervisor)
    with pytest.raises(aiobgw.NoFreeSlot, match="all 2 worker slots are in use"):
        await register(supervisor)
    delayed.terminate()
    await started(supervisor)

    none = await make_supervisor(max_workers=0)
    with pytest.raises(aiobgw.NoFreeSlot, match="all 0 worker slots"):
        await register(none)


async def test_unique_and_the_parallel_class_are_refused_by_name_and_number(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_parallel_workers=1)
    one = await register(supervisor, unique=True)
    with pytest.raises(aiobgw.AlreadyRegistered, match="'worker' is registered"):
        await register(supervisor, unique=True)
    one.kill()
    await one
    await register(supervisor, unique=True)
    await register(supervisor, name="p", flags=Flags.CLASS_PARALLEL)
    with pytest.raises(aiobgw.TooManyParallelWorkers, match="all 1 places"):
        await register(supervisor, name="p", flags=Flags.CLASS_PARALLEL)
    assert supervisor.status().parallel_workers == 1


async def test_descriptors_are_counted_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiobgw._process.probe.resource.getrlimit", lambda which: (1024, 500_000))
    with pytest.raises(aiobgw.Unsupported, match=r"262143 workers .* need \d+ descriptors"):
        await aiobgw.Supervisor(name="many", max_workers=262_143).__aenter__()


async def test_five_hundred_starts_never_hold_the_loop_for_long(
    make_supervisor: MakeSupervisor,
) -> None:
    """Bounds processor time of one callback, which a busy machine does not change."""
    supervisor = await make_supervisor(max_workers=500)
    longest = 0.0
    core = supervisor._core.loop
    assert core is not None
    turn = core._turn

    def timed(*, gather: bool) -> None:
        nonlocal longest
        began = _cpu()
        turn(gather=gather)
        longest = max(longest, _cpu() - began)

    core._turn = timed  # type: ignore[method-assign]
    handles = [await register(supervisor, target=targets.nothing) for _ in range(500)]
    await asyncio.gather(*handles)
    assert longest < 0.010, f"{longest * 1000:.1f} ms"


def _cpu() -> float:
    return time.thread_time()


async def test_wake_sets_the_latch_of_the_worker_and_nothing_of_a_command(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    handle = await register(supervisor, target=targets.wait_for_latch, args=(str(out),))
    await handle.wait_for_startup()
    handle.wake()  # before or after the latch was made
    exit = await handle
    assert exit is not None
    exit.check()
    assert out.read_text() == "waiting\nwoken\n"

    command = await started(supervisor, target=None, command=["/bin/sleep", "100"])
    command.wake()
    await asyncio.sleep(0.02)
    assert procs.is_alive(command.status().pid or 0)


async def test_a_pid_that_was_used_again_is_never_signalled(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await started(supervisor)
    pid = handle.status().pid or 0
    handle.kill()
    await handle
    assert supervisor.type_by_pid(pid) is None
    try:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))  # noqa: ASYNC240
    except OSError:
        pytest.skip("the next pid cannot be chosen here")
    impostor = os.posix_spawn("/bin/sleep", ["sleep", "100"], {})  # noqa: ASYNC221
    assert impostor == pid or impostor > 0
    handle.terminate()
    handle.kill()
    handle.signal(9)
    await asyncio.sleep(0.05)
    assert procs.is_alive(impostor)
    os.kill(impostor, signal.SIGKILL)
    os.waitpid(impostor, 0)  # noqa: ASYNC222
