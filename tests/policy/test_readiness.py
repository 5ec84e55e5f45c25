"""Readiness by the rules: what each sign means where, and the times that hold."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from aiobgw._policy.actions import Signal
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
    RestartAsked,
    SaidReady,
    SaidReloading,
    SaidStopping,
    StopBegan,
    TerminateAsked,
)
from aiobgw._policy.life import Due, Life, Rule, Situation
from aiobgw._policy.plan import plan
from aiobgw._policy.readiness import ENDS_ITSELF, RELOADING
from aiobgw.spec import Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState

NOW = 1000.0
RULE = Rule(needs_ready=True, start_timeout=90.0, stop_timeout=10.0, restart=Restart.ALWAYS)
OPEN = Situation()
FAST, IMMEDIATE = Situation(stop=ShutdownMode.FAST), Situation(stop=ShutdownMode.IMMEDIATE)

STARTING, RUNNING, STOPPING = WorkerState.STARTING, WorkerState.RUNNING, WorkerState.STOPPING


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


def after(*happenings: Happening, rule: Rule = RULE, situation: Situation = OPEN) -> Life:
    life = Life(rule)
    for happening in (Consider(), *happenings):
        life = plan(life, happening, situation, NOW)[0]
    return life


UP = (Hello(), HasStarted())
READY = (*UP, SaidReady())
ENDING = (*READY, SaidStopping())


@pytest.mark.parametrize(
    ("before", "happening", "state", "ready", "ready_by", "due", "reason"),
    [
        ((), Hello(), STARTING, False, NOW + 90, None, ""),
        ((Hello(),), HasStarted(), RUNNING, False, NOW + 90, None, ""),
        ((Hello(),), SaidReady(), STARTING, True, None, None, ""),
        ((Hello(), SaidReady()), HasStarted(), RUNNING, True, None, None, ""),
        ((), SaidReady(), STARTING, False, None, None, ""),
        (UP, SaidReady(), RUNNING, True, None, None, ""),
        (UP, SaidReloading(), RUNNING, False, NOW + 90, None, ""),
        (READY, SaidReady(), RUNNING, True, None, None, ""),
        (READY, SaidReloading(), RUNNING, False, None, None, RELOADING),
        ((*READY, SaidReloading()), SaidReady(), RUNNING, True, None, None, ""),
        (UP, SaidStopping(), RUNNING, False, None, Due.KILL, ENDS_ITSELF),
        (READY, SaidStopping(), RUNNING, False, None, Due.KILL, ENDS_ITSELF),
        (ENDING, SaidReady(), RUNNING, False, None, Due.KILL, ENDS_ITSELF),
        (ENDING, SaidReloading(), RUNNING, False, None, Due.KILL, ENDS_ITSELF),
        (ENDING, TerminateAsked(), STOPPING, False, None, Due.KILL, "terminated"),
        ((*UP, TerminateAsked()), SaidReady(), STOPPING, False, None, Due.KILL, "terminated"),
        ((*UP, TerminateAsked()), SaidStopping(), STOPPING, False, None, Due.KILL, "terminated"),
    ],
)
def test_each_sign_means_what_the_table_says(
    before: tuple[Happening, ...],
    happening: Happening,
    state: WorkerState,
    ready: bool,
    ready_by: float | None,
    due: Due | None,
    reason: str,
) -> None:
    life = after(*before, happening)
    assert (life.state, life.ready, life.ready_by, life.due) == (state, ready, ready_by, due)
    assert life.reason == reason
    assert life.deadline == (None if due is None else NOW + 10)


@pytest.mark.parametrize(
    ("before", "situation", "start", "end"),
    [
        (UP, OPEN, 50, None),
        ((Hello(),), OPEN, 50, None),
        (READY, OPEN, None, None),
        ((*READY, SaidReloading()), OPEN, None, None),
        (ENDING, OPEN, None, 50),
        ((*READY, TerminateAsked()), OPEN, None, 50),
        ((*READY, RestartAsked()), OPEN, None, 50),
        ((*READY, TerminateAsked()), FAST, None, 50),
        ((*READY, TerminateAsked()), IMMEDIATE, None, 10),
        ((*READY, KillAsked()), OPEN, None, 5),
        ((*UP, DeadlinePassed()), OPEN, None, 50),
    ],
)
def test_more_time_is_for_the_deadline_of_a_start_or_of_an_end_that_was_asked_for(
    before: tuple[Happening, ...], situation: Situation, start: float | None, end: float | None
) -> None:
    life = after(*before, rule=replace(RULE, start_timeout=20.0))
    later = plan(life, Extend(50.0), situation, NOW)[0]
    assert later.ready_by == (None if start is None else NOW + start)
    assert later.deadline == (None if end is None else NOW + end)
    earlier = plan(life, Extend(0.001), situation, NOW)[0]
    assert (earlier.ready_by, earlier.deadline) == (life.ready_by, life.deadline)


def test_a_member_that_a_crash_cycle_ends_gets_no_more_time() -> None:
    member = after(*READY, CycleBegan("other"), rule=replace(RULE, member=True))
    assert plan(member, Extend(50.0), OPEN, NOW)[0] == member


def test_more_time_for_an_end_is_no_more_time_for_an_immediate_stop() -> None:
    life = after(*READY, TerminateAsked(), Extend(86_400.0))
    assert life.deadline == NOW + 86_400
    assert plan(life, StopBegan(), IMMEDIATE, NOW)[0].deadline == NOW + 5


def test_who_says_again_that_it_stops_gets_no_more_time() -> None:
    life = after(*ENDING)
    assert plan(life, SaidStopping(), OPEN, NOW + 9)[0] == life


@pytest.mark.parametrize("words", [SaidReloading(), SaidStopping()])
def test_what_it_said_is_no_reason_any_more_when_it_has_ended(words: Happening) -> None:
    rule = replace(RULE, restart=Restart.NEVER)
    assert after(*READY, words, HasExited(ExitKind.CLEAN), rule=rule).reason == "clean exit"


def test_who_ends_by_itself_too_slowly_is_killed_and_has_failed() -> None:
    life = after(*ENDING)
    late, actions = plan(life, DeadlinePassed(), OPEN, NOW + 10)
    assert late.overdue
    assert actions == (Signal(9, group=True),)


@pytest.mark.parametrize("needs_ready", [True, False])
def test_who_is_late_is_asked_to_end_and_its_next_life_begins_as_the_first_one(
    needs_ready: bool,
) -> None:
    rule = replace(RULE, needs_ready=needs_ready)
    life = after(Hello(), rule=rule)
    ended, actions = plan(life, DeadlinePassed(), OPEN, NOW + 90)
    assert [action.signum for action in actions if isinstance(action, Signal)] == [15, 18]
    what = "ready" if needs_ready else "started"
    assert ended.trouble == f"not {what} within start_timeout (90 s)"
    over = plan(ended, HasExited(ExitKind.FAILED), OPEN, NOW + 91)[0]
    assert (over.state, over.ready, over.ready_by) == (WorkerState.BACKOFF, False, None)
    again = plan(over, DeadlinePassed(), OPEN, over.deadline or 0.0)[0]
    up = plan(again, Hello(), OPEN, NOW + 200)[0]
    assert (up.incarnation, up.ready, up.ready_by) == (2, False, NOW + 290)


def test_without_a_start_timeout_nobody_is_late() -> None:
    life = after(*UP, rule=replace(RULE, start_timeout=None))
    assert life.wakes_at is None


SIGNS: tuple[Happening, ...] = (
    SaidReady(),
    SaidReloading(),
    SaidStopping(),
    Extend(30.0),
    Beat(),
    Hello(),
    HasStarted(),
    HasExited(ExitKind.FAILED),
    TerminateAsked(),
    RestartAsked(),
    DeadlinePassed(),
    Consider(),
)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_said_only_who_has_a_process_is_ready_and_an_end_has_a_bound(
    seed: int,
) -> None:
    random = Random(seed)
    for _ in range(100):
        life, now = Life(RULE), NOW
        for _ in range(40):
            happening = random.choice(SIGNS)
            if happening == DeadlinePassed():
                now = max(now, life.wakes_at or now)
            life = plan(life, happening, OPEN, now)[0]
            assert not life.ready or life.has_process
            assert life.ready_by is None or not life.ready
            if life.state is STOPPING or life.reason == ENDS_ITSELF:
                assert life.due in (Due.KILL, Due.GIVE_UP) or "SIGKILL" in life.reason
            now += random.random()


def test_a_deadline_that_is_looked_at_late_is_set_anew_and_holds_then() -> None:
    """The supervisor was stopped or starved, and perhaps the worker with it."""
    life, late = after(*UP), NOW + 90 + 90 / 8 + 0.1
    on_time = plan(life, DeadlinePassed(), OPEN, NOW + 90 + 90 / 8)[0]
    assert on_time.trouble == "not ready within start_timeout (90 s)"
    slept, actions = plan(life, DeadlinePassed(), OPEN, late)
    assert (slept, actions) == (life._replace(ready_by=late + 90), ())
    ended = plan(slept, DeadlinePassed(), OPEN, late + 90)[0]
    assert ended.trouble == "not ready within start_timeout (90 s)"
