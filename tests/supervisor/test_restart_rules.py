"""Restart rules as users meet them: what is shown, what ends, and who is told why."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    Escalate,
    ExitKind,
    NeverStarted,
    Readiness,
    Restart,
    ShutdownMode,
    SupervisorFailed,
    WorkerFailed,
    WorkerHandle,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from aiobgw.testing import FakeLauncher, FakeProcess, ManualClock

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


class Faked:
    """A supervisor whose processes and time are the test's."""

    def __init__(self) -> None:
        self.launcher, self.clock = FakeLauncher(), ManualClock()

    async def start(self, make: MakeSupervisor, **options: Any) -> aiobgw.Supervisor:
        self.supervisor = await make(launcher=self.launcher, clock=self.clock, **options)
        self.events = self.supervisor.events()
        return self.supervisor

    async def register(self, name: str = "w", **rules: Any) -> WorkerHandle:
        return await self.supervisor.register(WorkerSpec(name=name, target="a:b", **rules))

    def fail(self, name: str = "w") -> None:
        self.launcher[name].fail("ValueError: as asked")

    async def told(self, kind: type[aiobgw.WorkerEvent]) -> WorkerStatus:
        async for event in self.events:
            if isinstance(event, kind):
                return event.status
        raise AssertionError("the supervisor closed")


@pytest.fixture
def faked() -> Faked:
    return Faked()


# Back-off, and how it is shown.


async def test_when_and_why_it_starts_again_is_seen_by_everybody(
    make_supervisor: MakeSupervisor, faked: Faked, place: str
) -> None:
    await faked.start(make_supervisor, runtime_dir=place)
    handle = await faked.register(restart_delay=30, restart_jitter=0)
    faked.fail()
    due = time.time() + 30
    async with aiobgw.attach(place) as client:
        (on_the_board,) = client.status().workers
        for status in (handle.status(), await faked.told(aiobgw.Restarting), on_the_board):
            assert status.state is WorkerState.BACKOFF
            assert status.reason == "failed exit; waits 30 s"
            assert status.next_start_at == pytest.approx(due, abs=10)

        assert faked.clock.advance_to_next() == 30
        (on_the_board,) = client.status().workers
        for status in (handle.status(), on_the_board):
            assert (status.next_start_at, status.restarts) == (None, 1)


async def test_pauses_grow_spread_as_chance_has_it_and_begin_anew_with_health(
    make_supervisor: MakeSupervisor,
) -> None:
    pauses = []
    for seed in (1, 1, 2):
        random.seed(seed)
        faked = Faked()
        await faked.start(make_supervisor, name=f"test{len(pauses)}")
        await faked.register(max_restarts=None)
        pauses.append([])
        for _ in range(8):
            faked.fail()
            pauses[-1].append(faked.clock.advance_to_next())
        faked.clock.advance(60)  # healthy for long enough
        faked.fail()
        pauses[-1].append(faked.clock.advance_to_next())
    assert pauses[0] == pauses[1] != pauses[2]
    for row in pauses:
        least = (1, 2, 4, 8, 16, 32, 60, 60, 1)
        assert all(n <= pause <= 1.25 * n for n, pause in zip(least, row, strict=True)), row


async def test_a_restart_that_is_asked_for_means_now_and_counts_for_nothing(
    make_supervisor: MakeSupervisor, faked: Faked
) -> None:
    await faked.start(make_supervisor)
    handle = await faked.register(max_restarts=1, essential=True)
    faked.fail()
    handle.restart()
    for incarnation in range(2, 10):
        status = handle.status()
        assert (status.state, status.incarnation) == (WorkerState.RUNNING, incarnation)
        assert status.restarts == 0
        handle.restart()
    assert faked.clock.now() == 0


# Intensity.


@pytest.mark.parametrize("restart", [Restart.ON_FAILURE, Restart.ALWAYS])
async def test_a_worker_that_ends_too_often_is_given_up_and_says_why(
    make_supervisor: MakeSupervisor, faked: Faked, restart: Restart
) -> None:
    supervisor = await faked.start(make_supervisor)
    handle = await faked.register(restart=restart)
    failing = restart is Restart.ON_FAILURE
    for _ in range(5):
        faked.fail() if failing else faked.launcher["w"].finish()
        faked.clock.advance_to_next()
    faked.fail() if failing else faked.launcher["w"].finish()
    status = await faked.told(aiobgw.Retired)
    assert status == handle.status()
    assert (status.state, status.restarts, status.next_start_at) == (WorkerState.STOPPED, 5, None)
    what = "failed" if failing else "clean"
    allowed = "max_restarts=5 in max_seconds=60"
    assert status.reason == f"{what} exit; not restarted any more: {allowed}"
    assert supervisor.handles() == []
    exit = await handle
    assert exit is not None and exit.incarnation == 6


async def test_a_command_that_cannot_be_executed_is_tried_and_given_up(
    make_supervisor: MakeSupervisor,
) -> None:
    """Real processes; only the pauses are not."""
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    events = supervisor.events()
    spec = WorkerSpec(name="none", command=["/no/such/program"], max_restarts=2)
    handle = await supervisor.register(spec)
    async for event in events:
        if isinstance(event, aiobgw.Restarting):
            clock.advance_to_next()
        if isinstance(event, aiobgw.Retired):
            break
    assert (handle.status().incarnation, handle.status().restarts) == (3, 2)
    with pytest.raises(NeverStarted, match="/no/such/program") as caught:
        await handle.wait_for_startup()
    assert caught.value.next_start_at is None
    with pytest.raises(WorkerFailed):
        (await handle).check()  # type: ignore[union-attr]


# What follows for others.


@pytest.mark.parametrize("escalate", Escalate)
async def test_what_follows_when_a_worker_is_given_up(
    make_supervisor: MakeSupervisor, faked: Faked, escalate: Escalate
) -> None:
    supervisor = await faked.start(make_supervisor)
    sibling = await faked.register("sibling", group="g")
    stranger = await faked.register("stranger", group="other")
    await faked.register("w", group="g", max_restarts=0, escalate=escalate)
    guarded = asyncio.ensure_future(_guarded(supervisor.guard()))
    await asyncio.sleep(0)
    faked.fail()

    ended = {name for name in ("sibling", "stranger") if faked.launcher[name].is_over}
    expected = {Escalate.STOP_GROUP: {"sibling"}, Escalate.FAIL: {"sibling", "stranger"}}
    assert ended == expected.get(escalate, set())
    if escalate is not Escalate.FAIL:
        assert stranger.status().state is WorkerState.RUNNING
        assert (sibling.status().state is WorkerState.RUNNING) == (escalate is Escalate.IGNORE)
        guarded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guarded
        return

    why = r"^supervisor 'test': worker 'w': failed exit; not restarted any more: max_restarts=0 in"
    for failing in (guarded, supervisor.wait_closed()):
        with pytest.raises(SupervisorFailed, match=why) as caught:
            await failing
        _check_cause(caught.value)


async def _guarded(guard: Any) -> None:
    async with guard:
        await asyncio.get_running_loop().create_future()


def _check_cause(failure: SupervisorFailed, notes: str = "as asked") -> None:
    """What failed the supervisor is there, with the worker's own traceback."""
    cause = failure.__cause__
    assert isinstance(cause, WorkerFailed)
    assert cause.name == "w"
    assert notes in "".join(getattr(cause, "__notes__", []))


# Essential workers.


def _fail_often(faked: Faked, process: FakeProcess) -> None:
    process.fail("ValueError: as asked")
    faked.clock.advance_to_next()
    faked.fail()


Asked = Callable[[WorkerHandle], None]
UNASKED: dict[str, tuple[Restart, Callable[[Faked, FakeProcess], None], str]] = {
    "returns": (Restart.NEVER, lambda _, process: process.finish(), "clean exit"),
    "fails": (Restart.NEVER, lambda _, process: process.fail("as asked"), "failed exit"),
    "crashes": (Restart.NEVER, lambda _, process: process.crash(11), "crashed exit"),
    "fails too often": (Restart.ALWAYS, _fail_often, "max_restarts=1"),
}
ASKED: dict[str, Asked] = {
    "terminated": WorkerHandle.terminate,
    "killed": WorkerHandle.kill,
}


@pytest.mark.parametrize("how", UNASKED)
async def test_a_supervisor_fails_with_its_essential_worker(
    make_supervisor: MakeSupervisor, faked: Faked, how: str
) -> None:
    supervisor = await faked.start(make_supervisor)
    other = await faked.register("other")
    restart, end, reason = UNASKED[how]
    handle = await faked.register(restart=restart, essential=True, max_restarts=1)
    end(faked, faked.launcher["w"])
    with pytest.raises(SupervisorFailed, match=f"'w': it is essential, .*{reason}") as caught:
        await supervisor.wait_closed()
    failed = how != "returns"
    assert isinstance(caught.value.__cause__, WorkerFailed) == failed
    for one in (handle, other):
        assert one.status().state is WorkerState.STOPPED
    assert other.status().reason == "the supervisor is stopping"


async def test_a_supervisor_fails_with_an_essential_worker_that_cannot_be_launched(
    make_supervisor: MakeSupervisor, faked: Faked
) -> None:
    supervisor = await faked.start(make_supervisor)
    faked.launcher.refuse("no memory")
    await faked.register(restart=Restart.NEVER, essential=True)
    with pytest.raises(SupervisorFailed, match="could not be launched: no memory"):
        await supervisor.wait_closed()


async def test_the_end_of_a_group_that_cannot_be_kept_up_is_nobodys_wish(
    make_supervisor: MakeSupervisor, faked: Faked
) -> None:
    supervisor = await faked.start(make_supervisor)
    await faked.register("essential", group="g", essential=True)
    await faked.register("w", group="g", max_restarts=0, escalate=Escalate.STOP_GROUP)
    faked.fail()
    with pytest.raises(SupervisorFailed, match=r"'essential': it is essential, .*'w'"):
        await supervisor.wait_closed()


@pytest.mark.parametrize("how", ASKED)
async def test_an_essential_worker_may_be_asked_to_end_at_any_time(
    make_supervisor: MakeSupervisor, faked: Faked, how: str
) -> None:
    supervisor = await faked.start(make_supervisor)
    end = ASKED[how]
    for when in ("running", "in its pause", "gated"):
        gate = aiobgw.Phase.RUNNING if when == "gated" else aiobgw.Phase.SUPERVISOR_START
        await supervisor.advance(aiobgw.Phase.SUPERVISOR_START)
        handle = await faked.register(essential=True, start_when=gate)
        if when == "in its pause":
            faked.fail()
        end(handle)
        assert handle.status().state is WorkerState.STOPPED
    assert supervisor.status().stopping is None


@pytest.mark.parametrize("first", ["its end", "the stop"])
@pytest.mark.parametrize("mode", ShutdownMode)
async def test_a_stop_at_the_same_moment_decides_by_who_came_first(
    make_supervisor: MakeSupervisor, faked: Faked, mode: ShutdownMode, first: str
) -> None:
    supervisor = await faked.start(make_supervisor)
    await faked.register(restart=Restart.NEVER, essential=True)
    if first == "its end":
        faked.fail()
        with pytest.raises(SupervisorFailed):
            await supervisor.wait_closed()
    await_stop = asyncio.ensure_future(supervisor.shutdown(mode))
    await asyncio.sleep(0)
    if first == "the stop" and mode is ShutdownMode.SMART:
        faked.fail()
    await await_stop
    if first == "the stop":
        await supervisor.wait_closed()


async def test_an_embedded_supervisor_takes_its_block_down_with_its_essential_worker() -> None:
    """Real processes: nothing of the others is left when the failure is raised."""
    pids: set[int] = set()
    with pytest.raises(SupervisorFailed, match=r"'w': it is essential, .*: failed exit$") as caught:
        async with aiobgw.Supervisor(name="test") as supervisor:
            other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
            pids.add((await other.wait_for_startup()).pid or 0)
            spec = WorkerSpec(name="w", target=targets.fail, restart=Restart.NEVER, essential=True)
            async with supervisor.guard():
                await supervisor.register(spec)
                await asyncio.get_running_loop().create_future()
    _check_cause(caught.value, "Traceback")
    assert not any(map(procs.is_alive, pids))
    with pytest.raises(SupervisorFailed) as again:
        await supervisor.wait_closed()
    assert again.value is caught.value

    # Without a guard the block goes on, and hears of it where it ends.
    with pytest.raises(SupervisorFailed, match="'w': it is essential"):
        async with aiobgw.Supervisor(name="test") as supervisor:
            handle = await supervisor.register(
                WorkerSpec(name="w", command=["true"], essential=True)
            )
            await handle
            while supervisor.status().workers:  # noqa: ASYNC110
                await asyncio.sleep(0)


# The deadline of a start.


async def test_who_is_not_ready_in_time_is_ended_and_comes_again_later(
    make_supervisor: MakeSupervisor, faked: Faked
) -> None:
    await faked.start(make_supervisor)
    handle = await faked.register(ready=Readiness.NOTIFY, start_timeout=20, restart_jitter=0)
    first = faked.launcher["w"]
    faked.clock.advance(19.5)
    assert (handle.status().state, handle.status().ready) == (WorkerState.RUNNING, False)
    first.ignores.add(signal.SIGTERM)
    faked.clock.advance(0.5)
    assert handle.status().state is WorkerState.STOPPING
    assert handle.status().reason == "not ready within start_timeout (20 s)"
    faked.clock.advance(10)  # and then stop_timeout
    assert first.signals == [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL]
    status = await faked.told(aiobgw.Restarting)
    assert status.exit is not None
    assert (status.exit.kind, status.exit.signal) == (ExitKind.FAILED, signal.SIGKILL)
    assert status.reason.startswith("not ready within start_timeout (20 s)")

    assert faked.clock.advance_to_next() == 1
    faked.launcher["w"].ready()
    faked.clock.advance(3600)
    assert handle.status().ready
    assert faked.clock.next_at is None, "the deadline went with the readiness"


async def test_a_slow_import_is_waited_for_unless_it_is_too_slow(
    make_supervisor: MakeSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: the import waits until the test lets it go on."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    source = f"open({str(gate)!r}).read()\ndef sleep():\n    import time; time.sleep(3600)\n"
    (tmp_path / "slow_to_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    spec = WorkerSpec(name="w", target="slow_to_import:sleep", start_timeout=30, restart_jitter=0)
    handle = await supervisor.register(spec)
    while handle.status().pid is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    clock.advance(30)
    with pytest.raises(NeverStarted, match=r"not started within start_timeout \(30 s\)") as caught:
        await handle.wait_for_startup()
    assert caught.value.next_start_at is not None

    clock.advance_to_next()
    while handle.status().pid is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    clock.advance(29)
    os.close(await asyncio.to_thread(os.open, gate, os.O_WRONLY))
    status = await handle.wait_for_ready()
    assert (status.incarnation, status.restarts) == (2, 1)
    clock.advance(3600)
    assert handle.status().state is WorkerState.RUNNING
