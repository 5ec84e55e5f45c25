"""Groups and dependencies, as a supervisor keeps them: no process, and a clock that is moved."""

from __future__ import annotations

import asyncio
import errno
from random import Random
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    After,
    CrashScope,
    Escalate,
    ExitKind,
    Flags,
    Phase,
    Readiness,
    Restart,
    ShutdownMode,
    Strategy,
    WorkerHandle,
    WorkerSpec,
    WorkerState,
)
from aiobgw._policy.happenings import Consider, GroupEnds
from aiobgw.testing import FakeLauncher, FakeProcess, ManualClock

from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

RUNNING, BACKOFF, STOPPED = WorkerState.RUNNING, WorkerState.BACKOFF, WorkerState.STOPPED
NOT_STARTED = WorkerState.NOT_STARTED


class Stage:
    """A supervisor on a fake launcher, with a group "g"."""

    def __init__(self, supervisor: aiobgw.Supervisor, launcher: FakeLauncher, clock: ManualClock):
        self.supervisor = supervisor
        self.launcher = launcher
        self.clock = clock
        self._seen = 0

    async def add(self, name: str, **fields: Any) -> WorkerHandle:
        fields.setdefault("restart_jitter", 0.0)
        fields.setdefault("stop_timeout", 0.05)  # passes when the test is over, never before
        return await self.supervisor.register(WorkerSpec(name=name, target="a:b", **fields))

    async def members(self, names: str, **fields: Any) -> list[WorkerHandle]:
        return [await self.add(name, group="g", **fields) for name in names]

    def launched(self) -> str:
        """Return the names of those launched since the last call, in order."""
        new = self.launcher.processes[self._seen :]
        self._seen = len(self.launcher.processes)
        return "".join(process.name for process in new)

    def states(self, *handles: WorkerHandle) -> list[WorkerState]:
        return [handle.status().state for handle in handles]


async def stage_of(
    make_supervisor: MakeSupervisor, strategy: Strategy = Strategy.ONE_FOR_ONE, **options: Any
) -> Stage:
    clock = ManualClock()
    launcher = FakeLauncher(**{k: options.pop(k) for k in ("start", "obey") if k in options})
    supervisor = await make_supervisor(
        launcher=launcher, clock=clock, groups={"g": strategy}, **options
    )
    return Stage(supervisor, launcher, clock)


# Strategies.


@pytest.mark.parametrize(
    ("strategy", "ended", "again"),
    [
        (Strategy.ONE_FOR_ONE, "", "b"),
        (Strategy.ONE_FOR_ALL, "dca", "abcd"),
        (Strategy.REST_FOR_ONE, "dc", "bcd"),
    ],
)
async def test_a_crash_ends_whom_the_strategy_says_and_all_start_after_its_pause(
    make_supervisor: MakeSupervisor, strategy: Strategy, ended: str, again: str
) -> None:
    stage = await stage_of(make_supervisor, strategy)
    handles = dict(zip("abcd", await stage.members("abcd", restart_delay=5), strict=True))
    assert stage.launched() == "abcd"
    events = stage.supervisor.events()
    stage.launcher["b"].crash()
    assert stage.launched() == ""
    for name in ended:
        status = handles[name].status()
        assert (status.state, status.restarts) == (BACKOFF, 0)
        assert status.exit is not None
        assert status.exit.kind is ExitKind.TERMINATED
        assert status.exit.reason == "its group 'g' restarts: worker 'b' crashed by SIGSEGV"
    stage.clock.advance(4.9)
    assert stage.launched() == ""
    stage.clock.advance(0.1)
    assert stage.launched() == again
    assert {name: handles[name].status().restarts for name in "abcd"} == dict(a=0, b=1, c=0, d=0)
    await stage.supervisor.shutdown()
    exits = [event async for event in events if isinstance(event, aiobgw.Exited)]
    assert "".join(event.status.name for event in exits) == f"b{ended}dcba"


async def test_who_is_never_restarted_ends_with_the_others_and_is_over(
    make_supervisor: MakeSupervisor,
) -> None:
    """OTP's temporary_bystander; and transient ones that have done their work."""
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL)
    (a,) = await stage.members("a", restart_delay=0)
    (bystander,) = await stage.members("b", restart=Restart.NEVER)
    (transient,) = await stage.members("t", restart=Restart.ON_FAILURE)
    (late,) = await stage.members("l", restart=Restart.NEVER, start_when=Phase.RUNNING)
    stage.launched()
    stage.launcher["l"].crash()  # a bystander's own end concerns nobody
    stage.launcher["t"].finish()
    assert stage.states(a, bystander, transient, late) == [RUNNING, RUNNING, STOPPED, STOPPED]
    stage.launcher["a"].fail()
    assert stage.launched() == "a"
    assert (await bystander) is not None
    status = bystander.status()
    assert (status.state, status.exit and status.exit.kind) == (STOPPED, ExitKind.TERMINATED)
    assert status.reason == "its group 'g' restarts: worker 'a' failed with exit code 1"


async def test_who_was_not_started_yet_is_not_restarted_but_started_in_its_turn(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL)
    await stage.members("a", ready=Readiness.NOTIFY, restart_delay=1)
    (once,) = await stage.members("o", restart=Restart.NEVER)
    assert once.status().reason == "waits for 'a' of its group 'g'"
    stage.launcher["a"].fail()
    assert once.status().state is NOT_STARTED
    stage.clock.advance(1)
    stage.launcher["a"].ready()
    assert stage.launched() == "aao"


async def test_a_member_that_crashes_while_it_is_to_end_counts_for_nothing(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL, obey=False)
    a, b, c, d = await stage.members("abcd", max_restarts=1, restart_delay=0)
    stage.launched()
    stage.launcher["b"].crash()
    assert d.status().state is WorkerState.STOPPING
    waits = "its group 'g' restarts: worker 'b' crashed by SIGSEGV; waits for the end of 'd'"
    assert c.status().state is RUNNING
    assert c.status().reason.startswith(waits)
    b.restart()
    assert b.status().state is BACKOFF, "no effect before the others have ended"
    for name in "acd":
        stage.launcher[name].crash()
    assert stage.launched() == "abcd"
    assert [handle.status().restarts for handle in (a, b, c, d)] == [0, 0, 0, 0]
    assert b.status().state is RUNNING

    # Its window has one failure; that of the others has none.
    stage.launcher["c"].crash()
    for name in "dba":
        assert stage.launcher[name].signals[0] == 15
        stage.launcher[name].fail()
    assert stage.launched() == "abcd"
    assert c.status().restarts == 1


async def test_a_member_that_is_terminated_while_its_group_restarts_is_over_and_the_rest_goes_on(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL, obey=False)
    a, b, c, d = await stage.members("abcd", restart_delay=0.04)
    stage.launched()
    stage.launcher["a"].crash()
    stage.launcher["d"].fail()
    assert stage.states(a, b, c, d) == [BACKOFF, RUNNING, WorkerState.STOPPING, BACKOFF]
    b.terminate()
    assert b.status().state is WorkerState.STOPPING, "it concerns nobody else, and waits for nobody"
    d.terminate()
    stage.launcher["c"].fail()
    stage.clock.advance(0.04)
    assert stage.launched() == "", "b has a process still"
    stage.launcher["b"].fail()
    assert stage.launched() == "ac"
    assert stage.states(b, d) == [STOPPED, STOPPED]
    a.restart()
    stage.launcher["a"].fail()
    assert stage.launched() == "a", "a restart that was asked for concerns nobody else"


async def test_the_culprits_pause_ends_with_its_end(make_supervisor: MakeSupervisor) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL)
    _, b, _ = await stage.members("abc", restart_delay=3600)
    stage.launched()
    stage.launcher["b"].crash()
    b.terminate()
    assert stage.launched() == "ac"
    stage.launcher["c"].crash()
    (late,) = await stage.members("l")
    assert late.status().reason == "waits for 'c' of its group 'g'"
    stage.clock.advance(3600)
    assert stage.launched() == "acl"


@pytest.mark.parametrize("escalate", Escalate)
async def test_a_member_that_cannot_be_kept_up_leads_to_what_it_says(
    make_supervisor: MakeSupervisor, escalate: Escalate
) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL)
    events = stage.supervisor.events()
    members = await stage.members("abc", restart_delay=0, max_restarts=1, escalate=escalate)
    alone = await stage.add("x")
    stage.launcher["b"].crash()
    assert stage.launched() == "abcxabc"
    stage.launcher["b"].crash()
    gone = members if escalate is Escalate.STOP_GROUP else members[1:2]
    if escalate is Escalate.FAIL:
        with pytest.raises(aiobgw.SupervisorFailed, match=r"worker 'b': .*max_restarts=1"):
            await stage.supervisor.wait_closed()
        await asyncio.gather(*members)
        return
    assert [handle for handle in members if handle.status().state is STOPPED] == gone
    assert alone.status().state is RUNNING
    assert stage.launched() == ""
    if escalate is Escalate.STOP_GROUP:
        reason = "its group 'g' is stopped: worker 'b': crashed exit; not restarted any more"
        assert members[0].status().reason.startswith(reason)
        await stage.add("a", group="g")
        assert stage.launched() == "a", "the group can be built anew"
    await stage.supervisor.shutdown()
    exits = [event.status.name async for event in events if isinstance(event, aiobgw.Exited)]
    ends = {Escalate.STOP_GROUP: "bcabcaax", Escalate.IGNORE: "bcabcax"}[escalate]
    assert sorted("".join(exits)) == sorted(ends)
    assert "".join(exits).startswith("bcab")


async def test_an_essential_member_that_its_group_takes_down_fails_the_supervisor(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor)
    await stage.members("a", essential=True)
    await stage.members("b", max_restarts=0, escalate=Escalate.STOP_GROUP)
    stage.launcher["b"].crash()
    with pytest.raises(aiobgw.SupervisorFailed, match="'a': it is essential, and has ended"):
        await stage.supervisor.wait_closed()


async def test_a_start_that_always_fails_hangs_nobody(make_supervisor: MakeSupervisor) -> None:
    """OTP's hanging_restart_loop: status, requests and a stop are answered meanwhile."""
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL, start=False)
    a, b, c = await stage.members("abc", restart_delay=0, max_restarts=None)
    for _ in range(200):
        stage.launcher["a"].start()
        stage.launcher["b"].fail("ImportError")
    assert stage.launched()[:6] == "ababab"
    assert c.status().state is NOT_STARTED
    assert b.status().restarts >= 199
    assert a.status().restarts == 0
    b.restart()
    c.terminate()
    assert (await c) is None
    async with asyncio.timeout(20):
        await stage.supervisor.shutdown()
    assert stage.launcher.running == []


async def test_a_launch_that_fails_restarts_nobody(make_supervisor: MakeSupervisor) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL)
    (a,) = await stage.members("a")
    stage.launcher.refuse("no memory", times=3)
    (b,) = await stage.members("b")
    for _ in range(3):
        assert stage.states(a, b) == [RUNNING, NOT_STARTED]
        stage.clock.advance_to_next()
    assert stage.states(a, b) == [RUNNING, RUNNING]


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_a_crash_cycle_and_a_group_restart_go_through_each_other(
    make_supervisor: MakeSupervisor, strategy: Strategy
) -> None:
    """A culprit that shares memory begins both; a member of both is ended and started once."""
    reset = asyncio.Event()
    stage = await stage_of(make_supervisor, strategy, on_reset=reset.wait, obey=False)
    shared: dict[str, Any] = {"crash_scope": CrashScope.ALL, "flags": Flags.SHMEM_ACCESS}
    (a,) = await stage.members("a", restart_delay=0, **shared)
    (b,) = await stage.members("b", restart_delay=0)
    (c,) = await stage.members("c", restart_delay=0, **shared)
    stage.launched()
    stage.launcher["a"].crash()
    assert c.status().state is BACKOFF, "SIGQUIT needs no turn"
    assert b.status().state is WorkerState.STOPPING
    await asyncio.sleep(0)
    reset.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert stage.launched() == ""
    stage.launcher["b"].fail()
    assert stage.launched() == "abc"

    reset.clear()
    stage.launcher["b"].crash()  # and in its restart, one that shares memory crashes
    stage.launcher["c"].crash()
    for _ in range(5):
        await asyncio.sleep(0)
    assert stage.launched() == ""
    assert stage.states(a, b, c) == [BACKOFF, BACKOFF, BACKOFF]
    reset.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert stage.supervisor.status().cycle == 2
    assert stage.launched() == "abc"
    assert [handle.status().restarts for handle in (a, b, c)] == [1, 1, 0]


# Dependencies.


@pytest.mark.parametrize("after", After)
async def test_a_worker_starts_when_its_dependency_has_come_that_far(
    make_supervisor: MakeSupervisor, after: After
) -> None:
    stage = await stage_of(make_supervisor, start=False)
    web = await stage.add("w", after={"r": after})
    assert web.status().reason == "waits for 'r', which is not registered"
    redis = await stage.add("r", ready=Readiness.NOTIFY)
    words = {After.STARTED: "start", After.READY: "be ready", After.COMPLETED: "complete"}
    assert web.status().reason == f"waits for 'r' to {words[after]}"
    steps = {
        After.STARTED: FakeProcess.start,
        After.READY: FakeProcess.ready,
        After.COMPLETED: FakeProcess.finish,
    }
    for step, act in steps.items():
        assert stage.launched() == {After.STARTED: "r"}.get(step, "")
        act(stage.launcher["r"])
        if step is after:
            break
    assert stage.launched() == "w"
    stage.launcher["w"].start()
    redis.kill()
    assert web.status().state is RUNNING, "its end stops nobody"

    stage.launcher["w"].fail()
    stage.clock.advance_to_next()
    if after is After.COMPLETED:
        assert stage.launched() == "w"
        return
    assert web.status().state is STOPPED
    assert web.status().reason.startswith("depends on 'r', which is over: terminated by SIGKILL")
    assert stage.launched() == ""


async def test_a_restart_waits_for_a_dependency_too_and_for_the_newest_of_its_name(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor)
    redis = await stage.add("r", restart_delay=10)
    web = await stage.add("w", after=["r"], restart_delay=1, restart=Restart.ALWAYS)
    assert stage.launched() == "rw"
    stage.launcher["r"].crash()
    stage.launcher["w"].crash()
    stage.clock.advance(1)
    assert (web.status().reason, stage.launched()) == ("waits for 'r' to be ready", "")
    newer = await stage.add("r", ready=Readiness.NOTIFY)
    stage.clock.advance(9)
    assert stage.launched() == "rr", "the older one is not meant any more"
    newer.terminate()
    assert stage.launched() == "w", "now it is again"

    redis.terminate()
    stage.launcher["w"].finish()
    third = await stage.add("r", ready=Readiness.NOTIFY)
    stage.clock.advance_to_next()
    assert web.status().reason == "waits for 'r' to be ready", "it came back in time"
    third.terminate()
    assert web.status().state is STOPPED
    await third


async def test_a_dependency_that_fails_ends_who_waits_for_its_completion(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor)
    job = await stage.add("migrate", restart=Restart.NEVER)
    web = await stage.add("web", after={"other": After.READY, "migrate": After.COMPLETED})
    front = await stage.add("front", after=["web"])
    waiting = asyncio.ensure_future(web.wait_for_startup())
    await asyncio.sleep(0)
    stage.launcher["migrate"].fail("no such table", code=3)
    with pytest.raises(aiobgw.NeverStarted, match=r"'migrate', which did not complete: failed"):
        await waiting
    assert front.status().reason.startswith("depends on 'web', which is over: depends on 'migrate'")
    assert (await asyncio.gather(web, front)) == [None, None]
    with pytest.raises(aiobgw.WorkerFailed):
        (await job).check()  # type: ignore[union-attr]
    again = await stage.add("late", after={"migrate": After.COMPLETED})
    assert again.status().state is STOPPED, "how it ended is remembered"
    waits = await stage.add("patient", after={"nobody": After.READY})
    await stage.supervisor.shutdown()
    assert await waits is None


async def test_how_a_dependency_ended_is_remembered_for_as_long_as_somebody_waits(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor)
    web = await stage.add("w", after={"j": After.COMPLETED, "k": After.COMPLETED})
    await stage.add("j")
    stage.launcher["j"].finish()
    for number in range(300):
        await stage.add(f"n{number}")
        stage.launcher[f"n{number}"].finish()
    late = await stage.add("late", after={"j": After.COMPLETED})
    assert late.status().state is RUNNING, "known because of another one"
    await stage.add("k")
    stage.launcher["k"].finish()
    assert web.status().state is RUNNING
    web.terminate()
    late.terminate()
    for number in range(300):
        await stage.add(f"n{number}")
        stage.launcher[f"n{number}"].finish()
    forgotten = await stage.add("late", after={"j": After.COMPLETED})
    assert forgotten.status().reason == "waits for 'j', which is not registered"


@pytest.mark.parametrize("depends", ["before", "afterwards"])
async def test_the_newest_of_a_name_counts_though_an_older_one_ends_later(
    make_supervisor: MakeSupervisor, depends: str
) -> None:
    stage = await stage_of(make_supervisor)
    await stage.add("k", restart=Restart.NEVER, extra=b"older")
    older = stage.launcher["k"]
    await stage.add("k", restart=Restart.NEVER, extra=b"newer")
    fields = {"after": {"k": After.COMPLETED, "l": After.READY}}
    if depends == "before":
        await stage.add("w", **fields)
    stage.launcher["k"].finish()
    older.fail()
    if depends == "afterwards":
        await stage.add("w", **fields)
    waits = await stage.add("x", **fields)
    stage.launched()
    await stage.add("l", restart=Restart.NEVER)
    assert stage.launched() == "lwx"
    stage.launcher["x"].fail()
    await stage.add("k", restart=Restart.NEVER)
    stage.launcher["k"].fail()
    stage.clock.advance_to_next()
    assert waits.status().reason.startswith("depends on 'k', which did not complete: failed")


async def test_circles_are_refused_whoever_registers(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    stage = await stage_of(make_supervisor, runtime_dir=place)
    await stage.add("a", after=["b"])
    await stage.add("b", after={"c": After.COMPLETED})
    await stage.add("m", group="g", after=["n"])
    with pytest.raises(aiobgw.InvalidSpec, match="c -> a -> b -> c"):
        await stage.add("c", after=["x", "a"])
    with pytest.raises(aiobgw.InvalidSpec, match="n -> m -> n") as caught:
        await stage.add("n", group="g")
    assert "members of a group also wait" in caught.value.__notes__[0]
    async with aiobgw.attach(place) as client:
        with pytest.raises(aiobgw.InvalidSpec, match="c -> b -> c"):
            await client.register(WorkerSpec(name="c", target="a:b", after=["b"]))
        await client.register(WorkerSpec(name="c", target="a:b", after=["x"]))
    await stage.add("n")
    assert stage.launched() == "nm"
    assert len(stage.supervisor.handles()) == 5

    static = aiobgw.Supervisor(name="static")
    static.add(WorkerSpec(name="a", target="a:b", after=["b"]))
    with pytest.raises(aiobgw.InvalidSpec, match="b -> a -> b"):
        static.add(WorkerSpec(name="b", target="a:b", after=["a"]))


# Stops.


async def test_a_fast_stop_ends_dependents_first_and_everybody_else_at_once(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor, obey=False)
    await stage.add("c", restart=Restart.NEVER)
    stage.launcher["c"].finish()
    await stage.add("p", after={"c": After.COMPLETED})
    completed = await stage.add("c")
    job = await stage.add("j", restart=Restart.NEVER)
    redis = await stage.add("r")
    (a, b) = await stage.members("ab", after=["r"])
    done = await stage.add("d", after={"j": After.STARTED})
    waits = await stage.add("w", after=["nobody"])
    alone = await stage.add("x")
    stop = asyncio.ensure_future(stage.supervisor.shutdown())
    await asyncio.sleep(0)
    ending = WorkerState.STOPPING
    assert stage.states(job, redis, a, b) == [RUNNING, RUNNING, RUNNING, ending]
    assert stage.states(done, waits, alone) == [ending, STOPPED, ending]
    assert completed.status().state is ending, "who relied on its completion does so no more"
    reasons = [handle.status().reason for handle in (redis, a, job)]
    assert [reason.partition("; ")[2] for reason in reasons] == [
        "waits for the end of 'a', which depends on it",
        "waits for the end of 'b', which is after it in group 'g'",
        "waits for the end of 'd', which depends on it",
    ]
    stage.launcher["j"].crash()  # out of turn, by itself
    assert job.status().reason == "the supervisor is stopping"
    stage.launcher["b"].fail()
    assert stage.states(redis, a, b) == [RUNNING, ending, STOPPED]
    a.kill()
    assert stage.states(redis, a) == [ending, STOPPED]
    redis.terminate()
    for name in "rdxpc":
        stage.launcher[name].fail()
    await stop
    assert stage.launched() == "cpcjrabdx"


async def test_one_that_is_terminated_waits_for_no_dependent(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor)
    a, b = await stage.members("ab")
    redis = await stage.add("r")
    web = await stage.add("w", after=["r"])
    a.terminate()
    redis.terminate()
    assert stage.states(a, b, redis, web) == [STOPPED, RUNNING, STOPPED, RUNNING]


async def test_smart_waits_for_members_that_were_to_end_and_immediate_for_no_order(
    make_supervisor: MakeSupervisor,
) -> None:
    stage = await stage_of(make_supervisor, Strategy.ONE_FOR_ALL, obey=False)
    a, b, c = await stage.members("abc")
    stage.launcher["a"].crash()
    assert stage.states(b, c) == [RUNNING, WorkerState.STOPPING]
    stop = asyncio.ensure_future(stage.supervisor.shutdown(ShutdownMode.SMART))
    await asyncio.sleep(0)
    stage.launcher["c"].fail()
    assert stage.states(a, b, c) == [STOPPED, RUNNING, STOPPED]
    assert b.status().reason == ""
    hasten = asyncio.ensure_future(stage.supervisor.shutdown(ShutdownMode.IMMEDIATE))
    await asyncio.gather(stop, hasten)
    assert b.status().state is STOPPED


# Everything at once.


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})])
@pytest.mark.parametrize("first", range(0, 120, 30))
async def test_nobody_who_could_start_or_end_is_overlooked(
    make_supervisor: MakeSupervisor, first: int
) -> None:
    """After every step a look at everybody changes nothing: who waited was told."""
    for seed in range(first, first + 30):
        history = History(Random(seed))
        await history.open(make_supervisor)
        try:
            for _ in range(60):
                await history.step()
                await history.check()
            async with asyncio.timeout(30):
                await history.stage.supervisor.shutdown()
            assert history.stage.launcher.running == []
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


class History:
    """A seeded history of workers that have groups, and depend on each other."""

    def __init__(self, random: Random) -> None:
        self.random = random

    async def open(self, make_supervisor: MakeSupervisor) -> None:
        choose = self.random.choice
        self.stage = await stage_of(
            make_supervisor, choose(list(Strategy)), start=choose([True, False])
        )

    async def step(self) -> None:
        launcher = self.stage.launcher
        match self.random.randrange(10):
            case 0 | 1:
                await self.register()
            case 2 | 3 | 4 | 5 | 6 if launcher.running:
                self.act(self.random.choice(launcher.running))
            case 7 if self.stage.clock.next_at is not None:
                self.stage.clock.advance_to_next()
            case 8:
                launcher.refuse("no memory")
            case 9 if handles := self.stage.supervisor.handles():
                handle = self.random.choice(handles)
                self.random.choice([handle.terminate, handle.kill, handle.restart])()

    async def register(self) -> None:
        random = self.random
        fields: dict[str, Any] = {
            "restart": random.choice(list(Restart)),
            "restart_delay": random.choice([0, 1]),
            "stop_timeout": 0.01,
            "max_restarts": random.choice([1, None]),
            "escalate": random.choice([Escalate.IGNORE, Escalate.STOP_GROUP]),
            "ready": random.choice([Readiness.NONE, Readiness.NOTIFY]),
            "group": random.choice([None, "g", "g", "other"]),
            "after": {name: random.choice(list(After)) for name in random.sample("abcdef", 2)}
            if random.random() < 0.5
            else {},
        }
        try:
            await self.stage.add(random.choice("abcdef"), **fields)
        except aiobgw.InvalidSpec:
            pass  # itself, or a circle

    def act(self, process: FakeProcess) -> None:
        if self.random.random() < 0.1:
            process.ignores.add(15)
        acts = [process.start, process.ready, process.ready, process.finish, process.fail]
        self.random.choice([*acts, process.crash])()

    async def check(self) -> None:
        supervisor = self.stage.supervisor
        before = [handle.status() for handle in supervisor.handles()]
        await supervisor.advance(Phase.RUNNING)  # has everybody looked at again
        assert [handle.status() for handle in supervisor.handles()] == before


async def test_a_launch_that_was_put_off_and_then_taken_back_is_not_made(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await stage_of(make_supervisor)
    core = stage.supervisor._core
    assert core.loop is not None

    def fail(order: object, owner: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is left")

    monkeypatch.setattr(stage.launcher, "launch", fail)
    (handle,) = await stage.members("a")
    worker = core.registry.newest("a")
    assert worker is not None and handle.status().state is WorkerState.STARTING
    core.loop.post(worker, GroupEnds("it is taken back", for_good=False))
    monkeypatch.undo()
    while core.loop._left:  # noqa: ASYNC110 - what is put off tells nobody
        await asyncio.sleep(0.01)
    assert (stage.launched(), handle.status().state) == ("", NOT_STARTED)
    core.loop.post(worker, Consider())
    assert (stage.launched(), handle.status().state) == ("a", RUNNING)
