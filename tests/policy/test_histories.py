"""Thousands of seeded histories of a supervisor without one process, checked after every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from signal import SIGKILL, SIGQUIT, SIGTERM, SIGUSR1

import pytest

from aiobgw._policy.actions import (
    Action,
    BeginCycle,
    Drop,
    FailSupervisor,
    GiveUp,
    Launch,
    RecordUnknown,
    Retire,
    Signal,
    StopGroup,
    Withdraw,
)
from aiobgw._policy.deadlines import Deadlines
from aiobgw._policy.happenings import (
    Beat,
    Consider,
    CycleBegan,
    DeadlinePassed,
    Extend,
    Happening,
    HasExited,
    HasStarted,
    Hello,
    KillAsked,
    LaunchFailed,
    LaunchLost,
    OverLimit,
    RestartAsked,
    SaidReady,
    SaidReloading,
    SaidStopping,
    SignalAsked,
    StopBegan,
    TerminateAsked,
    Withdrawn,
)
from aiobgw._policy.life import Life, Rule, Situation
from aiobgw._policy.phases import gate_open, stricter
from aiobgw._policy.plan import plan
from aiobgw.spec import Escalate, Phase, Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState

CHUNKS, CHUNK = 40, 75
STEPS = 60
SLOTS = 4

STOPPED = WorkerState.STOPPED
WAITING = (WorkerState.NOT_STARTED, WorkerState.BACKOFF)
UP = (WorkerState.STARTING, WorkerState.RUNNING)


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


@dataclass
class Attempt:
    """A launch on its way, and then its process, as the fake launcher sees it."""

    known: bool = False  # somebody has the order: it cannot be withdrawn any more
    alive: bool = False  # it said hello
    started: bool = False
    doomed: bool = False  # it got a signal that it will end by
    abrupt: bool = False  # and that without a farewell
    obeys: bool = True
    can_die: bool = True


@dataclass
class Tenant:
    """A worker in a slot, and what was done to it, written down independently of its Life."""

    slot: int
    generation: int
    life: Life
    attempt: Attempt | None = None
    final: bool = False  # its end for good was asked for
    forgotten: bool = False  # never restarted, and there when a crash cycle began
    given_up: bool = False
    freed: int = 0
    launches: int = 0
    waiter_ended: bool = False


@dataclass
class History:
    """A supervisor that decides with the real rules and acts upon nothing."""

    random: Random
    now: float = 0.0
    situation: Situation = field(default_factory=Situation)
    tenants: dict[int, Tenant] = field(default_factory=dict)
    everybody: list[Tenant] = field(default_factory=list)
    free: list[int] = field(default_factory=lambda: list(range(SLOTS)))
    generations: list[int] = field(default_factory=lambda: [0] * SLOTS)
    deadlines: Deadlines = field(default_factory=Deadlines)
    requests: deque[tuple[Tenant, Happening]] = field(default_factory=deque)
    cycles: int = 0
    failures: int = 0
    log: deque[str] = field(default_factory=lambda: deque(maxlen=25))

    # The supervisor: as _supervisor.loop does it.

    def decide(self, tenant: Tenant, happening: Happening) -> None:
        pending = [happening]
        while pending:
            happening = pending.pop(0)
            before = tenant.life
            tenant.life, actions = plan(before, happening, self.situation, self.now)
            self.log.append(
                f"{self.now:8.2f} slot {tenant.slot} gen {tenant.generation} {happening}:"
                f" {before.state.name} -> {tenant.life.state.name} {actions}"
            )
            assert tenant.life.incarnation >= before.incarnation, "an incarnation came back"
            assert tenant.life.restarts >= before.restarts, "restarts were forgotten"
            for action in actions:
                pending += self.perform(tenant, action)
        self.deadlines.set(tenant.slot, tenant.life.wakes_at)
        tenant.waiter_ended = tenant.life.state is STOPPED

    def perform(self, tenant: Tenant, action: Action) -> list[Happening]:
        others = isinstance(action, (StopGroup, FailSupervisor))
        assert not tenant.freed or others, f"{action} for a slot that was freed"
        match action:
            case Launch():
                self.launch(tenant)
            case Withdraw():
                if tenant.attempt is not None and not tenant.attempt.known:
                    tenant.attempt = None
                    return [Withdrawn()]
            case Drop():
                assert tenant.attempt is None or not tenant.attempt.alive, "a process was dropped"
                tenant.attempt = None
            case Signal(signum, group):
                self.signal(tenant, signum, group)
            case BeginCycle():
                self.begin_cycle(tenant)
            case StopGroup():
                self.stop_group(tenant)
            case FailSupervisor():
                self.fail()
            case RecordUnknown():
                left = tenant.attempt is None or tenant.given_up
                assert left, "an unknown exit of what is still there"
            case GiveUp():
                tenant.given_up = True
            case Retire():
                self.retire(tenant)
        return []

    def launch(self, tenant: Tenant) -> None:
        assert not tenant.final, "a launch after terminate"
        assert self.situation.stop is None, "a launch after a stop began"
        assert tenant.attempt is None, "two launches at once"
        assert not tenant.forgotten, "a launch of who was forgotten"
        assert not (self.situation.cycle and tenant.life.rule.member), "a launch in a cycle"
        tenant.launches += 1
        tenant.attempt = Attempt(
            obeys=self.random.random() < 0.7, can_die=self.random.random() < 0.97
        )

    def signal(self, tenant: Tenant, signum: int, group: bool) -> None:
        attempt = tenant.attempt
        assert attempt is not None and attempt.alive, "a signal for nobody"
        assert group == (signum == SIGKILL), "only SIGKILL is for the whole group"
        if signum in (SIGKILL, SIGQUIT):
            attempt.abrupt = True
        if signum == SIGKILL:
            attempt.doomed = attempt.can_die
        elif signum in (SIGTERM, SIGQUIT):
            attempt.doomed = attempt.doomed or (attempt.obeys and attempt.can_die)

    def retire(self, tenant: Tenant) -> None:
        attempt = tenant.attempt
        leaves_a_process = attempt is not None and attempt.alive
        assert not leaves_a_process or tenant.given_up, "a slot was freed under a process"
        tenant.freed += 1
        del self.tenants[tenant.slot]
        self.free.append(tenant.slot)

    def stop_group(self, tenant: Tenant) -> None:
        assert tenant.freed, "it ends its group first"
        for other in self.tenants.values():
            if other.life.rule.group == tenant.life.rule.group:
                self.requests.append((other, TerminateAsked()))

    def fail(self) -> None:
        assert self.situation.stop is None, "a failure in a stop"
        self.failures += 1
        self.situation = replace(self.situation, stop=ShutdownMode.FAST)
        self.requests.extend((tenant, StopBegan()) for tenant in self.tenants.values())

    # The crash cycle: as _supervisor.cycle does it.

    def members(self) -> list[Tenant]:
        return [tenant for tenant in self.tenants.values() if tenant.life.rule.member]

    def begin_cycle(self, crashed: Tenant) -> None:
        assert crashed.life.rule.member, "a cycle for who is no member"
        assert not self.situation.cycle, "a cycle within a cycle"
        assert self.situation.stop is None, "a cycle in a stop"
        self.situation = replace(self.situation, cycle=True)
        for tenant in self.members():
            tenant.forgotten = tenant.life.rule.restart is Restart.NEVER
        self.requests.extend((t, CycleBegan("one crashed")) for t in self.tenants.values())

    def take_requests(self) -> None:
        while self.requests:
            tenant, happening = self.requests.popleft()
            tenant.final = tenant.final or isinstance(happening, TerminateAsked)
            self.decide(tenant, happening)

    def end_cycle(self) -> None:
        """End the cycle if its members have ended."""
        if not self.situation.cycle or self.situation.stop is not None:
            return
        if any(tenant.life.state not in WAITING for tenant in self.members()):
            return
        assert not any(t.attempt is not None for t in self.members()), "a reset under a process"
        assert not any(t.forgotten for t in self.members()), "somebody was not forgotten"
        self.cycles += 1
        self.situation = replace(self.situation, cycle=False)
        for tenant in list(self.tenants.values()):
            self.decide(tenant, Consider())
        for tenant in self.members():
            waits = tenant.life.state in WAITING
            assert not waits or not gate_open(tenant.life, self.situation), "left behind"

    # What may happen.

    def step(self) -> None:
        """Let one thing happen, or one after the other at the same moment."""
        choices: list[tuple[int, Callable[[], None]]] = [
            (3, self.register),
            (9, self.process),
            (4, self.request),
            (4, self.pass_time),
            (1, self.change_phase),
        ]
        (act,) = self.random.choices(
            [act for _, act in choices], weights=[weight for weight, _ in choices]
        )
        act()
        while self.requests and self.random.random() < 0.5:
            self.process()  # what was found in the same turn comes before the requests
        self.take_requests()
        if self.random.random() < 0.5:
            self.end_cycle()
        if self.random.random() < 0.006:
            self.stop(self.random.choice(list(ShutdownMode)))

    def register(self) -> None:
        if not self.free or self.situation.stop is not None:
            return
        slot = self.free.pop(self.random.randrange(len(self.free)))
        self.generations[slot] += 1
        rule = Rule(
            restart=self.random.choice(list(Restart)),
            restart_delay=self.random.choice([0.0, 1.0, 30.0]),
            restart_reset=self.random.choice([None, 0.0, 3.0]),
            max_restarts=self.random.choice([None, 0, 1, 5]),
            max_seconds=self.random.choice([1.0, 60.0]),
            escalate=self.random.choice(list(Escalate)),
            essential=self.random.random() < 0.05,
            needs_ready=self.random.random() < 0.4,
            start_timeout=self.random.choice([None, 1.0, 10.0]),
            group=self.random.choice([None, "g"]),
            stop_timeout=self.random.choice([0.0, 2.0, 20.0]),
            start_when=self.random.choice([Phase.RUNNING, *Phase]),
            member=self.random.random() < 0.6,
        )
        tenant = Tenant(slot, self.generations[slot], Life(rule))
        self.tenants[slot] = tenant
        self.everybody.append(tenant)
        self.decide(tenant, Consider())

    def anybody(self) -> Tenant | None:
        return self.random.choice(list(self.tenants.values())) if self.tenants else None

    def request(self) -> None:
        tenant = self.anybody()
        if tenant is None:
            return
        happening = self.random.choice(
            [TerminateAsked(), KillAsked(), RestartAsked(), RestartAsked(), SignalAsked(SIGUSR1)]
        )
        tenant.final = tenant.final or isinstance(happening, (TerminateAsked, KillAsked))
        self.decide(tenant, happening)

    def process(self) -> None:
        """Have the launcher, or the process, of somebody do its next thing."""
        tenant = self.anybody()
        attempt = tenant.attempt if tenant is not None else None
        if tenant is None or attempt is None:
            return
        if not attempt.known:
            attempt.known = True
        elif not attempt.alive:
            self.be_born(tenant, attempt)
        elif attempt.doomed:
            self.exit(tenant, ExitKind.TERMINATED, abrupt=attempt.abrupt)
        elif self.random.random() < 0.3:
            self.decide(tenant, self.random.choice(self.sayings()))
        elif not attempt.started:
            self.come_up(tenant, attempt)
        elif attempt.can_die and self.random.random() < 0.5:
            kind = self.random.choice(list(ExitKind))
            self.exit(tenant, kind, abrupt=kind in (ExitKind.CRASHED, ExitKind.UNKNOWN))

    def sayings(self) -> list[Happening]:
        """What a process says of itself, or is said of it."""
        longer = Extend(self.random.choice([0.0, 3.0]))
        talk = [SaidReady(), SaidReady(), SaidReloading(), SaidStopping(), Beat(), longer]
        return [*talk, OverLimit("uses too much")]

    def be_born(self, tenant: Tenant, attempt: Attempt) -> None:
        chance = self.random.random()
        if chance < 0.15:
            tenant.attempt = None
            self.decide(tenant, LaunchLost("nobody has it", self.random.random()))
        elif chance < 0.25:
            tenant.attempt = None
            self.decide(tenant, LaunchFailed("no memory"))
        elif chance < 0.9:
            attempt.alive = True
            self.decide(tenant, Hello())

    def come_up(self, tenant: Tenant, attempt: Attempt) -> None:
        chance = self.random.random()
        if chance < 0.1 and attempt.can_die:
            tenant.attempt = None
            self.decide(tenant, LaunchLost("a spare died with its order unread"))
        elif chance < 0.2 and attempt.can_die:
            self.exit(tenant, ExitKind.FAILED)
        else:
            attempt.started = True
            self.decide(tenant, HasStarted(self.random.random()))

    def exit(self, tenant: Tenant, kind: ExitKind, *, abrupt: bool = False) -> None:
        tenant.attempt = None
        if kind is ExitKind.TERMINATED and tenant.life.trouble:
            kind = ExitKind.FAILED
        self.decide(tenant, HasExited(kind, abrupt, self.random.random()))

    def pass_time(self) -> None:
        first = self.deadlines.first()
        if first is not None and self.random.random() < 0.7:
            self.now = max(self.now, first)
        else:
            self.now += self.random.random()
        self.handle_deadlines()

    def handle_deadlines(self) -> None:
        for _ in range(SLOTS * 8):
            slot = self.deadlines.pop_due(self.now)
            if slot is None:
                return
            self.decide(self.tenants[slot], DeadlinePassed())
        pytest.fail("deadlines lead to deadlines without end")

    def change_phase(self) -> None:
        self.situation = replace(self.situation, phase=self.random.choice(list(Phase)))
        for tenant in list(self.tenants.values()):
            self.decide(tenant, Consider())

    def stop(self, mode: ShutdownMode) -> None:
        holds = stricter(self.situation.stop, mode)
        if holds is self.situation.stop:
            return
        self.situation = replace(self.situation, stop=holds)
        for tenant in list(self.tenants.values()):
            self.decide(tenant, StopBegan())

    # What must always be so.

    def check(self) -> None:
        self.handle_deadlines()  # as the supervisor does at the end of each turn
        first = self.deadlines.first()
        assert first is None or first > self.now, "a deadline points to the past"
        waiting = [t for t in self.tenants.values() if t.life.wakes_at is not None]
        assert len(self.deadlines) == len(waiting), "a deadline of nobody"
        for slot, tenant in self.tenants.items():
            assert (tenant.slot, tenant.generation) == (slot, self.generations[slot])
            self.check_life(tenant)
        assert sorted([*self.tenants, *self.free]) == list(range(SLOTS)), "slots leak"

    def check_life(self, tenant: Tenant) -> None:
        life, attempt = tenant.life, tenant.attempt
        assert life.state is not STOPPED, "STOPPED, and its slot is not free"
        assert (life.due is None) == (life.deadline is None), "due, but when?"
        assert life.has_process == (attempt is not None and attempt.alive), "who is alive?"
        assert life.incarnation <= tenant.launches
        assert life.restarts <= life.incarnation
        self.check_watches(life)
        most = life.rule.max_restarts
        assert not life.recent if most is None else len(life.recent) <= most, "too many restarts"
        if life.state in WAITING:
            assert attempt is None, "it waits, and something is on its way"
            assert life.deadline is not None or not gate_open(life, self.situation), "forgotten"
        else:
            assert attempt is not None, "it waits for the outcome of nothing"
        if self.situation.stop is not None:
            assert life.state not in WAITING, "a stop retires who never started"
        if life.state is WorkerState.STOPPING:
            assert life.deadline is not None or tenant.given_up, "its end has no bound"

    def check_watches(self, life: Life) -> None:
        """What is noted of an incarnation ends with it."""
        up = life.has_process and life.state in UP
        for moment in (life.ready_by, life.watch_at, life.old_at):
            assert moment is None or up, "a deadline outlives its incarnation"
        assert life.ready_by is None or not life.ready, "it is ready, and shall become so"
        assert not life.ready or life.has_process, "ready, and nobody there"
        assert life.healthy_since is None or life.has_process, "healthy, and nobody there"

    # The end.

    def settle(self) -> None:
        """Let processes end that will, then time pass, until nobody is left or nothing moves."""
        for _ in range(100):
            for tenant in list(self.tenants.values()):
                if tenant.attempt is not None and tenant.attempt.doomed:
                    self.exit(tenant, ExitKind.TERMINATED, abrupt=tenant.attempt.abrupt)
            first = self.deadlines.first()
            if first is None:
                return
            self.now = max(self.now, first)
            self.handle_deadlines()
            self.check()
        pytest.fail("the end has no end")

    def settle_cycle(self) -> None:
        """Let members end that will, and time pass: that is all that a cycle needs."""
        for _ in range(100):
            for tenant in self.members():
                if tenant.attempt is not None and tenant.attempt.doomed:
                    self.exit(tenant, ExitKind.TERMINATED, abrupt=tenant.attempt.abrupt)
            self.take_requests()
            self.end_cycle()
            stuck = any(t.given_up for t in self.members())
            if not self.situation.cycle or stuck or self.situation.stop is not None:
                return
            first = self.deadlines.first()
            assert first is not None, "a cycle that nothing will end"
            self.now = max(self.now, first)
            self.check()
        pytest.fail("a cycle without end")

    def check_over(self) -> None:
        assert not self.tenants, "left after a stop"
        assert sorted(self.free) == list(range(SLOTS))
        assert self.deadlines.first() is None
        for tenant in self.everybody:
            assert tenant.life.state is STOPPED
            assert tenant.life.wakes_at is None, "over, and still due"
            assert tenant.freed == 1, "a slot is freed once"
            assert tenant.waiter_ended, "somebody still waits"


def play(seed: int) -> History:
    history = History(Random(seed))
    try:
        for _ in range(STEPS):
            history.step()
            history.check()

        if history.situation.stop is None and seed % 2:
            history.settle_cycle()
            history.check()
        history.stop(ShutdownMode.FAST)
        history.settle()
        history.check_over()

        history.stop(ShutdownMode.IMMEDIATE)
        history.settle()
        history.check_over()
    except BaseException as error:
        error.add_note("\n".join((f"seed {seed}; the last steps were:", *history.log)))
        raise
    return history


@pytest.mark.parametrize("chunk", range(CHUNKS), ids=lambda chunk: f"seeds from {chunk * CHUNK}")
def test_every_history_keeps_the_invariants_and_comes_to_its_end(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed)


def test_the_histories_see_everything_that_can_happen() -> None:
    """Guard the generator: histories in which nothing happens would prove nothing."""
    played = [play(seed) for seed in range(300)]
    tenants = [tenant for history in played for tenant in history.everybody]

    assert len(tenants) > 1_000
    assert max(history.generations[0] for history in played) > 3, "slots are used again"
    assert max(tenant.life.incarnation for tenant in tenants) > 3
    assert max(tenant.life.restarts for tenant in tenants) > 1
    assert any(tenant.given_up for tenant in tenants), "some cannot be killed"
    assert max(history.cycles for history in played) > 2
    assert sum(tenant.forgotten for tenant in tenants) > 50
    survivors = [t for t in tenants if not t.life.rule.member and t.life.incarnation == 1]
    assert survivors, "cycles are not everybody's business"
    assert sum(history.failures for history in played) > 15
    reasons = " ".join(tenant.life.reason for tenant in tenants)
    for word in (
        "terminated before it started",
        "killed before it started",
        "stop_timeout",
        "never came up",
        "could not be launched",
        "the supervisor is stopping",
        "clean exit",
        "one crashed",
        "not restarted any more",
        "not ready within start_timeout",
        "not started within start_timeout",
        "uses too much",
        "SIGKILL does not end it",
    ):
        assert word in reasons, f"no history in which: {word}"


def test_a_seed_tells_the_same_history_again() -> None:
    assert [t.life for t in play(7).everybody] == [t.life for t in play(7).everybody]
