"""The crash cycle with real processes.  T numbers: the scenarios of PostgreSQL's behaviour."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    CrashCycle,
    CrashScope,
    ExitKind,
    Flags,
    Latch,
    Restart,
    ShutdownMode,
    SupervisorFailed,
    WorkerSpec,
    WorkerState,
    _inject,
)
from aiobgw._ipc.board import HEAD, BoardReader
from aiobgw._ipc.record import unpack_head

from .. import members, procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

LONG = 3600.0


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    _inject.arm("")


def member(name: str, **options: Any) -> WorkerSpec:
    """Describe a member; nobody sees its restart delay pass."""
    options.setdefault("target", members.stay)
    options.setdefault("restart_delay", LONG)
    options.setdefault("flags", Flags.SHMEM_ACCESS)
    return WorkerSpec(name=name, crash_scope=CrashScope.ALL, **options)


async def start(supervisor: aiobgw.Supervisor, spec: WorkerSpec) -> aiobgw.WorkerHandle:
    """Register a worker, and wait until its target says that it is up."""
    latches = {**spec.latches, "up": Latch()}
    options = {name: getattr(spec, name) for name in spec.__slots__ if name != "latches"}
    handle = await supervisor.register(WorkerSpec(**options, latches=latches))
    await latches["up"].wait()
    await handle.wait_for_startup()  # the worker may be faster than what it said on its channel
    return handle


def pid_of(handle: aiobgw.WorkerHandle) -> int:
    pid = handle.status().pid
    assert pid is not None
    return pid


def crash(handle: aiobgw.WorkerHandle, signum: int = signal.SIGKILL) -> int:
    pid = pid_of(handle)
    os.kill(pid, signum)
    return pid


async def end_of_cycle(events: Any) -> CrashCycle:
    async for event in events:
        if isinstance(event, CrashCycle):
            return event
    raise AssertionError("it closed")


async def exit_of(handle: aiobgw.WorkerHandle, waiting: Any = None) -> aiobgw.ExitStatus:
    exit = handle.status().exit
    assert exit is not None
    return exit


class Held:
    """An ``on_reset`` that waits for the test."""

    def __init__(self) -> None:
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.ended: str = ""

    async def __call__(self) -> None:
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "done"


async def test_T31_a_killed_member_takes_the_others_with_it_and_all_return_at_once(
    make_supervisor: MakeSupervisor, reaper: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    handles = [await start(supervisor, member(f"m{n}")) for n in range(3)]
    events = supervisor.events()
    old = [pid_of(handle) for handle in handles]
    crash(handles[1], signal.SIGSEGV)

    told = await end_of_cycle(events)
    assert (told.name, told.cycle) == ("m1", 1)
    assert (told.exit.kind, told.exit.signal) == (ExitKind.CRASHED, signal.SIGSEGV)
    assert not any(map(procs.is_alive, old))
    again = [await handle.wait_for_ready() for handle in handles]
    assert [status.incarnation for status in again] == [2, 2, 2]
    assert [status.restarts for status in again] == [0, 1, 0]
    assert not {status.pid for status in again} & set(old)
    for handle in (handles[0], handles[2]):
        exit = await exit_of(handle)
        assert (exit.kind, exit.signal) == (ExitKind.TERMINATED, signal.SIGQUIT)
        assert exit.reason == "worker 'm1' crashed by SIGSEGV"


async def test_a_client_that_hears_of_a_cycle_finds_its_number_on_the_board(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        events = client.events()
        for number in (1, 2):
            crash(await start(supervisor, member(f"m{number}")))
            assert (await end_of_cycle(events)).cycle == number
            assert client.status().cycle == number


async def test_T32_never_restarted_members_are_forgotten_and_their_quota_is_free(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_parallel_workers=1)
    parallel = member("parallel", flags=Flags.SHMEM_ACCESS | Flags.CLASS_PARALLEL)
    once = await start(supervisor, member("once", restart=Restart.NEVER))
    counted = await start(supervisor, parallel)
    gated = await supervisor.register(member("gated", restart=Restart.NEVER))
    events = supervisor.events()
    survivor = await start(supervisor, member("survivor"))
    await gated.wait_for_startup()
    crash(survivor)
    for handle in (once, counted, gated):
        exit = await handle
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED
        assert handle.status().reason == "worker 'survivor' crashed by SIGKILL"
    assert supervisor.status().parallel_workers == 0
    another = await supervisor.register(parallel)
    await end_of_cycle(events)
    await another.wait_for_startup()
    await survivor.wait_for_ready()
    assert {handle.name for handle in supervisor.handles()} == {"survivor", "parallel"}
    assert [once.status().incarnation, counted.status().incarnation] == [1, 1]


async def test_T32_members_that_never_started_are_forgotten_if_they_are_never_restarted(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=aiobgw.Phase.CONSISTENT_STATE)
    early = member("early", start_when=aiobgw.Phase.CONSISTENT_STATE)
    crashing = await start(supervisor, early)
    gated = await supervisor.register(member("gated"))
    forgotten = await supervisor.register(member("forgotten", restart=Restart.NEVER))
    events = supervisor.events()
    crash(crashing)
    assert await forgotten is None
    await end_of_cycle(events)
    assert gated.status().reason == "waits for phase RUNNING"
    await supervisor.advance(aiobgw.Phase.RUNNING)
    assert (await gated.wait_for_startup()).incarnation == 1


async def test_T33_handles_from_before_the_cycle_stay_valid(
    make_supervisor: MakeSupervisor,
) -> None:
    """Our difference from PostgreSQL: slots and generations stay, for every handle is ours."""
    supervisor = await make_supervisor(max_workers=2)
    handles = [await start(supervisor, member(f"m{n}")) for n in range(2)]
    places = [(handle.slot, handle.generation) for handle in handles]
    events = supervisor.events()
    crash(handles[0])
    await end_of_cycle(events)
    for handle in handles:
        status = await handle.wait_for_ready()
        assert (status.slot, status.generation) == places[handle.slot]
        assert supervisor.get(handle.token) == handle
    handles[1].terminate()
    exit = await handles[1]
    assert exit is not None
    assert exit.incarnation == 2
    assert handles[0].status().state is WorkerState.RUNNING


async def test_T34_a_member_that_crashes_in_the_cycle_begins_no_other_one(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    stubborn = await start(supervisor, member("stubborn", target=members.ignore_quit))
    first = await start(supervisor, member("first"))
    events = supervisor.events()
    crash(first)
    await first.wait_for_exit()
    assert stubborn.status().state is WorkerState.STOPPING
    crash(stubborn)
    assert (await end_of_cycle(events)).name == "first"
    for handle in (first, stubborn):
        assert (await handle.wait_for_ready()).incarnation == 2
    assert (await exit_of(stubborn)).kind is ExitKind.TERMINATED
    assert supervisor.status().cycle == 1


async def test_T34_members_that_crash_together_make_one_cycle(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    handles = [await start(supervisor, member(f"m{n}")) for n in range(6)]
    events = supervisor.events()
    for handle in handles:
        crash(handle)
    await end_of_cycle(events)
    for handle in handles:
        assert (await handle.wait_for_ready()).incarnation == 2
    assert supervisor.status().cycle == 1


async def test_T35_a_crash_during_a_stop_begins_no_cycle(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    handles = [
        await start(supervisor, member(f"m{n}", target=targets.ignore_term, stop_timeout=LONG))
        for n in range(2)
    ]
    stopping = asyncio.ensure_future(supervisor.shutdown())
    await asyncio.sleep(0)
    crash(handles[0])
    await handles[0].wait_for_shutdown()
    assert procs.is_alive(pid_of(handles[1]))  # nobody has ended it
    crash(handles[1])
    await stopping
    assert [handle.status().incarnation for handle in handles] == [1, 1]
    assert supervisor.status().cycle == 0


async def test_T36_a_member_that_ignores_sigquit_is_killed_and_returns(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobgw._policy.moves.KILL_TIMEOUT", 0.2)
    supervisor = await make_supervisor()
    stubborn = await start(supervisor, member("stubborn", target=members.ignore_quit))
    first = await start(supervisor, member("first"))
    ending = asyncio.ensure_future(stubborn.wait_for_exit())
    await asyncio.sleep(0)
    crash(first)
    exit = await ending
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGKILL)
    assert exit.reason.startswith("worker 'first' crashed by SIGKILL; killed: SIGQUIT did not")
    for handle in (first, stubborn):
        assert (await handle.wait_for_ready()).incarnation == 2
    assert supervisor.status().cycle == 1


@pytest.mark.parametrize("code", [0, 1, 3])
async def test_T37_an_exit_without_a_farewell_is_a_crash_whatever_its_code(
    make_supervisor: MakeSupervisor, code: int
) -> None:
    supervisor = await make_supervisor()
    go = Latch()
    rude = member("rude", target=members.leave_rudely, args=(code,), latches={"go": go})
    leaving = await start(supervisor, rude)
    other = await start(supervisor, member("other"))
    events = supervisor.events()
    go.set()
    told = await end_of_cycle(events)
    assert (told.name, told.exit.kind, told.exit.code) == ("rude", ExitKind.CRASHED, code)
    for handle in (leaving, other):
        assert (await handle.wait_for_ready()).incarnation == 2


@pytest.mark.parametrize(
    ("code", "kind"), [(0, ExitKind.CLEAN), (1, ExitKind.FAILED), (3, ExitKind.FAILED)]
)
async def test_an_exit_with_a_farewell_is_no_crash_whatever_its_code(
    make_supervisor: MakeSupervisor, code: int, kind: ExitKind
) -> None:
    supervisor = await make_supervisor()
    go = Latch()
    spec = member("leaving", target=members.leave, args=(code,), latches={"go": go})
    leaving = await start(supervisor, spec)
    other = await start(supervisor, member("other"))
    old = pid_of(other)
    go.set()
    assert (await leaving.wait_for_exit()).kind is kind
    assert leaving.status().state is (WorkerState.BACKOFF if code else WorkerState.STOPPED)
    assert pid_of(other) == old
    assert supervisor.status().cycle == 0


async def test_a_member_that_ends_on_request_begins_no_cycle(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    first, second, other = [await start(supervisor, member(f"m{n}")) for n in range(3)]
    old = pid_of(other)
    first.terminate()
    second.restart()
    await asyncio.gather(first.wait_for_shutdown(), second.wait_for_exit())
    assert (await second.wait_for_ready()).incarnation == 2
    assert pid_of(other) == old
    assert supervisor.status().cycle == 0


async def test_a_member_that_we_kill_leaves_its_memory_as_it_is_and_begins_a_cycle(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    killed, other = [await start(supervisor, member(f"m{n}")) for n in range(2)]
    events = supervisor.events()
    killed.kill()
    exit = await killed
    assert exit is not None
    assert exit.kind is ExitKind.TERMINATED
    assert (await end_of_cycle(events)).name == "m0"
    assert (await other.wait_for_ready()).incarnation == 2
    assert killed.status().state is WorkerState.STOPPED


async def test_T38_by_default_a_crash_concerns_its_worker_only(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    shared = {"flags": Flags.SHMEM_ACCESS, "target": members.stay, "restart_delay": 0.0}
    specs = [WorkerSpec(name=f"w{n}", **shared) for n in range(2)]  # type: ignore[arg-type]
    handles = [await start(supervisor, spec) for spec in (*specs, member("member"))]
    old = [pid_of(handle) for handle in handles]
    crash(handles[0])
    await handles[0].wait_for_exit()
    assert (await handles[0].wait_for_ready()).incarnation == 2
    assert [pid_of(handle) for handle in handles[1:]] == old[1:]
    assert supervisor.status().cycle == 0


async def test_who_is_no_member_keeps_its_pid_through_a_cycle(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    shared = WorkerSpec(name="shared", target=members.stay, flags=Flags.SHMEM_ACCESS)
    plain = WorkerSpec(name="plain", target=members.stay)
    bystanders = [await start(supervisor, spec) for spec in (shared, plain)]
    bystanders.append(await supervisor.register(WorkerSpec(name="c", command=["sleep", "60"])))
    await bystanders[2].wait_for_startup()
    old = [pid_of(handle) for handle in bystanders]
    crashing = await start(supervisor, member("crashing"))
    events = supervisor.events()
    crash(crashing)
    await end_of_cycle(events)
    await crashing.wait_for_ready()
    assert [pid_of(handle) for handle in bystanders] == old
    assert all(map(procs.is_alive, old))


async def test_T39_everything_works_again_and_again_after_a_cycle(
    make_supervisor: MakeSupervisor,
) -> None:
    resets: list[int] = []
    supervisor = await make_supervisor(on_reset=lambda: resets.append(supervisor.status().cycle))
    board = BoardReader(supervisor._core.outside.share_board())
    handles = [await start(supervisor, member(f"m{n}")) for n in range(2)]
    events = supervisor.events()
    for number in range(1, 4):
        crash(handles[number % 2])
        assert (await end_of_cycle(events)).cycle == number
        published = unpack_head(board.read(HEAD)).status.cycle
        assert [supervisor.status().cycle, published] == [number, number]
        for handle in handles:
            assert (await handle.wait_for_ready()).incarnation == 2 * number
        for handle in handles:  # an orderly restart, and nobody else's business
            ending = asyncio.ensure_future(handle.wait_for_exit())
            await asyncio.sleep(0)
            handle.restart()
            assert (await ending).kind is ExitKind.TERMINATED
            assert (await handle.wait_for_ready()).incarnation == 2 * number + 1
    board.close()
    assert resets == [0, 1, 2]


async def test_T40_without_restart_after_crash_a_crash_fails_the_supervisor(
    make_supervisor: MakeSupervisor,
) -> None:
    resets: list[int] = []
    supervisor = await make_supervisor(restart_after_crash=False, on_reset=lambda: resets.append(1))
    crashing, other = [await start(supervisor, member(f"m{n}")) for n in range(2)]
    plain = await start(supervisor, WorkerSpec(name="plain", target=members.stay))
    why = "worker 'm0' crashed by SIGKILL, and restart_after_crash is off"
    with pytest.raises(SupervisorFailed, match=why):
        async with supervisor.guard():
            crash(crashing)
            await asyncio.sleep(LONG)
    with pytest.raises(SupervisorFailed, match=why):
        await supervisor.wait_closed()
    with pytest.raises(SupervisorFailed, match=why):
        await supervisor.__aexit__(None, None, None)
    assert (await exit_of(other)).signal == signal.SIGQUIT
    assert (await exit_of(plain)).code == 1  # asked, and with a farewell
    assert [handle.status().incarnation for handle in (crashing, other)] == [1, 1]
    assert supervisor.status().cycle == 0
    assert not resets


# on_reset.


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_on_reset_runs_after_the_last_old_one_and_before_the_first_new_one(
    make_supervisor: MakeSupervisor, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "starts"
    seen: list[tuple[bool, int]] = []

    def look() -> None:
        seen.append((any(map(procs.is_alive, old)), len(path.read_text().splitlines())))

    async def look_twice() -> None:
        look()
        other = await supervisor.register(WorkerSpec(name="other", target=targets.nothing))
        await other.wait_for_shutdown()  # who is no member starts as ever
        look()

    supervisor = await make_supervisor(on_reset=look if kind == "plain" else look_twice)
    specs = [member(f"m{n}", args=(str(path),)) for n in range(4)]
    handles = [await start(supervisor, spec) for spec in specs]
    old = [pid_of(handle) for handle in handles]
    events = supervisor.events()
    crash(handles[0])
    await end_of_cycle(events)
    for handle in handles:
        await handle.wait_for_ready()
    assert seen == [(False, 4)] * (1 if kind == "plain" else 2)


async def test_workers_registered_in_a_cycle_wait_for_its_end_if_they_are_members(
    make_supervisor: MakeSupervisor,
) -> None:
    held = Held()
    supervisor = await make_supervisor(on_reset=held)
    crashing = await start(supervisor, member("crashing"))
    crash(crashing)
    await held.entered.wait()
    late = await supervisor.register(member("late"))
    once = await supervisor.register(member("once", restart=Restart.NEVER))
    other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    await other.wait_for_startup()
    for handle in (late, once):
        assert handle.status().state is WorkerState.NOT_STARTED
        assert handle.status().reason == "waits for the end of a crash cycle"
    crashing.restart()  # opens no gate
    assert crashing.status().state is WorkerState.BACKOFF
    late.terminate()
    assert await late is None
    held.go.set()
    await once.wait_for_startup()
    assert (await crashing.wait_for_ready()).incarnation == 2
    assert held.ended == "done"


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_an_on_reset_that_fails_fails_the_supervisor(
    make_supervisor: MakeSupervisor, kind: str
) -> None:
    def fail() -> None:
        raise ValueError("no memory to be had")

    async def fail_later() -> None:
        await asyncio.sleep(0)
        fail()

    supervisor = await make_supervisor(on_reset=fail if kind == "plain" else fail_later)
    crashing = await start(supervisor, member("crashing"))
    crash(crashing)
    why = r"on_reset failed: ValueError\('no memory to be had'\)"
    with pytest.raises(SupervisorFailed, match=why) as raised:
        await supervisor.wait_closed()
    assert isinstance(raised.value.__cause__, ValueError)
    assert crashing.status().incarnation == 1


async def test_an_on_reset_that_was_cancelled_by_somebody_fails_the_supervisor(
    make_supervisor: MakeSupervisor,
) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    supervisor = await make_supervisor(on_reset=give_up)
    crash(await start(supervisor, member("crashing")))
    with pytest.raises(SupervisorFailed, match="on_reset failed: CancelledError"):
        await supervisor.wait_closed()


async def test_what_breaks_in_the_middle_of_a_cycle_fails_the_supervisor(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    crashing = await start(supervisor, member("crashing"))
    _inject.arm("in_cycle:fail=12")
    crash(crashing)
    with pytest.raises(SupervisorFailed, match="Cannot allocate memory"):
        await supervisor.wait_closed()


# Stops.


@pytest.mark.parametrize("mode", ShutdownMode)
async def test_a_stop_while_members_are_ended_ends_in_a_stop(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, mode: ShutdownMode
) -> None:
    monkeypatch.setattr("aiobgw._policy.moves.KILL_TIMEOUT", 0.2)
    resets: list[int] = []
    supervisor = await make_supervisor(on_reset=lambda: resets.append(1))
    stubborn = await start(supervisor, member("stubborn", target=members.ignore_quit))
    crashing = await start(supervisor, member("crashing"))
    crash(crashing)
    await crashing.wait_for_exit()
    assert stubborn.status().state is WorkerState.STOPPING
    await supervisor.shutdown(mode)
    assert [handle.status().incarnation for handle in (stubborn, crashing)] == [1, 1]
    assert supervisor.status().cycle == 0
    assert not resets


@pytest.mark.parametrize("mode", ShutdownMode)
async def test_a_stop_cancels_an_on_reset_and_starts_nobody(
    make_supervisor: MakeSupervisor, mode: ShutdownMode
) -> None:
    held = Held()
    supervisor = await make_supervisor(on_reset=held)
    crashing = await start(supervisor, member("crashing"))
    crash(crashing)
    await held.entered.wait()
    await supervisor.shutdown(mode)
    assert held.ended == "cancelled"
    assert (crashing.status().incarnation, supervisor.status().cycle) == (1, 0)


async def test_an_on_reset_may_stop_the_supervisor(make_supervisor: MakeSupervisor) -> None:
    async def stop() -> None:
        await supervisor.shutdown()

    supervisor = await make_supervisor(on_reset=stop)
    crash(await start(supervisor, member("crashing")))
    await supervisor.wait_closed()


async def test_abandoning_in_a_cycle_cancels_its_on_reset(make_supervisor: MakeSupervisor) -> None:
    held = Held()
    supervisor = await make_supervisor(on_reset=held)
    crash(await start(supervisor, member("crashing")))
    await held.entered.wait()
    supervisor.abandon()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held.ended == "cancelled"


# Who waits.


async def test_who_waits_from_before_the_cycle_goes_on(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    crashing, other = [await start(supervisor, member(f"m{n}")) for n in range(2)]
    exits = [asyncio.ensure_future(handle.wait_for_exit()) for handle in (crashing, other)]
    over = asyncio.ensure_future(other.wait_for_shutdown())
    events = supervisor.events()
    await asyncio.sleep(0)
    crash(crashing)
    assert [(await exit).incarnation for exit in exits] == [1, 1]
    await end_of_cycle(events)
    await other.wait_for_ready()
    assert not over.done()
    other.terminate()
    exit = await over
    assert exit is not None
    assert exit.incarnation == 2


@pytest.mark.parametrize("wait", ["wait_for_startup", "wait_for_ready"])
async def test_who_waits_for_a_first_start_does_so_across_a_cycle(
    make_supervisor: MakeSupervisor, wait: str
) -> None:
    go, up = Latch(), Latch()
    supervisor = await make_supervisor(on_reset=go.set)
    slow = await supervisor.register(
        member("slow", target="tests.slow_member:run", latches={"up": up, "go": go})
    )
    waiting = asyncio.ensure_future(getattr(slow, wait)())
    crashing = await start(supervisor, member("crashing"))
    await up.wait()  # it imports its target, and has not started
    crash(crashing)
    assert (await waiting).incarnation == 2


async def test_a_launch_without_a_process_is_put_off_and_keeps_its_number(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(reaper="kernel")
    crashing = await start(supervisor, member("crashing"))
    zygote = supervisor.status().zygote_pid
    assert zygote is not None
    events = supervisor.events()
    procs.stop(zygote)
    unborn = await supervisor.register(member("unborn"))
    once = await supervisor.register(member("once", restart=Restart.NEVER))
    waiting = asyncio.ensure_future(unborn.wait_for_exit())
    assert unborn.status().state is WorkerState.STARTING
    crash(crashing)
    await end_of_cycle(events)  # it waits for nobody's fork
    assert await once is None
    os.kill(zygote, signal.SIGCONT)
    assert (await unborn.wait_for_ready()).incarnation == 1
    assert (await crashing.wait_for_ready()).incarnation == 2
    unborn.terminate()
    assert (await waiting).incarnation == 1


async def test_terminate_in_a_cycle_is_the_end(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    stubborn = await start(supervisor, member("stubborn", target=members.ignore_quit))
    crashing = await start(supervisor, member("crashing"))
    events = supervisor.events()
    crash(crashing)
    await crashing.wait_for_exit()
    stubborn.kill()
    crashing.terminate()
    for handle in (stubborn, crashing):
        exit = await handle
        assert exit is not None
        assert exit.incarnation == 1
    await end_of_cycle(events)
    assert not supervisor.handles()


@pytest.mark.parametrize("code", [0, 2])
async def test_a_member_may_end_by_its_own_quit_handler(
    make_supervisor: MakeSupervisor, code: int
) -> None:
    supervisor = await make_supervisor()
    own = await start(supervisor, member("own", target=members.end_at_quit, args=(code,)))
    crashing = await start(supervisor, member("crashing"))
    events = supervisor.events()
    crash(crashing)
    await end_of_cycle(events)
    assert (await own.wait_for_ready()).incarnation == 2
    exit = await exit_of(own)
    assert (exit.kind, exit.code) == (ExitKind.TERMINATED, code)


async def test_a_member_that_leaves_in_order_in_a_cycle_is_left_to_its_rule(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    done = await start(supervisor, member("done", target=members.leave_at_quit, args=(0,)))
    failed = await start(supervisor, member("failed", target=members.leave_at_quit, args=(1,)))
    crashing = await start(supervisor, member("crashing"))
    events = supervisor.events()
    crash(crashing)
    await end_of_cycle(events)
    exit = await done
    assert exit is not None
    assert exit.kind is ExitKind.CLEAN
    assert (await failed.wait_for_ready()).incarnation == 2
    assert (await exit_of(failed)).kind is ExitKind.FAILED


async def test_a_farewell_is_not_lost_in_what_a_member_said_before(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    up = Latch()
    chatter = await supervisor.register(
        member("chatter", target=members.chatter, args=(2000,), latches={"up": up})
    )
    await up.wait()
    procs.wait_dead({pid_of(chatter)}, 0.3)  # holds the loop, so that the channel fills
    exit = await chatter
    assert exit is not None
    assert exit.kind is ExitKind.CLEAN
    assert supervisor.status().cycle == 0


def test_a_supervisor_that_dies_in_a_cycle_leaves_nobody_behind() -> None:
    source = """
import asyncio, os, signal
import aiobgw
from aiobgw import CrashScope, Flags, WorkerSpec, _inject

async def main():
    async with aiobgw.Supervisor(name="doomed", spares=1) as supervisor:
        pids = []
        for scope in (CrashScope.ALL, CrashScope.ALL, CrashScope.WORKER):
            up = aiobgw.Latch()
            handle = await supervisor.register(WorkerSpec(
                name="w", target="tests.members:stay", latches={"up": up},
                flags=Flags.SHMEM_ACCESS, crash_scope=scope))
            await up.wait()
            pids.append(handle.status().pid)
        print(*pids, supervisor.status().zygote_pid, flush=True)
        _inject.arm("in_cycle:die")
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    host = procs.start_script(source)
    out, _ = host.communicate(timeout=60)
    assert host.returncode == 77
    pids = {int(word) for word in out.split()}
    assert len(pids) == 4
    assert not procs.wait_dead(pids)
