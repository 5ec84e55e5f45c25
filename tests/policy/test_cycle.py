"""The crash cycle as one member goes through it: a table first, then what it promises."""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGQUIT, SIGUSR1

import pytest

from aiobgw._policy.actions import Action, BeginCycle, Drop, GiveUp, Launch, Retire, Signal
from aiobgw._policy.happenings import (
    Consider,
    CycleBegan,
    DeadlinePassed,
    Happening,
    HasExited,
    HasStarted,
    Hello,
    KillAsked,
    LaunchFailed,
    LaunchLost,
    RestartAsked,
    SignalAsked,
    StopBegan,
    TerminateAsked,
    Withdrawn,
)
from aiobgw._policy.life import Life, Rule, Situation
from aiobgw._policy.moves import KILL_TIMEOUT
from aiobgw._policy.plan import plan
from aiobgw.spec import Phase, Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState

from . import test_plan as lives
from .test_plan import DELAY, KILL_GROUP, NOW, OPEN, PATIENCE, after


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


MEMBER = Rule(restart_delay=DELAY, stop_timeout=PATIENCE, member=True)
ONCE = Rule(restart=Restart.NEVER, restart_delay=DELAY, stop_timeout=PATIENCE, member=True)
ALWAYS = Rule(restart=Restart.ALWAYS, restart_delay=DELAY, stop_timeout=PATIENCE, member=True)

CYCLE = Situation(Phase.RUNNING, cycle=True)
BEGAN = CycleBegan("worker 'a' crashed by SIGSEGV")
CRASHED = HasExited(ExitKind.CRASHED, abrupt=True)
TERMINATED = HasExited(ExitKind.TERMINATED, abrupt=True)
CLEAN = HasExited(ExitKind.CLEAN)
QUIT = Signal(SIGQUIT)

NOT_STARTED, STARTING, RUNNING = WorkerState.NOT_STARTED, WorkerState.STARTING, WorkerState.RUNNING
STOPPING, BACKOFF, STOPPED = WorkerState.STOPPING, WorkerState.BACKOFF, WorkerState.STOPPED

Make = Callable[[Rule], Life]


def unborn_again(rule: Rule) -> Life:
    """Launched for the second time, and no process yet."""
    return after(lives.backing_off(rule), DeadlinePassed())


def given_up(rule: Rule) -> Life:
    return after(lives.overdue(rule), DeadlinePassed())


def quitting(rule: Rule = MEMBER) -> Life:
    return after(lives.running(rule), BEGAN, situation=CYCLE)


def overdue_quitting(rule: Rule = MEMBER) -> Life:
    return after(quitting(rule), DeadlinePassed(), situation=CYCLE)


def waiting(rule: Rule = MEMBER) -> Life:
    return after(quitting(rule), TERMINATED, situation=CYCLE)


# A life, and what a cycle makes of it: to which state, by what, due in how many seconds.
BEGINNING: list[tuple[Make, Rule, WorkerState, tuple[Action, ...], float | None]] = [
    (lives.registered, MEMBER, NOT_STARTED, (), None),
    (lives.gated, MEMBER, NOT_STARTED, (), None),
    (lives.launched, MEMBER, NOT_STARTED, (Drop(),), None),
    (unborn_again, MEMBER, BACKOFF, (Drop(),), None),
    (lives.greeted, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.running, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.running, ALWAYS, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.backing_off, MEMBER, BACKOFF, (), None),
    (lives.unforkable, MEMBER, NOT_STARTED, (), None),
    (lives.terminating, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.terminating_unborn, MEMBER, STOPPED, (Drop(), Retire()), None),
    (lives.restarting, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.killed, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (lives.killed_unborn, MEMBER, STOPPED, (Drop(), Retire()), None),
    (lives.overdue, MEMBER, STOPPING, (QUIT,), KILL_TIMEOUT),
    (given_up, MEMBER, STOPPING, (), None),
    (lives.stopped, MEMBER, STOPPED, (), None),
    (lives.registered, ONCE, STOPPED, (Retire(),), None),
    (lives.gated, ONCE, STOPPED, (Retire(),), None),
    (lives.launched, ONCE, STOPPED, (Drop(), Retire()), None),
    (lives.running, ONCE, STOPPING, (QUIT,), KILL_TIMEOUT),
]


@pytest.mark.parametrize("row", BEGINNING, ids=lambda r: f"{r[0].__name__} {r[1].restart.name}")
def test_what_a_cycle_makes_of_a_member(
    row: tuple[Make, Rule, WorkerState, tuple[Action, ...], float | None],
) -> None:
    make, rule, state, actions, due_in = row
    life, done = plan(make(rule), BEGAN, CYCLE, NOW)

    assert (life.state, done) == (state, actions)
    assert life.deadline == (None if due_in is None else NOW + due_in)
    assert (life.due is None) == (life.deadline is None)


@pytest.mark.parametrize("make", lives.LIVES, ids=lambda make: make.__name__)
def test_a_cycle_is_nothing_to_who_is_no_member(make: Callable[[], Life]) -> None:
    assert plan(make(), BEGAN, CYCLE, NOW) == (make(), ())


# A life in a cycle, what happens to it, and what follows.
WITHIN: list[tuple[Callable[[], Life], Happening, WorkerState, tuple[Action, ...]]] = [
    (quitting, TERMINATED, BACKOFF, ()),
    (quitting, CRASHED, BACKOFF, ()),
    (quitting, CLEAN, STOPPED, (Retire(),)),
    (quitting, HasExited(ExitKind.FAILED), BACKOFF, ()),
    (lambda: quitting(ALWAYS), CLEAN, BACKOFF, ()),
    (lambda: quitting(ONCE), TERMINATED, STOPPED, (Retire(),)),
    (lambda: quitting(ONCE), HasExited(ExitKind.FAILED), STOPPED, (Retire(),)),
    (quitting, LaunchLost("its order unread"), BACKOFF, ()),
    (lambda: quitting(ONCE), LaunchLost("its order unread"), STOPPED, (Retire(),)),
    (quitting, DeadlinePassed(), STOPPING, (KILL_GROUP,)),
    (quitting, HasStarted(), STOPPING, ()),
    (quitting, TerminateAsked(), STOPPING, ()),
    (quitting, KillAsked(), STOPPING, (KILL_GROUP,)),
    (quitting, RestartAsked(), STOPPING, ()),
    (quitting, SignalAsked(SIGUSR1), STOPPING, (Signal(SIGUSR1),)),
    (overdue_quitting, HasExited(ExitKind.FAILED, abrupt=True), BACKOFF, ()),
    (overdue_quitting, DeadlinePassed(), STOPPING, (GiveUp(),)),
    # What was on its way in the turn in which the cycle began.
    (lambda: lives.launched(MEMBER), LaunchLost("?"), NOT_STARTED, ()),
    (lambda: unborn_again(MEMBER), LaunchLost("?"), BACKOFF, ()),
    (lambda: lives.running(MEMBER), CRASHED, BACKOFF, ()),
    (lambda: lives.running(ONCE), CRASHED, STOPPED, (Retire(),)),
    (lambda: lives.restarting(MEMBER), TERMINATED, BACKOFF, ()),
    (lambda: lives.restarting(ONCE), TERMINATED, STOPPED, (Retire(),)),
    (lambda: lives.terminating(MEMBER), TERMINATED, STOPPED, (Retire(),)),
    # Between its end and its next start.
    (waiting, Consider(), BACKOFF, ()),
    (waiting, RestartAsked(), BACKOFF, ()),
    (waiting, TerminateAsked(), STOPPED, (Retire(),)),
    (waiting, KillAsked(), STOPPED, (Retire(),)),
    (waiting, StopBegan(), STOPPED, (Retire(),)),
    (waiting, BEGAN, BACKOFF, ()),
    (lambda: lives.registered(MEMBER), Consider(), NOT_STARTED, ()),
    (lambda: lives.registered(ONCE), Consider(), NOT_STARTED, ()),
    (lambda: lives.backing_off(MEMBER), DeadlinePassed(), BACKOFF, ()),
]


@pytest.mark.parametrize("row", WITHIN, ids=lambda row: repr(row[1]))
def test_what_happens_within_a_cycle(
    row: tuple[Callable[[], Life], Happening, WorkerState, tuple[Action, ...]],
) -> None:
    make, happening, state, actions = row
    stopping = isinstance(happening, StopBegan)
    situation = Situation(Phase.RUNNING, ShutdownMode.FAST, cycle=True) if stopping else CYCLE
    life, done = plan(make(), happening, situation, NOW)
    assert (life.state, done) == (state, actions)


# Who begins one.


@pytest.mark.parametrize("kind", ExitKind)
@pytest.mark.parametrize("abrupt", [True, False])
@pytest.mark.parametrize("member", [True, False])
@pytest.mark.parametrize("situation", [OPEN, CYCLE, lives.SMART, lives.FAST, lives.IMMEDIATE])
def test_an_abrupt_end_of_a_member_begins_one_cycle_and_none_in_a_stop(
    kind: ExitKind, abrupt: bool, member: bool, situation: Situation
) -> None:
    life = lives.running(Rule(restart=Restart.ALWAYS, member=member))
    after_it, actions = plan(life, HasExited(kind, abrupt), situation, NOW)

    begins = abrupt and member and situation is OPEN
    assert (actions[:1] == (BeginCycle(),)) == begins
    assert BeginCycle() not in actions[1:]
    if begins:
        assert (after_it.state, after_it.deadline) == (BACKOFF, None)


def test_who_begins_a_cycle_and_is_never_restarted_is_over() -> None:
    life, actions = plan(lives.running(ONCE), CRASHED, OPEN, NOW)
    assert (life.state, actions) == (STOPPED, (BeginCycle(), Retire()))


@pytest.mark.parametrize("make", [lives.killed, lives.overdue])
def test_a_member_that_we_killed_begins_a_cycle_too(make: Make) -> None:
    life, actions = plan(make(MEMBER), TERMINATED, OPEN, NOW)
    assert (life.state, actions) == (STOPPED, (BeginCycle(), Retire()))


def test_an_intended_restart_that_ends_abruptly_waits_for_the_cycle_that_it_begins() -> None:
    life, actions = plan(lives.restarting(MEMBER), TERMINATED, OPEN, NOW)
    assert (life.state, actions) == (BACKOFF, (BeginCycle(),))


def test_launches_that_reached_no_process_begin_no_cycle() -> None:
    life = lives.launched(MEMBER)
    for _ in range(3):
        life, actions = plan(life, LaunchLost("?"), OPEN, NOW)
        assert BeginCycle() not in actions
    assert life.deadline == NOW + DELAY


# What it promises.


def test_at_its_end_everybody_starts_whatever_the_delay() -> None:
    for make in (lives.registered, lives.backing_off, lives.unforkable, lives.launched, waiting):
        life = after(make(MEMBER), BEGAN, situation=CYCLE)
        life, actions = plan(life, Consider(), OPEN, NOW)
        assert (life.state, actions) == (STARTING, (Launch(),)), make


def test_a_phase_still_holds_back_who_waits_for_it() -> None:
    life = after(waiting(), Consider(), situation=Situation(Phase.CONSISTENT_STATE))
    assert (life.state, life.reason) == (BACKOFF, "waits for phase RUNNING")


def test_a_launch_that_was_dropped_is_made_again_under_its_number() -> None:
    for make, number, restarts in ((lives.launched, 1, 0), (unborn_again, 2, 1)):
        life = after(make(MEMBER), SignalAsked(SIGUSR1), BEGAN, situation=CYCLE)
        assert life.incarnation == number
        again = after(life, Consider())
        assert (again.incarnation, again.restarts, again.dropped) == (number, restarts, False)
        assert plan(again, Hello(), OPEN, NOW)[1] == (Signal(SIGUSR1),)
        twice = after(again, Hello(), HasStarted(), HasExited(ExitKind.FAILED), DeadlinePassed())
        assert (twice.incarnation, twice.restarts) == (number + 1, restarts + 1)


def test_a_start_after_a_cycle_is_no_restart_by_the_rule_but_for_who_crashed() -> None:
    innocent = after(waiting(), Consider())
    assert (innocent.incarnation, innocent.restarts, innocent.cycled) == (2, 0, False)

    guilty = after(lives.running(MEMBER), CRASHED)
    guilty = after(after(guilty, BEGAN, situation=CYCLE), Consider())
    assert (guilty.incarnation, guilty.restarts) == (2, 1)

    asked = after(after(lives.restarting(MEMBER), TERMINATED), Consider())
    assert (asked.incarnation, asked.restarts, asked.restart) == (2, 0, False)

    delayed = after(after(lives.backing_off(MEMBER), BEGAN, situation=CYCLE), Consider())
    assert (delayed.incarnation, delayed.restarts) == (2, 1)


def test_everybody_says_what_happened_and_what_it_waits_for() -> None:
    assert quitting().reason == "worker 'a' crashed by SIGSEGV"
    assert waiting().reason == "waits for the end of a crash cycle"
    assert after(quitting(ONCE), TERMINATED, situation=CYCLE).reason == quitting().reason
    assert after(lives.terminating(MEMBER), BEGAN, situation=CYCLE).reason == "terminated"
    late = "worker 'a' crashed by SIGSEGV; killed: SIGQUIT did not end it within 5 s"
    assert overdue_quitting().reason == late


def test_a_cycle_gives_nobody_more_time_than_it_had() -> None:
    asked = lives.terminating(Rule(stop_timeout=2.0, member=True))
    assert after(asked, BEGAN, situation=CYCLE, now=NOW + 1).deadline == NOW + 2
    killed = after(lives.killed(MEMBER), BEGAN, situation=CYCLE, now=NOW + 1)
    assert plan(killed, DeadlinePassed(), CYCLE, NOW + KILL_TIMEOUT)[1] == (GiveUp(),)


@pytest.mark.parametrize("mode", ShutdownMode)
@pytest.mark.parametrize("make", [*lives.ALIVE, quitting, overdue_quitting, waiting])
def test_a_stop_in_a_cycle_is_a_stop(make: Make, mode: ShutdownMode) -> None:
    situation = Situation(Phase.RUNNING, mode, cycle=True)
    life = after(make(MEMBER), BEGAN, situation=CYCLE)
    life = after(life, StopBegan(), situation=situation)
    assert life.state in (STOPPING, STOPPED)
    for happening in (TERMINATED, CLEAN, Consider(), LaunchLost("?"), LaunchFailed("?")):
        after_it, actions = plan(life, happening, situation, NOW)
        assert Launch() not in actions
        assert BeginCycle() not in actions
        assert life.state is STOPPED or after_it.state in (STOPPING, STOPPED)
    assert plan(life, Withdrawn(), situation, NOW)[0].state in (STOPPING, STOPPED)
