"""The rules of groups and dependencies: truth tables, and seeded histories of whole groups."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from signal import SIGCONT, SIGKILL, SIGTERM

import pytest

from aiobgw._policy.actions import (
    Action,
    BeginCycle,
    Drop,
    FailSupervisor,
    GiveUp,
    Launch,
    RecordUnknown,
    RestartGroup,
    Retire,
    Signal,
    StopGroup,
    Withdraw,
)
from aiobgw._policy.deadlines import Deadlines
from aiobgw._policy.groups import concerned, end_hindered_by, start_hindered_by
from aiobgw._policy.happenings import (
    Consider,
    DeadlinePassed,
    GroupEnds,
    Happening,
    HasExited,
    HasStarted,
    Hello,
    KillAsked,
    LaunchFailed,
    LaunchLost,
    RestartAsked,
    SaidReady,
    StopBegan,
    TerminateAsked,
    Withdrawn,
)
from aiobgw._policy.life import Due, Life, Rule, Situation
from aiobgw._policy.order import Ended, Unmet, find_cycle, unmet
from aiobgw._policy.plan import plan
from aiobgw._policy.restart import exit_kind
from aiobgw.spec import After, Escalate, Restart, ShutdownMode, Strategy
from aiobgw.status import ExitKind, WorkerState

SEEDS, CHUNK = 2_000, 100
STEPS = 50
NOW = 1_000.0

NOT_STARTED, STARTING, RUNNING = WorkerState.NOT_STARTED, WorkerState.STARTING, WorkerState.RUNNING
STOPPING, BACKOFF, STOPPED = WorkerState.STOPPING, WorkerState.BACKOFF, WorkerState.STOPPED
WAITING = (NOT_STARTED, BACKOFF)
ONE, ALL, REST = Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE
ASK = (Signal(SIGTERM), Signal(SIGCONT))


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


def rule(strategy: Strategy = ALL, **fields: object) -> Rule:
    fields.setdefault("restart_jitter", 0.0)
    return Rule(group="g", strategy=strategy, **fields)  # type: ignore[arg-type]


def lives(strategy: Strategy = ALL) -> dict[str, Life]:
    """Members of a group in every condition that matters to the others."""
    fresh = Life(rule(strategy))
    up = fresh._replace(state=RUNNING, has_process=True, begun=True, incarnation=1)
    ready = up._replace(ready=True, was_ready=True)
    stopping = ready._replace(state=STOPPING, deadline=NOW, due=Due.KILL)
    stuck = stopping._replace(deadline=None, due=None)
    pausing = Life(
        fresh.rule, BACKOFF, begun=True, was_ready=True, deadline=NOW, due=Due.START, incarnation=1
    )
    return {
        "new": fresh,
        "launched": fresh._replace(state=STARTING, incarnation=1),
        "up": up,
        "ready": ready,
        "crashed": ready._replace(state=BACKOFF, ready=False, has_process=False),
        "pausing": pausing,
        "no fork": pausing._replace(failures=1),
        "to end": ready._replace(with_group="why"),
        "ending": stopping._replace(with_group="why"),
        "stopping": stopping,
        "leaving": stopping._replace(terminate=True),
        "stuck": stuck,
        "lost": stuck._replace(terminate=True),
        "over": ready._replace(state=STOPPED, ready=False, has_process=False),
    }


@pytest.mark.parametrize(
    ("strategy", "me", "others"),
    [
        (ONE, 1, []),
        (ALL, 0, [1, 2, 3]),
        (ALL, 2, [0, 1, 3]),
        (REST, 0, [1, 2, 3]),
        (REST, 2, [3]),
        (REST, 3, []),
    ],
)
def test_a_strategy_says_who_is_restarted_with_one(
    strategy: Strategy, me: int, others: list[int]
) -> None:
    assert concerned(strategy, me, 4) == others


def test_a_member_starts_when_those_before_it_let_it() -> None:
    """By what holds it up from before it, and from after it, with each strategy."""
    before, after = {}, {}
    for strategy in Strategy:
        one = lives(strategy)
        me = one["new"]
        names = one.items()
        before[strategy] = {n for n, life in names if start_hindered_by([life, me], 1) == 0}
        after[strategy] = {n for n, life in names if start_hindered_by([me, life], 0) == 1}
    unready = {"new", "launched", "up", "crashed", "pausing", "no fork", "stopping", "leaving"}
    unready |= {"stuck", "to end", "ending"}
    assert before[ALL] == before[REST] == unready
    assert before[ONE] == {"new", "launched", "up", "to end", "ending"}
    assert after[ONE] == after[REST] == {"to end", "ending"}
    assert after[ALL] == {"to end", "ending", "pausing"}


def test_a_member_waits_for_the_nearest_before_it_so_that_few_wait_for_the_same() -> None:
    one = lives()
    assert start_hindered_by([one["new"], one["new"], one["ready"], one["new"]], 3) == 1
    assert start_hindered_by([one["new"], one["to end"], one["to end"]], 0) == 1
    assert start_hindered_by([one["ready"], one["new"], one["new"]], 1) is None


def test_a_member_ends_when_those_after_it_have_ended() -> None:
    one = lives()
    waits = {
        stopping: {
            name
            for name, life in one.items()
            if end_hindered_by([one["ready"], life], 0, stopping=stopping) == 1
        }
        for stopping in (False, True)
    }
    assert waits[False] == {"to end", "ending", "stopping", "leaving"}
    assert waits[True] == waits[False] | {"launched", "up", "ready"}
    assert end_hindered_by([one["ending"], one["ready"]], 1, stopping=True) is None


NEWEST: dict[str, Life | Ended | None] = {
    **{name: lives()[name] for name in ("new", "launched", "up", "ready", "to end", "stopping")},
    "nobody": None,
    "done": Ended(True, "clean"),
    "broken": Ended(False, "failed"),
}


@pytest.mark.parametrize(
    ("after", "holds", "never"),
    [
        (After.STARTED, {"up", "ready"}, {"done", "broken"}),
        (After.READY, {"ready"}, {"done", "broken"}),
        (After.COMPLETED, {"done"}, {"broken"}),
    ],
)
def test_a_dependency_holds_waits_or_never_will(
    after: After, holds: set[str], never: set[str]
) -> None:
    lacks = {name: unmet("redis", after, newest) for name, newest in NEWEST.items()}
    assert {name for name, lack in lacks.items() if lack is None} == holds
    assert {name for name, lack in lacks.items() if lack and lack.for_good} == never
    assert lacks["nobody"] == Unmet("waits for 'redis', which is not registered")
    assert all("'redis'" in lack.why for lack in lacks.values() if lack)


def test_a_circle_is_found_wherever_it_closes() -> None:
    edges = {"a": ["b", "x"], "b": ["c"], "c": ["y", "d"], "d": ["a"], "x": ["y"], "y": ["x"]}
    assert find_cycle("a", edges.__getitem__) == ["a", "b", "c", "d"]
    edges["d"] = []
    assert find_cycle("a", edges.__getitem__) is None, "others' circles are not its own"
    chain = {number: [number + 1] for number in range(5_000)}
    assert find_cycle(0, lambda number: chain.get(number, [])) is None


# What a restart of the group, or its end, means for a member: state, actions.

GROUP_ENDS: dict[str, tuple[WorkerState, WorkerState, tuple[Action, ...]]] = {
    "new": (NOT_STARTED, STOPPED, ()),
    "launched": (NOT_STARTED, STOPPED, (Drop(),)),
    "up": (STOPPING, STOPPING, ASK),
    "ready": (STOPPING, STOPPING, ASK),
    "crashed": (BACKOFF, STOPPED, ()),
    "pausing": (BACKOFF, STOPPED, ()),
    "to end": (STOPPING, STOPPING, ASK),
    "ending": (STOPPING, STOPPING, ()),
    "leaving": (STOPPING, STOPPING, ()),
    "stuck": (STOPPING, STOPPING, ()),
    "over": (STOPPED, STOPPED, ()),
}


@pytest.mark.parametrize("name", GROUP_ENDS)
def test_what_the_group_does_to_a_member_whose_turn_it_is(name: str) -> None:
    life = lives()[name]
    again, over, actions = GROUP_ENDS[name]
    for for_good, state in ((False, again), (True, over)):
        then, done = plan(life, GroupEnds("culprit", for_good), Situation(), NOW)
        retired = (Retire(),) if state is STOPPED and life.state is not STOPPED else ()
        assert (then.state, done) == (state, (*actions, *retired))


def test_a_marked_member_waits_for_its_turn_and_says_so() -> None:
    waits = Situation(ends_after="waits for the end of 'c'")
    life, actions = plan(lives()["ready"], GroupEnds("culprit"), waits, NOW)
    assert (life.state, life.reason, actions) == (
        RUNNING,
        "culprit; waits for the end of 'c'",
        (),
    )
    assert plan(life, Consider(), waits, NOW) == (life, ())
    life, actions = plan(life, Consider(), Situation(), NOW)
    assert (life.state, life.reason, actions) == (STOPPING, "culprit", ASK)
    assert life.deadline == NOW + life.rule.stop_timeout


@pytest.mark.parametrize("state", ["to end", "ending"])
@pytest.mark.parametrize(
    ("restart", "kind", "again"),
    [
        (Restart.ON_FAILURE, ExitKind.CRASHED, True),
        (Restart.ON_FAILURE, ExitKind.TERMINATED, True),
        (Restart.ON_FAILURE, ExitKind.CLEAN, False),
        (Restart.ALWAYS, ExitKind.CLEAN, True),
        (Restart.NEVER, ExitKind.CRASHED, False),
        (Restart.NEVER, ExitKind.TERMINATED, False),
    ],
)
def test_what_becomes_of_a_marked_member_counts_for_nothing(
    state: str, restart: Restart, kind: ExitKind, again: bool
) -> None:
    life = lives()[state]._replace(rule=rule(restart=restart, max_restarts=0))
    waits = Situation(waits_for="waits for 'a'")
    then, actions = plan(life, HasExited(kind), waits, NOW)
    assert RestartGroup() not in actions
    if not again:
        assert (then.state, actions) == (STOPPED, (Retire(),))
        return
    assert (then.state, then.reason, then.due, actions) == (BACKOFF, "waits for 'a'", None, ())
    assert (then.streak, then.recent) == (0, ())
    then, actions = plan(then, Consider(), Situation(), NOW)
    assert (then.state, then.restarts, then.with_group, actions) == (STARTING, 0, "", (Launch(),))


@pytest.mark.parametrize(
    ("happening", "changes", "strategy", "restarts"),
    [
        (HasExited(ExitKind.CRASHED), {}, ALL, True),
        (HasExited(ExitKind.FAILED), {"trouble": "not ready in time"}, REST, True),
        (HasExited(ExitKind.FAILED), {}, ONE, False),
        (HasExited(ExitKind.CLEAN), {}, ALL, False),
        (HasExited(ExitKind.TERMINATED), {"restart": True}, ALL, False),
        (HasExited(ExitKind.TERMINATED), {"terminate": True}, ALL, False),
        (LaunchLost("nobody has it"), {"lost": 2}, ALL, False),
    ],
)
def test_only_a_failure_that_its_rule_answers_restarts_a_group(
    happening: Happening, changes: dict[str, object], strategy: Strategy, restarts: bool
) -> None:
    name = "launched" if isinstance(happening, LaunchLost) else "ready"
    life = lives(strategy)[name]._replace(**changes)  # type: ignore[arg-type]
    actions = plan(life, happening, Situation(), NOW)[1]
    assert (RestartGroup() in actions) is restarts
    never = life._replace(rule=rule(strategy, restart=Restart.NEVER))
    assert RestartGroup() not in plan(never, happening, Situation(), NOW)[1]


def test_one_that_is_given_up_restarts_nobody_and_escalates_as_it_says() -> None:
    for escalate in Escalate:
        life = lives()["ready"]._replace(rule=rule(max_restarts=0, escalate=escalate))
        then, actions = plan(life, HasExited(ExitKind.FAILED), Situation(), NOW)
        assert then.state is STOPPED
        kinds = [type(action) for action in actions]
        assert RestartGroup not in kinds
        assert (StopGroup in kinds) is (escalate is Escalate.STOP_GROUP)
        assert (FailSupervisor in kinds) is (escalate is Escalate.FAIL)


def test_a_restart_that_is_asked_for_waits_as_any_other_and_is_not_counted() -> None:
    life = lives()["pausing"]
    waits = Situation(waits_for="waits for 'a'")
    life, actions = plan(life, RestartAsked(), waits, NOW)
    assert (life.state, life.due, actions) == (BACKOFF, None, ())
    life, actions = plan(life, Consider(), Situation(), NOW)
    assert (life.state, life.restarts, actions) == (STARTING, 0, (Launch(),))


def test_a_group_that_is_stopped_while_it_restarts_is_stopped() -> None:
    life = lives()["ready"]
    waits = Situation(ends_after="waits for 'c'", waits_for="waits for 'a'")
    for why in ("again", "for good", "again"):
        life = plan(life, GroupEnds(why, why == "for good"), waits, NOW)[0]
    assert (life.with_group, life.for_good) == ("for good", True)
    assert plan(life, HasExited(ExitKind.CRASHED), waits, NOW)[0].state is STOPPED
    importing = life._replace(state=STARTING, has_process=True)
    assert plan(importing, LaunchLost("it died"), Situation(), NOW)[0].reason == "for good"


def test_a_marked_member_that_another_crash_takes_along_is_not_counted() -> None:
    life = lives()["to end"]._replace(rule=rule(member=True))
    cycle = Situation(cycle=True)
    life = plan(life, HasExited(ExitKind.CRASHED, abrupt=True), cycle, NOW)[0]
    assert (life.state, life.streak) == (BACKOFF, 0)


def test_why_a_member_is_over_tells_the_culprit_and_no_turn_that_is_past() -> None:
    never = lives()["ready"]._replace(rule=rule(restart=Restart.NEVER))
    waits = Situation(ends_after="waits for the end of 'c'")
    life = plan(never, GroupEnds("culprit"), waits, NOW)[0]
    assert plan(life, HasExited(ExitKind.CRASHED), waits, NOW)[0].reason == "culprit"
    life = plan(life, Consider(), Situation(), NOW)[0]
    late = plan(life, DeadlinePassed(), Situation(), NOW + life.rule.stop_timeout)[0]
    assert late.reason == "culprit; killed: it did not end within stop_timeout (10 s)"


def test_what_can_never_start_is_over_and_says_why() -> None:
    never = Situation(never_starts="depends on 'redis', which is over")
    for name in ("new", "crashed"):
        life, actions = plan(lives()[name], Consider(), never, NOW)
        assert (life.state, life.reason, actions) == (STOPPED, never.never_starts, (Retire(),))
    pausing = lives()["pausing"]
    assert plan(pausing, Consider(), never, NOW) == (pausing, ()), "it may come back meanwhile"


@pytest.mark.parametrize("mode", ShutdownMode)
def test_a_stop_has_each_mode_its_own_order(mode: ShutdownMode) -> None:
    situation = Situation(stop=mode, ends_after="waits for the end of 'c'")
    life = lives()["to end"]
    then, actions = plan(life, StopBegan(), situation, NOW)
    match mode:
        case ShutdownMode.SMART:
            assert (then.state, then.with_group, actions) == (RUNNING, "", ()), "it goes on"
        case ShutdownMode.FAST:
            assert (then.state, actions) == (RUNNING, ())
            assert then.reason == "the supervisor is stopping; waits for the end of 'c'"
        case ShutdownMode.IMMEDIATE:
            assert then.state is STOPPING


# Histories.


@dataclass
class Attempt:
    """A launch on its way, and then its process."""

    alive: bool = False
    started: bool = False
    ready: bool = False
    doomed: bool = False
    obeys: bool = True
    can_die: bool = True


@dataclass
class Member:
    """A member, and what was done to it, written down independently of its Life."""

    number: int
    life: Life
    attempt: Attempt | None = None
    was_ready: bool = False
    may_end: bool = False  # somebody has asked for it, or it is concerned by a restart
    concerned: bool = False  # by a restart of its group, until its process is gone
    given_up: bool = False

    @property
    def up(self) -> bool:
        return self.attempt is not None


@dataclass
class History:
    """A group whose supervisor looks at everybody after every step, and acts upon nothing."""

    random: Random
    strategy: Strategy
    now: float = 0.0
    situation: Situation = field(default_factory=Situation)
    members: list[Member] = field(default_factory=list)
    over: list[Member] = field(default_factory=list)
    deadlines: Deadlines = field(default_factory=Deadlines)
    in_order: bool = True
    restarts: int = 0
    stopped: bool = False
    failed: bool = False
    log: deque[str] = field(default_factory=lambda: deque(maxlen=40))

    # The supervisor.

    def facts(self, member: Member) -> Situation:
        lives = [other.life for other in self.members]
        me = self.members.index(member)
        starts = start_hindered_by(lives, me) is not None
        stopping = self.situation.stop is ShutdownMode.FAST
        ends = end_hindered_by(lives, me, stopping=stopping) is not None
        return Situation(
            stop=self.situation.stop,
            waits_for="waits to start" if starts else "",
            ends_after="waits to end" if ends else "",
        )

    def decide(self, member: Member, happening: Happening) -> None:
        if member not in self.members:
            return
        pending = [happening]
        situation = self.facts(member)
        while pending:
            before = member.life
            happening = pending.pop(0)
            member.life, actions = plan(before, happening, situation, self.now)
            self.log.append(
                f"{self.now:7.2f} {member.number} {happening}: {before.state.name} ->"
                f" {member.life.state.name} {member.life.reason!r} {actions}"
            )
            if before.with_group and isinstance(happening, HasExited):
                assert member.life.recent == before.recent, "the group's doing was counted"
            for action in actions:
                pending += self.perform(member, action)
        self.deadlines.set(member.number, member.life.wakes_at)

    def perform(self, member: Member, action: Action) -> list[Happening]:
        match action:
            case Launch():
                self.check_launch(member)
                member.attempt = Attempt(
                    obeys=self.random.random() < 0.8, can_die=self.random.random() < 0.98
                )
                member.may_end = False
            case Withdraw():
                if member.attempt is not None and not member.attempt.alive:
                    member.attempt = None
                    return [Withdrawn()]
            case Drop():
                assert member.attempt is None or not member.attempt.alive
                self.gone(member)
            case Signal(signum):
                self.signal(member, signum)
            case RestartGroup():
                self.restart(member)
            case StopGroup(why):
                self.stopped = True
                self.end([m for m in self.members if m is not member], why, for_good=True)
            case GiveUp():
                member.given_up = True
            case Retire():
                assert member.attempt is None or member.given_up, "a process is left"
                member.concerned = False
                self.members.remove(member)
                self.over.append(member)
            case FailSupervisor():
                self.failed = True
            case RecordUnknown() | BeginCycle():
                pass
        return []

    def restart(self, culprit: Member) -> None:
        assert not culprit.concerned, "who was to end began a second restart"
        self.restarts += 1
        place = self.members.index(culprit)
        others = self.members[place + 1 :]
        if self.strategy is ALL:
            others = self.members[:place] + others
        assert self.strategy is not ONE
        self.end(others, "one failed", for_good=False)

    def end(self, others: list[Member], why: str, *, for_good: bool) -> None:
        for other in reversed(others):
            other.concerned = other.up
            other.may_end = True
        for other in reversed(others):
            self.decide(other, GroupEnds(why, for_good))

    def look(self) -> None:
        """Look at everybody until nothing changes, as who is told of every change would be."""
        for _ in range(100):
            before = [member.life for member in self.members]
            for member in list(self.members):
                self.decide(member, Consider())
            if before == [member.life for member in self.members]:
                return
        pytest.fail("they look at each other for ever")

    def check_launch(self, member: Member) -> None:
        assert self.situation.stop is None, "a launch in a stop"
        assert not member.up, "two launches at once"
        place = self.members.index(member)
        for other in self.members:
            assert not other.concerned, f"{member.number} starts, {other.number} has yet to end"
        for other in self.members[:place]:
            ready = other.attempt is not None and other.attempt.ready
            ready = other.was_ready if self.strategy is ONE else ready
            assert ready or other.given_up, f"{member.number} starts before {other.number} is ready"

    def signal(self, member: Member, signum: int) -> None:
        attempt = member.attempt
        assert attempt is not None and attempt.alive, "a signal for nobody"
        assert member.may_end or self.situation.stop is not None, "it has nothing to do with it"
        in_turn = member.concerned or self.situation.stop is ShutdownMode.FAST
        if signum == SIGTERM and in_turn and self.in_order and not member.life.terminate:
            after = self.members[self.members.index(member) + 1 :]
            assert not any(other.up and not other.given_up for other in after), "out of turn"
        attempt.doomed |= attempt.can_die and (
            signum == SIGKILL or (signum == SIGTERM and attempt.obeys)
        )

    # What may happen.

    def step(self) -> None:
        choices: list[tuple[int, Callable[[], None]]] = [
            (3, self.register),
            (12, self.process),
            (2, self.request),
            (4, self.pass_time),
        ]
        (act,) = self.random.choices([act for _, act in choices], [weight for weight, _ in choices])
        act()
        while self.random.random() < 0.3:
            self.process()  # in the same instant, before anybody is looked at again
        self.look()

    def register(self) -> None:
        if len(self.members) == 5 or self.situation.stop is not None:
            return
        given = rule(
            self.strategy,
            restart=self.random.choice(list(Restart)),
            restart_delay=self.random.choice([0.0, 1.0, 30.0]),
            stop_timeout=self.random.choice([0.0, 2.0, 20.0]),
            max_restarts=self.random.choice([0, 3, None, None]),
            escalate=self.random.choice(list(Escalate)[:2]),
            needs_ready=self.random.random() < 0.5,
        )
        member = Member(len(self.members) + len(self.over), Life(given))
        self.members.append(member)
        self.decide(member, Consider())

    def anybody(self) -> Member | None:
        return self.random.choice(self.members) if self.members else None

    def request(self) -> None:
        member = self.anybody()
        if member is None:
            return
        happening = self.random.choice([TerminateAsked(), KillAsked(), RestartAsked()])
        member.may_end = True
        in_order, self.in_order = self.in_order, False
        self.decide(member, happening)
        self.in_order = in_order

    def process(self) -> None:
        member = self.anybody()
        if member is None or member.attempt is None:
            return
        attempt = member.attempt
        chance = self.random.random()
        if not attempt.alive:
            self.be_born(member, attempt, chance)
        elif attempt.doomed:
            self.exit(member, code=1)
        elif attempt.can_die and chance < 0.15:
            self.exit(member, code=self.random.choice([0, 1, 7]))
        elif not attempt.started:
            attempt.started = True
            attempt.ready = not member.life.rule.needs_ready
            self.note_ready(member)
            self.decide(member, HasStarted())
        elif not attempt.ready:
            attempt.ready = True
            self.note_ready(member)
            self.decide(member, SaidReady())

    def note_ready(self, member: Member) -> None:
        up = member.life.state in (STARTING, RUNNING)
        member.was_ready |= up and member.attempt is not None and member.attempt.ready

    def be_born(self, member: Member, attempt: Attempt, chance: float) -> None:
        if chance < 0.1:
            self.gone(member)
            self.decide(member, LaunchLost("nobody has it"))
        elif chance < 0.2:
            self.gone(member)
            self.decide(member, LaunchFailed("no memory"))
        else:
            attempt.alive = True
            self.decide(member, Hello())

    def exit(self, member: Member, code: int) -> None:
        life = member.life
        kind = exit_kind(
            code=code,
            signal=None,
            farewell=True,
            command=False,
            asked=life.asked,
            overdue=life.overdue,
            trouble=bool(life.trouble),
        )
        was_concerned = member.concerned
        self.decide_exit(member, kind, was_concerned)

    def decide_exit(self, member: Member, kind: ExitKind, was_concerned: bool) -> None:
        restarts = self.restarts
        self.gone(member)
        self.decide(member, HasExited(kind))
        assert not (was_concerned and self.restarts > restarts), "a second restart"

    def gone(self, member: Member) -> None:
        member.attempt = None
        member.concerned = False

    def pass_time(self) -> None:
        first = self.deadlines.first()
        if first is not None:
            self.now = max(self.now, first)
        while (number := self.deadlines.pop_due(self.now)) is not None:
            for member in list(self.members):
                if member.number == number:
                    self.decide(member, DeadlinePassed())

    # The end.

    def settle(self) -> None:
        """Let everybody come up, or end, until nothing moves."""
        for _ in range(300):
            busy = [m for m in self.members if m.attempt is not None and self.moves(m)]
            if busy:
                self.random.choice(busy)
                self.advance(self.random.choice(busy))
            elif self.deadlines.first() is not None:
                self.pass_time()
            else:
                return
            self.look()
        pytest.fail("it does not come to rest")

    def moves(self, member: Member) -> bool:
        attempt = member.attempt
        assert attempt is not None
        return not attempt.alive or attempt.doomed or not attempt.ready

    def advance(self, member: Member) -> None:
        attempt = member.attempt
        assert attempt is not None
        if not attempt.alive:
            attempt.alive = True
            self.decide(member, Hello())
        elif attempt.doomed:
            self.decide_exit(member, ExitKind.TERMINATED, member.concerned)
        else:
            started, attempt.started, attempt.ready = attempt.started, True, True
            self.note_ready(member)
            self.decide(member, SaidReady() if started else HasStarted())
            if not started:
                self.decide(member, SaidReady())

    def stop(self, mode: ShutdownMode) -> None:
        self.situation = Situation(stop=mode)
        for member in list(self.members):
            self.decide(member, StopBegan())
        self.look()


def play(seed: int) -> History:
    random = Random(seed)
    history = History(random, random.choice(list(Strategy)))
    try:
        for _ in range(random.randrange(STEPS)):
            history.step()
        if seed % 2:
            history.settle()
            stuck = any(member.given_up for member in history.members)
            for member in history.members:
                up = member.life.state is RUNNING and member.life.ready
                assert up or stuck, f"{member.number} is forgotten: {member.life}"
        if seed % 3 == 0:
            history.stop(ShutdownMode.SMART)
        history.stop(ShutdownMode.FAST)
        history.settle()
        assert not history.members, "left after a stop"
        assert history.deadlines.first() is None
    except BaseException as error:
        error.add_note("\n".join((f"seed {seed}, {history.strategy}:", *history.log)))
        raise
    return history


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_group_keeps_its_order_and_comes_to_rest(first: int) -> None:
    for seed in range(first, first + CHUNK):
        play(seed)


def test_the_histories_see_everything_that_can_happen_to_groups() -> None:
    """Guard the generator: histories in which nothing happens would prove nothing."""
    played = [play(seed) for seed in range(300)]
    assert sum(history.restarts for history in played) > 60
    assert sum(history.stopped for history in played) > 10
    members = [member for history in played for member in history.over]
    assert sum(member.given_up for member in members) > 5
    reasons = {member.life.reason for member in members}
    assert {"one failed", "terminated", "the supervisor is stopping"} <= reasons
