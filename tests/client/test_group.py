"""Groups: as many as there is room for, told once what failed, all ended on leaving.

Scenario numbers (T22 ...) are those of the parallel leader in PostgreSQL's tests.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    ExitKind,
    Flags,
    InvalidSpec,
    Latch,
    NeverStarted,
    NoFreeSlot,
    Phase,
    Restart,
    Supervisor,
    SupervisorDied,
    TooManyParallelWorkers,
    WorkerFailed,
    WorkerGroup,
    WorkerHandle,
    WorkerSpec,
    WorkerState,
)
from aiobgw._client.member import Member

from .. import group_targets, procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

ENOUGH = 20.0
MISSING = "no.such.module:target"


@pytest.fixture
async def two(make_supervisor: MakeSupervisor) -> Supervisor:
    """A supervisor with room for two workers of the parallel class, and more of others."""
    return await make_supervisor(max_workers=8, max_parallel_workers=2, spares=2)


def parallel(**options: Any) -> WorkerSpec:
    options.setdefault("name", "scan")
    options.setdefault("target", targets.sleep)
    options.setdefault("flags", Flags.CLASS_PARALLEL)
    return WorkerSpec(**options)


def each(*changes: dict[str, Any]) -> Callable[[int], WorkerSpec]:
    """Return what makes the specs of members that differ."""
    return lambda number: parallel(name=f"scan#{number}", **changes[number - 1])


def states(group: WorkerGroup) -> list[WorkerState]:
    return [handle.status().state for handle in group.handles]


def all_over(group: WorkerGroup) -> bool:
    return all(state is WorkerState.STOPPED for state in states(group))


def nothing_left(supervisor: Supervisor) -> bool:
    status = supervisor.status()
    return status.parallel_workers == 0 and not status.workers


async def has_been_asked(group: WorkerGroup) -> None:
    """Return when the one member was asked to end."""
    (handle,) = group.handles
    while handle.status().state is not WorkerState.STOPPING:
        await handle._port.changes.wait()


class Failing:
    """A member that came up, and fails when it is told to."""

    def __init__(self) -> None:
        self.up, self.go = Latch(), Latch()

    @property
    def spec(self) -> dict[str, Any]:
        latches = {"up": self.up, "go": self.go}
        return {"target": group_targets.fail_when_told, "latches": latches}

    async def fail(self, handle: WorkerHandle) -> None:
        """Have it fail, and return when it is over."""
        await self.up.wait()
        self.go.set()
        await handle


# Coming up.


async def test_all_come_up_when_there_is_room_and_leaving_ends_them(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 3) as group:
        assert await group.ready() == 3
        assert (group.planned, group.refused) == (3, None)
        assert states(group) == [WorkerState.RUNNING] * 3
        assert supervisor.status().parallel_workers == 3
        pids = {handle.status().pid or 0 for handle in group.handles}
    assert all_over(group)
    assert nothing_left(supervisor)
    assert not any(procs.is_alive(pid) for pid in pids)


async def test_members_are_numbered_by_name_and_share_the_type(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 3) as group:
        assert [handle.name for handle in group.handles] == ["scan#1", "scan#2", "scan#3"]
        assert {handle.status().type for handle in group.handles} == {"scan"}


async def test_a_callable_makes_members_that_differ(supervisor: Supervisor, tmp_path: Path) -> None:
    def spec(number: int) -> WorkerSpec:
        path = str(tmp_path / str(number))
        return parallel(name=f"n{number}", target=targets.echo, args=(path, number))

    async with WorkerGroup(supervisor, spec, 3) as group:
        assert [exit.name for exit in await group.wait()] == ["n1", "n2", "n3"]
    found = [(tmp_path / str(number)).read_text() for number in (1, 2, 3)]
    assert found == [f"(({number},), {{}})\n" for number in (1, 2, 3)]


async def test_a_group_of_none_is_ready_and_over_at_once(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 0) as group:
        assert await group.ready() == 0
        assert await group.wait() == []
        assert group.handles == ()


async def test_ready_waits_for_the_last_and_counts_who_ended_cleanly_before(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    early = {"target": targets.nothing, "start_when": Phase.CONSISTENT_STATE}
    async with WorkerGroup(supervisor, each(early, {}), 2) as group:
        await group.handles[0]
        ready = asyncio.ensure_future(group.ready())
        await asyncio.sleep(0)
        assert not ready.done()
        await supervisor.advance(Phase.RUNNING)
        assert await ready == 2


async def test_ready_and_wait_can_be_cancelled_and_lose_nothing(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    async with WorkerGroup(supervisor, parallel(target=targets.nothing), 2) as group:
        for wait in (group.ready, group.wait):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await wait()
        await supervisor.advance(Phase.RUNNING)
        assert await group.ready() == 2
        assert [exit.kind for exit in await group.wait()] == [ExitKind.CLEAN] * 2


async def test_a_group_has_no_task(supervisor: Supervisor) -> None:
    before = asyncio.all_tasks()
    group = WorkerGroup(supervisor, parallel(target=targets.nothing), 2)
    async with group:
        await group.ready()
        assert asyncio.all_tasks() == before
        await group.wait()
        assert asyncio.all_tasks() == before
    assert asyncio.all_tasks() == before


async def test_nothing_is_looked_at_while_nothing_changes(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with WorkerGroup(supervisor, parallel(), 2) as group:
        await group.ready()
        waiting = asyncio.ensure_future(group.wait())
        await asyncio.sleep(0)
        looks: list[Member] = []
        look = Member.look
        monkeypatch.setattr(Member, "look", lambda self: (looks.append(self), look(self))[1])
        await asyncio.sleep(0.1)
        assert looks == []
        group.handles[1].terminate()
        await group.handles[1]
        assert {member.handle for member in looks} == {group.handles[1]}
        group.handles[0].terminate()
        assert [exit.kind for exit in await waiting] == [ExitKind.TERMINATED] * 2


# Room: the quota, and the slots.


async def test_t22_fewer_slots_than_wanted_make_a_smaller_group_which_is_told_so(
    make_supervisor: MakeSupervisor,
) -> None:
    """PostgreSQL's test errors out; a leader copes with 0 to N workers (S1)."""
    supervisor = await make_supervisor(max_workers=2)
    async with WorkerGroup(supervisor, parallel(), 4) as group:
        assert await group.ready() == 2
        assert isinstance(group.refused, NoFreeSlot)
        assert (group.refused.limit, group.planned, len(group.handles)) == (2, 4, 2)
    assert all_over(group)
    assert nothing_left(supervisor)
    async with WorkerGroup(supervisor, parallel(), 2) as again:
        assert again.refused is None


async def test_the_first_refusal_ends_the_attempts(two: Supervisor) -> None:
    asked: list[str] = []

    class Counting:
        async def register(self, spec: WorkerSpec) -> WorkerHandle:
            asked.append(spec.name)
            return await two.register(spec)

    async with WorkerGroup(Counting(), parallel(), 1000) as group:
        assert isinstance(group.refused, TooManyParallelWorkers)
        assert len(group.handles) == 2
    assert asked == ["scan#1", "scan#2", "scan#3"]


async def _leader(supervisor: Supervisor, folder: Path, wanted: int) -> tuple[int, int]:
    """Sum squares with so many workers; return how many came up, and the sum."""
    shares = [list(range(first, 100, wanted)) for first in range(wanted)]
    go = Latch()

    def spec(number: int) -> WorkerSpec:
        args = (str(folder), shares[number - 1])
        target = group_targets.square_when_told
        return parallel(name=f"share#{number}", target=target, args=args, latches={"go": go})

    async with WorkerGroup(supervisor, spec, wanted) as group:
        came_up = await group.ready()
        go.set()
        for share in shares[len(group.handles) :]:
            group_targets.square(str(folder), share)
        await group.wait()
    return came_up, group_targets.total(str(folder))


@pytest.mark.parametrize("quota", [0, 1, 3, 4, 8])
async def test_t26_t27_with_a_quota_of_any_size_the_result_is_the_same(
    make_supervisor: MakeSupervisor, tmp_path: Path, quota: int
) -> None:
    """At quota 0 nobody comes up, and the leader runs it all itself."""
    supervisor = await make_supervisor(max_parallel_workers=quota)
    expected = (min(quota, 4), sum(number * number for number in range(100)))
    assert await _leader(supervisor, tmp_path, 4) == expected
    assert nothing_left(supervisor)


async def test_t30_planned_and_launched_are_told_apart(two: Supervisor) -> None:
    planned = launched = 0
    for wanted in (0, 1, 2, 5):
        async with WorkerGroup(two, parallel(), wanted) as group:
            planned += group.planned
            launched += len(group.handles)
    assert (planned, launched) == (8, 5)


async def test_the_quota_is_used_up_at_registration_and_not_at_the_start(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_parallel_workers=1, start_phase=Phase.CONSISTENT_STATE)
    gated = await supervisor.register(parallel())
    assert gated.status().state is WorkerState.NOT_STARTED
    assert supervisor.status().parallel_workers == 1
    with pytest.raises(TooManyParallelWorkers):
        await supervisor.register(parallel())
    gated.terminate()
    await gated
    assert supervisor.status().parallel_workers == 0


async def test_the_quota_concerns_the_parallel_class_only(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_parallel_workers=0)
    with pytest.raises(TooManyParallelWorkers, match="all 0 places"):
        await supervisor.register(parallel())
    async with WorkerGroup(supervisor, parallel(flags=Flags.NONE), 2) as group:
        assert await group.ready() == 2
        assert supervisor.status().parallel_workers == 0


async def test_the_class_is_inside_the_limit_of_slots_and_not_on_top_of_it(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=2, max_parallel_workers=1024)
    async with WorkerGroup(supervisor, parallel(), 3) as group:
        assert isinstance(group.refused, NoFreeSlot)
        with pytest.raises(NoFreeSlot):
            await supervisor.register(parallel(name="plugin", flags=Flags.NONE))


async def test_a_refusal_uses_nothing_up(two: Supervisor) -> None:
    async with WorkerGroup(two, parallel(), 2):
        before = two.status().workers
        for _ in range(20):
            with pytest.raises(TooManyParallelWorkers):
                await two.register(parallel())
        assert [worker.slot for worker in two.status().workers] == [w.slot for w in before]
        assert two.status().parallel_workers == 2

        # Six slots are left for others: a refusal took none.
        async with WorkerGroup(two, parallel(flags=Flags.NONE), 6) as others:
            assert others.refused is None

    # A refusal for another reason uses up no quota, either.
    with pytest.raises(aiobgw.PayloadTooLarge):
        await two.register(parallel(args=(b"x" * 17_000_000,)))
    with pytest.raises(InvalidSpec):
        await two.register(parallel(args=(lambda: None,)))
    async with WorkerGroup(two, parallel(), 2) as group:
        assert group.refused is None


@pytest.mark.parametrize("quota", [0, 1, 1024])
def test_the_quota_is_0_to_1024(quota: int) -> None:
    assert aiobgw.Settings(max_parallel_workers=quota).max_parallel_workers == quota


@pytest.mark.parametrize("quota", [-1, 1025, True, 1.0])
def test_a_quota_out_of_range_is_refused(quota: Any) -> None:
    with pytest.raises(InvalidSpec, match="0 to 1024"):
        aiobgw.Settings(max_parallel_workers=quota)


async def test_a_quota_of_1024_can_be_registered_in_full(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor(
        max_workers=1100, max_parallel_workers=1024, start_phase=Phase.CONSISTENT_STATE
    )
    async with WorkerGroup(supervisor, parallel(), 1100) as group:
        assert len(group.handles) == supervisor.status().parallel_workers == 1024
        assert isinstance(group.refused, TooManyParallelWorkers)
    assert nothing_left(supervisor)


async def test_t75_whoever_sees_the_slot_free_finds_the_quota_returned(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=2, max_parallel_workers=2, spares=2)
    events = supervisor.events()

    async def register_on_seeing_it() -> WorkerHandle:
        async for event in events:
            if isinstance(event, aiobgw.Retired):
                return await supervisor.register(parallel())
        raise AssertionError("no slot was freed")

    await supervisor.register(parallel())
    leaving = await supervisor.register(parallel())
    for _ in range(20):
        seeing = asyncio.ensure_future(register_on_seeing_it())
        await leaving.wait_for_startup()
        leaving.terminate()
        leaving = await seeing  # accepted
        assert supervisor.status().parallel_workers == 2


# Failing before it was ready.


async def test_t23_the_first_that_ends_before_it_was_ready_raises_at_once(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    bad = {"target": MISSING, "start_when": Phase.CONSISTENT_STATE}
    group = WorkerGroup(supervisor, each({}, bad, {}), 3)
    with pytest.raises(NeverStarted, match=r"'scan#2' did not start") as caught:
        async with asyncio.timeout(ENOUGH), group:
            await group.ready()  # the others would never be
    assert "No module named 'no'" in caught.value.__notes__[0]
    assert all_over(group)
    assert nothing_left(supervisor)


@pytest.mark.parametrize("how", [WorkerHandle.terminate, WorkerHandle.kill])
async def test_a_member_that_is_ended_before_it_was_ready_raises(
    make_supervisor: MakeSupervisor, how: Callable[[WorkerHandle], None]
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    async with WorkerGroup(supervisor, parallel(), 2) as group:
        ready = asyncio.ensure_future(group.ready())
        await asyncio.sleep(0)
        how(group.handles[0])
        with pytest.raises(NeverStarted, match="before it started"):
            await ready


async def test_ready_asked_again_counts_who_came_up(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, each({}, {"target": MISSING}, {}), 3) as group:
        with pytest.raises(NeverStarted):
            await group.ready()
        assert await group.ready() == 2
        assert group.handles[1].status().state is WorkerState.STOPPED


async def test_wait_raises_also_for_a_member_that_never_started(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, each({}, {"target": MISSING}), 2) as group:
        with pytest.raises(NeverStarted, match="'scan#2'"):
            await group.wait()


async def test_a_member_that_never_ran_is_of_unknown_kind_once_it_was_told(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    async with WorkerGroup(supervisor, parallel(), 1) as group:
        group.handles[0].terminate()
        with pytest.raises(NeverStarted):
            await group.wait()
        (exit,) = await group.wait()
        assert (exit.kind, exit.incarnation, exit.name) == (ExitKind.UNKNOWN, 0, "scan#1")
        assert exit.reason == "terminated before it started"


async def test_a_member_that_is_tried_again_raises_once_for_each_launch_that_failed(
    supervisor: Supervisor,
) -> None:
    again = parallel(flags=Flags.NONE, target=MISSING, restart_delay=3600, restart=Restart.ALWAYS)
    async with WorkerGroup(supervisor, again, 1) as group:
        for _ in range(2):
            with pytest.raises(NeverStarted) as caught:
                await group.ready()
            assert caught.value.next_start_at is not None
            waiting = asyncio.ensure_future(group.ready())
            await asyncio.sleep(0.01)
            assert not waiting.done()  # told once
            waiting.cancel()
            group.handles[0].restart()
    assert all_over(group)


# Ending.


async def test_wait_returns_how_all_ended_in_order(supervisor: Supervisor) -> None:
    members = each({"target": targets.nothing_async}, {}, {"target": targets.nothing})
    async with WorkerGroup(supervisor, members, 3) as group:
        await group.ready()
        group.handles[1].terminate()
        exits = await group.wait()
        assert [exit.kind for exit in exits] == [
            ExitKind.CLEAN,
            ExitKind.TERMINATED,
            ExitKind.CLEAN,
        ]
        assert [exit.name for exit in exits] == ["scan#1", "scan#2", "scan#3"]
        assert nothing_left(supervisor)
        assert await group.wait() == exits


async def test_a_failure_after_it_came_up_is_raised_by_wait_and_only_once(
    supervisor: Supervisor,
) -> None:
    failing = Failing()
    async with WorkerGroup(supervisor, each({}, failing.spec), 2) as group:
        assert await group.ready() == 2
        await failing.fail(group.handles[1])
        assert await group.ready() == 2  # it had come up
        with pytest.raises(WorkerFailed, match=r"'scan#2' failed with exit code 1") as caught:
            await group.wait()  # although the other one still runs
        assert "told to fail" in caught.value.__notes__[0]
        assert states(group)[0] is WorkerState.RUNNING

        group.handles[0].terminate()
        kinds = [exit.kind for exit in await group.wait()]
        assert kinds == [ExitKind.TERMINATED, ExitKind.FAILED]
    # Left normally, and it is not raised again.


async def test_a_failure_wakes_whoever_waits(supervisor: Supervisor) -> None:
    failing = Failing()
    async with WorkerGroup(supervisor, each(failing.spec, {}), 2) as group:
        waiting = asyncio.ensure_future(group.wait())
        await failing.fail(group.handles[0])
        with pytest.raises(WorkerFailed, match="'scan#1'"):
            await waiting


async def test_of_two_waiters_one_is_told_and_the_other_goes_on_waiting(
    supervisor: Supervisor,
) -> None:
    failing = Failing()
    async with WorkerGroup(supervisor, each(failing.spec, {}), 2) as group:
        waiters = [asyncio.ensure_future(group.wait()) for _ in range(2)]
        await failing.fail(group.handles[0])
        done, pending = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        assert [type(waiter.exception()) for waiter in done] == [WorkerFailed]
        assert len(pending) == 1
        await group.handles[1].wait_for_startup()
        group.handles[1].terminate()
        assert len(await pending.pop()) == 2


async def test_the_failure_that_happened_first_is_the_first_to_be_raised(
    supervisor: Supervisor,
) -> None:
    first, second = Failing(), Failing()
    async with WorkerGroup(supervisor, each(second.spec, first.spec), 2) as group:
        await first.fail(group.handles[1])
        await second.fail(group.handles[0])
        for name in ("scan#2", "scan#1"):
            with pytest.raises(WorkerFailed, match=name):
                await group.wait()
        assert len(await group.wait()) == 2


@pytest.mark.parametrize("size", [8_000, 32_768, 1_000_000])
async def test_t28_an_error_larger_than_a_frame_arrives_once_and_up_to_its_end(
    supervisor: Supervisor, size: int
) -> None:
    long = {"target": group_targets.fail_at_length, "args": (size,)}
    async with asyncio.timeout(ENOUGH):
        async with WorkerGroup(supervisor, each({}, long), 2) as group:
            with pytest.raises(WorkerFailed, match="worker 'scan#2' failed") as caught:
                await group.wait()
            (note,) = caught.value.__notes__
            assert note.endswith("x" * 1000 + " THE END")
            assert len(note) <= 8_000
    assert nothing_left(supervisor)


async def test_a_crash_is_raised_with_its_signal(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 2) as group:
        await group.ready()
        group.handles[0].signal(signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="crashed by SIGKILL"):
            await group.wait()


async def test_wait_goes_on_across_restarts(supervisor: Supervisor) -> None:
    failing = Failing()
    for_ever: dict[str, Any] = {"restart_delay": 0, "max_restarts": None}
    spec = parallel(flags=Flags.NONE, restart=Restart.ON_FAILURE, **for_ever, **failing.spec)
    async with WorkerGroup(supervisor, spec, 1) as group:
        waiting = asyncio.ensure_future(group.wait())
        failing.go.set()
        while group.handles[0].status().restarts < 3:
            await group.handles[0].wait_for_exit()
            await asyncio.sleep(0)
        assert not waiting.done()
        group.handles[0].terminate()
        try:
            await waiting
        except WorkerFailed:
            pass  # it failed in the moment in which its end was asked for


# Leaving.


async def test_t25_the_members_end_when_the_leader_drops_the_group(supervisor: Supervisor) -> None:
    """PostgreSQL's workers notice that their leader is gone; ours are ended by it."""
    ups = [Latch(), Latch()]
    members = each(
        {"target": group_targets.fail_when_told, "latches": {"up": ups[0], "go": Latch()}},
        {"target": targets.ignore_term, "latches": {"up": ups[1]}, "stop_timeout": 0.1},
    )
    async with WorkerGroup(supervisor, members, 2) as group:
        for up in ups:
            await up.wait()
    assert all_over(group)
    exits = [handle.status().exit for handle in group.handles]
    assert [exit.kind for exit in exits if exit] == [ExitKind.TERMINATED, ExitKind.FAILED]
    assert nothing_left(supervisor)


async def test_a_failure_that_nobody_heard_of_is_raised_by_leaving(supervisor: Supervisor) -> None:
    failing = Failing()
    group = WorkerGroup(supervisor, each({}, failing.spec), 2)
    with pytest.raises(WorkerFailed, match="'scan#2'") as caught:
        async with group:
            assert await group.ready() == 2
            await failing.fail(group.handles[1])
    assert "told to fail" in caught.value.__notes__[0]
    assert caught.value.__context__ is None
    assert all_over(group)


async def test_of_several_failures_leaving_raises_the_first_and_notes_the_others(
    supervisor: Supervisor,
) -> None:
    group = WorkerGroup(supervisor, parallel(target=targets.fail), 3)
    with pytest.raises(WorkerFailed) as caught:
        async with group:
            await asyncio.gather(*group.handles)
    notes = "\n".join(caught.value.__notes__)
    told = [name for name in ("scan#1", "scan#2", "scan#3") if name in str(caught.value) + notes]
    assert len(told) == 3
    assert len([note for note in caught.value.__notes__ if note.startswith("worker group:")]) == 2


async def test_an_exception_of_the_block_wins_and_has_the_failure_as_a_note(
    supervisor: Supervisor,
) -> None:
    failing = Failing()
    with pytest.raises(ZeroDivisionError) as caught:
        async with WorkerGroup(supervisor, each({}, failing.spec), 2) as group:
            await failing.fail(group.handles[1])
            raise ZeroDivisionError
    (note,) = caught.value.__notes__
    assert note.startswith("worker group: worker 'scan#2' failed with exit code 1\n")
    assert "ValueError: told to fail" in note
    assert all_over(group)


async def test_the_very_error_that_wait_raised_leaves_the_block_unchanged(
    supervisor: Supervisor,
) -> None:
    failing = Failing()
    told: list[WorkerFailed] = []
    with pytest.raises(WorkerFailed) as caught:
        async with WorkerGroup(supervisor, each({}, failing.spec), 2) as group:
            await failing.fail(group.handles[1])
            try:
                await group.wait()
            except WorkerFailed as error:
                told.append(error)
                raise
    assert [caught.value] == told
    assert len(caught.value.__notes__) == 1
    assert all_over(group)


async def test_a_cancelled_block_ends_the_members_and_stays_cancelled(
    supervisor: Supervisor,
) -> None:
    group = WorkerGroup(supervisor, parallel(), 2)
    ready = asyncio.Event()

    async def lead() -> None:
        async with group:
            await group.ready()
            ready.set()
            await group.wait()

    task = asyncio.ensure_future(lead())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all_over(group)
    assert {handle.status().exit.kind for handle in group.handles} == {  # type: ignore[union-attr]
        ExitKind.TERMINATED
    }


async def test_a_timeout_around_the_block_stays_a_timeout(supervisor: Supervisor) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), WorkerGroup(supervisor, parallel(), 2) as group:
            await group.wait()
    assert nothing_left(supervisor)


def stubborn(up: Latch, **options: Any) -> WorkerSpec:
    return parallel(target=targets.ignore_term, latches={"up": up}, **options)


async def test_a_member_that_does_not_comply_is_killed_after_close_timeout(
    supervisor: Supervisor,
) -> None:
    up = Latch()
    spec = stubborn(up, stop_timeout=3600)
    async with asyncio.timeout(ENOUGH):
        async with WorkerGroup(supervisor, spec, 1, close_timeout=0.1) as group:
            await up.wait()
        (exit,) = await group.wait()
    assert (exit.kind, exit.signal) == (ExitKind.TERMINATED, signal.SIGKILL)
    assert nothing_left(supervisor)


async def test_the_close_timeout_leaves_every_member_its_stop_timeout(
    supervisor: Supervisor,
) -> None:
    """What had to be killed because the block was left is no failure of its work."""
    ups = [Latch(), Latch()]

    def spec(number: int) -> WorkerSpec:
        return stubborn(ups[number - 1], stop_timeout=[0.3, 0.1][number - 1])

    async with WorkerGroup(supervisor, spec, 2) as group:
        for up in ups:
            await up.wait()
    exits = [handle.status().exit for handle in group.handles]
    assert ["within stop_timeout" in exit.reason for exit in exits if exit] == [True, True]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_while_leaving_kills_is_awaited_and_raised(
    supervisor: Supervisor, times: int
) -> None:
    up = Latch()
    group = WorkerGroup(supervisor, stubborn(up, stop_timeout=3600), 1)

    async def lead() -> None:
        async with group:
            await up.wait()

    task = asyncio.ensure_future(lead())
    await up.wait()
    await has_been_asked(group)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(ENOUGH):
        await asyncio.wait([task])
    assert task.cancelled()
    assert all_over(group)


async def test_t29_the_members_are_gone_before_the_next_group_is_launched(
    two: Supervisor,
) -> None:
    chance = random.Random(29)
    seen: set[int] = set()
    for _ in range(15):
        wanted = chance.randrange(4)
        assert not any(procs.is_alive(pid) for pid in seen)
        async with WorkerGroup(two, parallel(), wanted) as group:
            assert await group.ready() == min(wanted, 2)
            seen |= {handle.status().pid or 0 for handle in group.handles}


async def test_t32_the_quota_is_usable_in_full_after_groups_that_crashed(two: Supervisor) -> None:
    for _ in range(10):
        async with WorkerGroup(two, parallel(), 2) as group:
            await group.ready()
            for handle in group.handles:
                handle.signal(signal.SIGKILL)
            for _ in group.handles:
                with pytest.raises(WorkerFailed):
                    await group.wait()
        assert two.status().parallel_workers == 0
    async with WorkerGroup(two, parallel(), 2) as group:
        assert (await group.ready(), group.refused) == (2, None)


async def test_entering_and_leaving_may_happen_in_different_tasks(supervisor: Supervisor) -> None:
    group = WorkerGroup(supervisor, parallel(), 2)
    await asyncio.create_task(group.__aenter__())
    assert await asyncio.create_task(group.ready()) == 2
    await asyncio.create_task(group.__aexit__(None, None, None))
    assert all_over(group)


async def test_a_group_can_be_asked_after_it_was_left(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 1) as group:
        await group.ready()
    assert await group.ready() == 1
    assert [exit.kind for exit in await group.wait()] == [ExitKind.TERMINATED]


async def test_leaving_wakes_whoever_still_waits(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor(start_phase=Phase.CONSISTENT_STATE)
    async with WorkerGroup(supervisor, parallel(), 2) as group:
        waiting = [asyncio.ensure_future(group.ready()), asyncio.ensure_future(group.wait())]
        await asyncio.sleep(0)
    assert await waiting[0] == 0
    assert len(await waiting[1]) == 2  # type: ignore[arg-type]


# What goes wrong while entering.


class Refusing:
    """A registrar that refuses the third, or keeps it waiting."""

    def __init__(self, supervisor: Supervisor, error: Exception | None) -> None:
        self.supervisor, self.error = supervisor, error
        self.handles: list[WorkerHandle] = []
        self.reached = asyncio.Event()

    async def register(self, spec: WorkerSpec) -> WorkerHandle:
        if len(self.handles) == 2:
            self.reached.set()
            if self.error is None:
                await asyncio.get_running_loop().create_future()
            else:
                raise self.error
        self.handles.append(await self.supervisor.register(spec))
        return self.handles[-1]


@pytest.mark.parametrize(
    "error",
    [
        aiobgw.ShuttingDown("it stops"),
        aiobgw.PayloadTooLarge(2, 1),
        aiobgw.AlreadyRegistered("twice"),
        InvalidSpec("nonsense"),
        SupervisorDied("gone"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_other_error_while_entering_ends_who_was_registered_and_is_raised(
    supervisor: Supervisor, error: Exception
) -> None:
    registrar = Refusing(supervisor, error)
    with pytest.raises(type(error)) as caught:
        await WorkerGroup(registrar, parallel(), 4).__aenter__()
    assert caught.value is error
    assert [handle.status().state for handle in registrar.handles] == [WorkerState.STOPPED] * 2
    assert nothing_left(supervisor)


async def test_a_callable_that_fails_is_an_error_while_entering(supervisor: Supervisor) -> None:
    with pytest.raises(IndexError):
        await WorkerGroup(supervisor, each({}), 2).__aenter__()
    assert nothing_left(supervisor)


async def test_entering_while_the_supervisor_stops_is_refused(supervisor: Supervisor) -> None:
    await supervisor.shutdown()
    with pytest.raises(aiobgw.ShuttingDown):
        await WorkerGroup(supervisor, parallel(), 2).__aenter__()


async def test_a_cancellation_while_entering_ends_who_was_registered(
    supervisor: Supervisor,
) -> None:
    registrar = Refusing(supervisor, None)
    entering = asyncio.ensure_future(WorkerGroup(registrar, parallel(), 4).__aenter__())
    await registrar.reached.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert len(registrar.handles) == 2
    assert nothing_left(supervisor)


async def test_a_group_is_entered_once_and_asked_after_that(supervisor: Supervisor) -> None:
    group = WorkerGroup(supervisor, parallel(), 1)
    for wait in (group.ready, group.wait):
        with pytest.raises(RuntimeError, match="use 'async with'"):
            await wait()
    async with group:
        with pytest.raises(RuntimeError, match="make a new one"):
            await group.__aenter__()
        assert await group.ready() == 1
    with pytest.raises(RuntimeError, match="make a new one"):
        await group.__aenter__()
    assert len(group.handles) == 1


@pytest.mark.parametrize("planned", [-1, True, 1.5, "4", None])
async def test_t21_a_number_that_is_none_is_refused(supervisor: Supervisor, planned: Any) -> None:
    with pytest.raises(InvalidSpec, match="from 0 on"):
        WorkerGroup(supervisor, parallel(), planned)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, True, "5"])
async def test_a_close_timeout_without_end_is_refused(supervisor: Supervisor, seconds: Any) -> None:
    with pytest.raises(InvalidSpec, match="close_timeout must be 0 to 86400"):
        WorkerGroup(supervisor, parallel(), 1, close_timeout=seconds)


async def test_a_name_without_room_for_the_numbers_is_refused_at_once(
    supervisor: Supervisor,
) -> None:
    WorkerGroup(supervisor, parallel(name="n" * 93), 9)
    with pytest.raises(InvalidSpec, match="1 to 95 bytes"):
        WorkerGroup(supervisor, parallel(name="n" * 93), 10)
    with pytest.raises(InvalidSpec, match="a WorkerSpec, or a callable"):
        WorkerGroup(supervisor, "scan", 1)  # type: ignore[arg-type]


# The death of the supervisor.


async def test_whoever_waits_learns_of_the_death_and_leaving_raises_it(
    supervisor: Supervisor,
) -> None:
    with pytest.raises(SupervisorDied):
        async with WorkerGroup(supervisor, parallel(), 2) as group:
            await group.ready()
            waiting = asyncio.ensure_future(group.wait())
            await asyncio.sleep(0)
            supervisor.abandon()
            with pytest.raises(SupervisorDied):
                await waiting


async def test_the_death_is_raised_by_leaving_a_block_that_did_not_ask(
    supervisor: Supervisor,
) -> None:
    group = WorkerGroup(supervisor, parallel(), 2)
    with pytest.raises(SupervisorDied):
        async with group:
            await group.ready()
            supervisor.abandon()


async def test_the_death_is_swallowed_where_the_block_raised(supervisor: Supervisor) -> None:
    with pytest.raises(ZeroDivisionError):
        async with WorkerGroup(supervisor, parallel(), 2) as group:
            await group.ready()
            supervisor.abandon()
            raise ZeroDivisionError


async def test_the_death_while_leaving_ends_the_leave(supervisor: Supervisor) -> None:
    up = Latch()
    group = WorkerGroup(supervisor, stubborn(up, stop_timeout=3600), 1)

    async def lead() -> None:
        async with group:
            await up.wait()

    task = asyncio.ensure_future(lead())
    await up.wait()
    await has_been_asked(group)
    supervisor.abandon()
    with pytest.raises(SupervisorDied):
        await task
    up.close()  # the abandoned supervisor, which the fixture holds, still has the spec


async def test_a_stop_of_the_supervisor_ends_the_group_in_order(supervisor: Supervisor) -> None:
    async with WorkerGroup(supervisor, parallel(), 2) as group:
        await group.ready()
        waiting = asyncio.ensure_future(group.wait())
        await supervisor.shutdown()
        assert [exit.kind for exit in await waiting] == [ExitKind.TERMINATED] * 2


# Bounds that no real process needs.


class DeafPort:
    """The way to a worker that runs, and that nothing ends."""

    def __init__(self, handle: WorkerHandle) -> None:
        self._real = handle._port
        self.changes = self._real.changes
        self.asked: list[str] = []

    def status(self) -> aiobgw.WorkerStatus:
        return self._real.status()

    look = status

    def exit_of(self, incarnation: int) -> aiobgw.ExitStatus | None:
        return self._real.exit_of(incarnation)

    def request(self, request: Any, argument: int = 0) -> None:
        self.asked.append(request.name.lower())


async def test_a_member_that_nothing_ends_holds_up_no_leave(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiobgw._client.group.KILL_TIMEOUT", 0.05)
    ports: list[DeafPort] = []

    class Deaf:
        async def register(self, spec: WorkerSpec) -> WorkerHandle:
            real = await supervisor.register(spec)
            ports.append(DeafPort(real))
            return WorkerHandle(ports[-1], real.name, real.epoch, real.slot, real.generation)

    async with asyncio.timeout(ENOUGH):
        async with WorkerGroup(Deaf(), parallel(), 1, close_timeout=0.05) as group:
            await group.ready()
    assert ports[0].asked == ["terminate", "kill"]
    assert "worker scan#1: its group is left, and it lives" in caplog.text


# Many.

KINDS: list[tuple[dict[str, Any], bool]] = [
    ({"target": targets.nothing}, True),
    ({"target": targets.nothing_async}, True),
    ({"target": targets.sleep}, True),
    ({"target": targets.sleep_async}, True),
    ({"target": targets.fail}, False),
    ({"target": targets.exit_with, "args": (3,)}, False),
    ({"target": targets.exit_rudely, "args": (3,)}, False),
    ({"target": targets.kill_self, "args": (9,)}, False),
    ({"target": MISSING}, False),
]


async def _lead(group: WorkerGroup, how: str) -> None:
    async with group:
        match how:
            case "ready":
                came_up = await group.ready()
                assert came_up == len(group.handles)
            case "wait":
                async with asyncio.timeout(0.02):
                    await group.wait()
            case "both":
                await group.ready()
                async with asyncio.timeout(0.005):
                    await group.wait()
            case "raise":
                raise ZeroDivisionError
            case _:
                pass


async def test_two_hundred_random_groups_leave_nothing_behind(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=5, max_parallel_workers=3, spares=2)
    chance = random.Random(22)
    expected = (WorkerFailed, NeverStarted, ZeroDivisionError, TimeoutError)
    for number in range(200):
        kinds = [chance.choice(KINDS) for _ in range(chance.randrange(5))]
        group = WorkerGroup(supervisor, each(*(kind for kind, _ in kinds)), len(kinds))
        how = chance.choice(["leave", "ready", "wait", "both", "raise"])
        leading = asyncio.ensure_future(_lead(group, how))
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, leading.cancel)
        (outcome,) = await asyncio.gather(leading, return_exceptions=True)

        case = f"group {number}, {how}: {[kind for kind, _ in kinds]}: {outcome!r}"
        assert all_over(group), case
        assert nothing_left(supervisor), case
        if isinstance(outcome, (WorkerFailed, NeverStarted)):
            assert not all(good for _, good in kinds[: len(group.handles)]), case
        assert outcome is None or isinstance(outcome, (*expected, asyncio.CancelledError)), case

    # All five slots are free, and the quota of three.
    three = WorkerGroup(supervisor, parallel(), 3)
    two = WorkerGroup(supervisor, parallel(flags=Flags.NONE), 2)
    async with three, two:
        assert (await three.ready(), await two.ready()) == (3, 2)
