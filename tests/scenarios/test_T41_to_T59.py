"""Exit codes, restarts, lost registrants and failed launches, T41 to T59.

The numbers are those of section 4 of the reference; scenarios.py says where the others are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, NeverStarted, Phase, Restart, WorkerSpec, WorkerState

from .. import procs, scenario_targets, targets
from ..client_targets import close_script, in_a_thread, until
from ..conftest import MakeSupervisor, NewLatch

pytestmark = pytest.mark.anyio


async def test_T41_a_failure_is_a_back_off_and_then_another_pid_of_the_same_generation(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    up = new_latch()
    events = supervisor.events()
    async with aiobgw.attach(place) as client:
        handle = await client.register(
            WorkerSpec(
                name="w",
                target=scenario_targets.fail_first,
                latches={"up": up},
                restart_delay=1,
            )
        )
        exit = await handle.wait_for_exit()
        assert (exit.kind, exit.code, exit.incarnation) == (ExitKind.FAILED, 1, 1)
        between = handle.status()
        assert (between.state, between.pid) == (WorkerState.BACKOFF, None)
        assert between.next_start_at is not None

        await up.wait()
        again = await handle.wait_for_ready()
        assert again.state is WorkerState.RUNNING
        assert (again.generation, again.slot) == (between.generation, between.slot)
        assert (again.incarnation, again.restarts) == (2, 1)
    begun = [
        (await of_kind(events, aiobgw.Started)).status,
        (await of_kind(events, aiobgw.Started)).status,
    ]
    assert [status.incarnation for status in begun] == [1, 2]
    assert begun[0].pid != begun[1].pid
    assert begun[1].pid == again.pid


async def of_kind(events: Any, kind: type[aiobgw.WorkerEvent]) -> Any:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} came")


async def test_T42_a_clean_exit_is_final_and_frees_the_slot(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(max_workers=1)
    out = tmp_path / "out"
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.write, args=(str(out), "ran"), restart_delay=0)
    )
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.CLEAN, 0)
    assert supervisor.handles() == []
    next_one = await supervisor.register(WorkerSpec(name="next", target=targets.nothing))
    assert next_one.slot == handle.slot
    await next_one  # whoever came first has had every chance to come again
    assert out.read_text() == "ran\n"
    assert handle.status().incarnation == 1


async def test_T43_who_is_told_of_a_failed_worker_finds_its_slot_free(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch
) -> None:
    """All other slots are in use, and the notified client asks at once, in another turn each."""
    supervisor = await make_supervisor(runtime_dir=place, max_workers=2)
    await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    async with aiobgw.attach(place) as client:
        for number in range(10):
            go = new_latch()
            handle = await client.register(
                WorkerSpec(
                    name=f"w{number}",
                    target=scenario_targets.fail_when_told,
                    latches={"go": go},
                    restart=Restart.NEVER,
                )
            )
            with pytest.raises(aiobgw.NoFreeSlot):
                await client.register(WorkerSpec(name="late", target=targets.nothing))
            go.set()
            exit = await handle
            assert exit is not None
            assert (exit.kind, exit.code) == (ExitKind.FAILED, 1)


@pytest.mark.parametrize("where", ["after_fork", "before_hello"])
async def test_T49_terminate_before_there_are_handlers_ends_it_as_asked_and_for_good(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    gate, token = tmp_path / "gate", tmp_path / "token"
    os.mkfifo(gate)
    monkeypatch.setenv("AIOBGW_INJECT", f"{where}:wait={gate}@{token}")
    supervisor = await make_supervisor(max_workers=1)
    token.touch()
    handle = await supervisor.register(
        WorkerSpec(
            name="w",
            target=targets.sleep,
            restart=Restart.ALWAYS,
            restart_delay=0,
            stop_timeout=60,
        )
    )
    await until(lambda: not token.exists())
    (worker,) = procs.children(supervisor.status().zygote_pid)
    handle.terminate()
    assert handle.status().state is WorkerState.STOPPING
    assert procs.is_alive(worker)
    os.close(os.open(gate, os.O_WRONLY))
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 1), "SIGTERM did not just kill it"
    assert handle.status().incarnation == 1
    await (await supervisor.register(WorkerSpec(name="next", target=targets.nothing)))


async def test_T50_a_sigterm_by_somebody_else_is_a_failure_and_left_to_the_rule(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch
) -> None:
    up = new_latch()
    handle = await supervisor.register(
        WorkerSpec(name="w", target=scenario_targets.stay, latches={"up": up}, restart_delay=0)
    )
    await up.wait()
    up.reset()
    first = handle.status().pid
    assert first is not None
    waiting = asyncio.ensure_future(handle.wait_for_exit())
    await asyncio.sleep(0)
    os.kill(first, signal.SIGTERM)
    exit = await waiting
    assert (exit.kind, exit.code) == (ExitKind.FAILED, 1)
    await up.wait()
    again = await handle.wait_for_ready()
    assert (again.incarnation, again.restarts) == (2, 1)
    assert again.pid != first


@pytest.mark.parametrize("end", ["by itself", "by SIGKILL"])
async def test_T54_T55_a_registrant_that_is_gone_takes_no_pending_worker_with_it(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, end: str
) -> None:
    """Killed, it was waiting to be told: its channel ended, and no pid is ever signalled."""
    supervisor = await make_supervisor(runtime_dir=place, start_phase=Phase.CONSISTENT_STATE)
    out = tmp_path / "out"
    registrant = procs.start_script(
        scenario_targets.REGISTRANT,
        place,
        "tests.targets:echo",
        str(out),
        "waits" if end == "by SIGKILL" else "leaves",
    )
    assert registrant.stdout is not None
    try:
        assert await in_a_thread(registrant.stdout.readline) == "registered\n"
        if end == "by SIGKILL":
            registrant.kill()
        assert await in_a_thread(registrant.wait) == (-9 if end == "by SIGKILL" else 0)
    finally:
        close_script(registrant)

    (handle,) = supervisor.handles()
    assert handle.status().state is WorkerState.NOT_STARTED
    await supervisor.advance(Phase.RUNNING)
    exit = await handle
    assert exit is not None
    exit.check()
    assert out.read_text() == f"(({registrant.pid},), {{}})\n"
    async with aiobgw.attach(place) as client:  # and everybody else is served as before
        await (await client.register(WorkerSpec(name="next", target=targets.nothing)))


@pytest.fixture
def forks_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have the next fork fail with EAGAIN whenever this file was made."""
    token = tmp_path / "token"
    monkeypatch.setenv("AIOBGW_INJECT", f"fork:fail={errno.EAGAIN}@{token}")
    return token


async def test_T56_a_failed_fork_is_told_and_returns_slot_and_quota(
    make_supervisor: MakeSupervisor, place: str, forks_fail: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1, max_parallel_workers=1)
    spec = WorkerSpec(name="w", target=targets.nothing, flags=Flags.CLASS_PARALLEL)
    async with aiobgw.attach(place) as client:
        for _ in range(3):
            forks_fail.touch()  # noqa: ASYNC240
            handle = await client.register(spec)
            with pytest.raises(NeverStarted, match=os.strerror(errno.EAGAIN)) as caught:
                await handle.wait_for_startup()
            assert caught.value.next_start_at is None
            assert await handle is None
            assert supervisor.status().parallel_workers == 0
        exit = await (await client.register(spec))
        assert exit is not None
        exit.check()


async def test_T57_after_two_failed_forks_a_restartable_worker_starts_at_the_third_try(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    forks_fail: Path,
) -> None:
    failures: list[int] = []

    def delay(count: int) -> float:
        failures.append(count)
        if count == 1:
            forks_fail.touch()  # for the second try
        return 0.1 if count == 1 else 0.5

    monkeypatch.setattr("aiobgw._policy.ending.launch_delay", delay)
    await make_supervisor(runtime_dir=place)
    forks_fail.touch()  # noqa: ASYNC240
    async with aiobgw.attach(place) as client:
        handle = await client.register(WorkerSpec(name="w", target=targets.sleep))
        waiting = asyncio.ensure_future(handle.wait_for_startup())
        await until(lambda: len(failures) == 2)
        await until(lambda: handle.status().state is WorkerState.NOT_STARTED)
        status = handle.status()
        assert os.strerror(errno.EAGAIN) in status.reason
        assert status.next_start_at is not None
        assert not waiting.done(), "it is pending still"
        begun = await waiting
        assert (begun.state, begun.incarnation) == (WorkerState.RUNNING, 1)
        assert failures == [1, 2]


async def test_T59_a_pidfd_that_finds_no_room_loses_the_launch_and_leaves_no_zombie(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    reaper: str,
) -> None:
    """The supervisor is at its limit of descriptors when the child says hello with its pidfd."""
    gate, token = tmp_path / "gate", tmp_path / "token"
    os.mkfifo(gate)
    monkeypatch.setenv("AIOBGW_INJECT", f"before_hello:wait={gate}@{token}")
    supervisor = await make_supervisor(max_workers=1, max_parallel_workers=1, reaper=reaper)
    token.touch()
    spec = WorkerSpec(name="w", target=targets.nothing, flags=Flags.CLASS_PARALLEL)
    handle = await supervisor.register(spec)
    await until(lambda: not token.exists())
    (lost,) = procs.children(supervisor.status().zygote_pid)

    with no_more_descriptors(gate):  # and the child goes on
        # The launch is lost, and cannot be made again while there is no room for a channel.
        await until(lambda: any("launches wait" in line for line in caplog.messages))
        assert handle.status().state is WorkerState.STARTING
    assert not procs.wait_dead({lost})
    exit = await handle
    assert exit is not None
    exit.check()
    assert exit.incarnation == 1
    await until(lambda: procs.state(lost) is None)  # reaped
    assert supervisor.status().parallel_workers == 0
    await (await supervisor.register(spec))


@contextlib.contextmanager
def no_more_descriptors(gate: Path) -> Iterator[None]:
    """Open a gate with the last descriptor that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # the lowest that is free
    os.close(last)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
    try:
        assert os.open(gate, os.O_WRONLY | os.O_CLOEXEC) == last
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(last)
            yield
        finally:
            os.close(last)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
