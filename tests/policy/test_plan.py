"""The rules, one transition after the other: a table first, then what they promise."""

from __future__ import annotations

from collections.abc import Callable
from signal import SIGCONT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1

import pytest

from aiobgw._policy.actions import (
    Action,
    Drop,
    GiveUp,
    Launch,
    RecordUnknown,
    Retire,
    Signal,
    Withdraw,
)
from aiobgw._policy.ending import PENDING_SIGNALS
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
from aiobgw._policy.life import Due, Life, Rule, Situation
from aiobgw._policy.moves import KILL_TIMEOUT
from aiobgw._policy.phases import stricter
from aiobgw._policy.plan import plan
from aiobgw.spec import Phase, Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


NOW = 1_000.0
DELAY = 7.0
PATIENCE = 20.0
RULE = Rule(restart=Restart.ON_FAILURE, restart_delay=DELAY, stop_timeout=PATIENCE)

OPEN = Situation(Phase.RUNNING)
SMART = Situation(Phase.RUNNING, ShutdownMode.SMART)
FAST = Situation(Phase.RUNNING, ShutdownMode.FAST)
IMMEDIATE = Situation(Phase.RUNNING, ShutdownMode.IMMEDIATE)

NOT_STARTED, STARTING, RUNNING = WorkerState.NOT_STARTED, WorkerState.STARTING, WorkerState.RUNNING
STOPPING, BACKOFF, STOPPED = WorkerState.STOPPING, WorkerState.BACKOFF, WorkerState.STOPPED

CLEAN, FAILED = HasExited(ExitKind.CLEAN), HasExited(ExitKind.FAILED)
TERMINATED = HasExited(ExitKind.TERMINATED)
ASK = (Signal(SIGTERM), Signal(SIGCONT))
KILL_GROUP = Signal(SIGKILL, group=True)


def after(
    life: Life, *happenings: Happening, situation: Situation = OPEN, now: float = NOW
) -> Life:
    """Let things happen one after the other, all at the same moment."""
    for happening in happenings:
        life = plan(life, happening, situation, now)[0]
    return life


# Lives as they come about; the names are those of the tables below.


def registered(rule: Rule = RULE) -> Life:
    return Life(rule)


def launched(rule: Rule = RULE) -> Life:
    return after(registered(rule), Consider())


def greeted(rule: Rule = RULE) -> Life:
    return after(launched(rule), Hello())


def running(rule: Rule = RULE) -> Life:
    return after(greeted(rule), HasStarted())


def backing_off(rule: Rule = RULE) -> Life:
    return after(running(rule), FAILED)


def unforkable(rule: Rule = RULE) -> Life:
    return after(launched(rule), LaunchFailed("no memory"))


def terminating(rule: Rule = RULE) -> Life:
    return after(running(rule), TerminateAsked())


def terminating_unborn(rule: Rule = RULE) -> Life:
    return after(launched(rule), TerminateAsked())


def restarting(rule: Rule = RULE) -> Life:
    return after(running(rule), RestartAsked())


def killed(rule: Rule = RULE) -> Life:
    return after(running(rule), KillAsked())


def killed_unborn(rule: Rule = RULE) -> Life:
    return after(launched(rule), KillAsked())


def overdue(rule: Rule = RULE) -> Life:
    return after(terminating(rule), DeadlinePassed())


def stopped(rule: Rule = RULE) -> Life:
    return after(running(rule), CLEAN)


def gated(rule: Rule = RULE) -> Life:
    return after(registered(rule), Consider(), situation=Situation(Phase.SUPERVISOR_START))


LIVES: list[Callable[[], Life]] = [
    registered,
    gated,
    launched,
    greeted,
    running,
    backing_off,
    unforkable,
    terminating,
    terminating_unborn,
    restarting,
    killed,
    killed_unborn,
    overdue,
    stopped,
]
ALIVE = [make for make in LIVES if make is not stopped]


def test_every_state_is_among_the_lives() -> None:
    assert {make().state for make in LIVES} == set(WorkerState)


Row = tuple[Callable[[], Life], Happening, Situation, WorkerState, tuple[Action, ...], float | None]

# From, what happens, under which situation: to, with which actions, due in how many seconds.
TABLE: list[Row] = [
    # The way up.
    (registered, Consider(), OPEN, STARTING, (Launch(),), None),
    (launched, Hello(), OPEN, STARTING, (), None),
    (greeted, HasStarted(), OPEN, RUNNING, (), None),
    # Exits that nobody asked for.
    (running, CLEAN, OPEN, STOPPED, (Retire(),), None),
    (running, FAILED, OPEN, BACKOFF, (), DELAY),
    (running, HasExited(ExitKind.CRASHED), OPEN, BACKOFF, (), DELAY),
    (running, HasExited(ExitKind.UNKNOWN), OPEN, BACKOFF, (), DELAY),
    (greeted, FAILED, OPEN, BACKOFF, (), DELAY),
    (backing_off, DeadlinePassed(), OPEN, STARTING, (Launch(),), None),
    # Terminate.
    (registered, TerminateAsked(), OPEN, STOPPED, (Retire(),), None),
    (gated, TerminateAsked(), OPEN, STOPPED, (Retire(),), None),
    (launched, TerminateAsked(), OPEN, STOPPING, (Withdraw(),), PATIENCE),
    (greeted, TerminateAsked(), OPEN, STOPPING, ASK, PATIENCE),
    (running, TerminateAsked(), OPEN, STOPPING, ASK, PATIENCE),
    (backing_off, TerminateAsked(), OPEN, STOPPED, (Retire(),), None),
    (unforkable, TerminateAsked(), OPEN, STOPPED, (Retire(),), None),
    (terminating, TerminateAsked(), OPEN, STOPPING, (), PATIENCE),
    (restarting, TerminateAsked(), OPEN, STOPPING, (), PATIENCE),
    (terminating, TERMINATED, OPEN, STOPPED, (Retire(),), None),
    (terminating, HasStarted(), OPEN, STOPPING, (), PATIENCE),
    (terminating_unborn, Withdrawn(), OPEN, STOPPED, (Retire(),), None),
    (terminating_unborn, Hello(), OPEN, STOPPING, ASK, PATIENCE),
    (terminating_unborn, LaunchLost("?"), OPEN, STOPPED, (Retire(),), None),
    (terminating_unborn, LaunchFailed("?"), OPEN, STOPPED, (Retire(),), None),
    (terminating_unborn, DeadlinePassed(), OPEN, STOPPED, (Drop(), Retire()), None),
    (terminating, DeadlinePassed(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (overdue, HasExited(ExitKind.FAILED), OPEN, STOPPED, (Retire(),), None),
    (overdue, DeadlinePassed(), OPEN, STOPPING, (GiveUp(),), None),
    # Kill.
    (registered, KillAsked(), OPEN, STOPPED, (Retire(),), None),
    (backing_off, KillAsked(), OPEN, STOPPED, (Retire(),), None),
    (launched, KillAsked(), OPEN, STOPPING, (Withdraw(),), KILL_TIMEOUT),
    (killed_unborn, Hello(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (greeted, KillAsked(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (running, KillAsked(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (terminating, KillAsked(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (killed, TERMINATED, OPEN, STOPPED, (Retire(),), None),
    (killed, DeadlinePassed(), OPEN, STOPPING, (GiveUp(),), None),
    # Restart.
    (registered, RestartAsked(), OPEN, STARTING, (Launch(),), None),
    (launched, RestartAsked(), OPEN, STARTING, (), None),
    (running, RestartAsked(), OPEN, STOPPING, ASK, PATIENCE),
    (greeted, RestartAsked(), OPEN, STOPPING, ASK, PATIENCE),
    (restarting, RestartAsked(), OPEN, STOPPING, (), PATIENCE),
    (restarting, TERMINATED, OPEN, STARTING, (Launch(),), None),
    (restarting, DeadlinePassed(), OPEN, STOPPING, (KILL_GROUP,), KILL_TIMEOUT),
    (backing_off, RestartAsked(), OPEN, STARTING, (Launch(),), None),
    (unforkable, RestartAsked(), OPEN, STARTING, (Launch(),), None),
    (terminating, RestartAsked(), OPEN, STOPPING, (), PATIENCE),
    # Signals.
    (running, SignalAsked(SIGUSR1), OPEN, RUNNING, (Signal(SIGUSR1),), None),
    (terminating, SignalAsked(SIGUSR1), OPEN, STOPPING, (Signal(SIGUSR1),), PATIENCE),
    (registered, SignalAsked(SIGUSR1), OPEN, NOT_STARTED, (), None),
    (backing_off, SignalAsked(SIGUSR1), OPEN, BACKOFF, (), DELAY),
    # Launches that came to nothing.
    (launched, LaunchLost("?"), OPEN, STARTING, (Launch(),), None),
    (greeted, LaunchLost("?"), OPEN, STARTING, (Launch(),), None),
    (launched, LaunchFailed("?"), OPEN, NOT_STARTED, (), 1.0),
    (unforkable, DeadlinePassed(), OPEN, STARTING, (Launch(),), None),
    # SMART: waits for what runs.
    (registered, StopBegan(), SMART, STOPPED, (Retire(),), None),
    (backing_off, StopBegan(), SMART, STOPPED, (Retire(),), None),
    (launched, StopBegan(), SMART, STARTING, (), None),
    (running, StopBegan(), SMART, RUNNING, (), None),
    (running, FAILED, SMART, STOPPED, (Retire(),), None),
    (restarting, TERMINATED, SMART, STOPPED, (Retire(),), None),
    (launched, LaunchLost("?"), SMART, STOPPED, (Retire(),), None),
    (launched, LaunchFailed("?"), SMART, STOPPED, (Retire(),), None),
    (running, RestartAsked(), SMART, RUNNING, (), None),
    (running, TerminateAsked(), SMART, STOPPING, ASK, PATIENCE),
    # FAST: asks.
    (registered, StopBegan(), FAST, STOPPED, (Retire(),), None),
    (backing_off, StopBegan(), FAST, STOPPED, (Retire(),), None),
    (launched, StopBegan(), FAST, STOPPING, (Withdraw(),), PATIENCE),
    (greeted, StopBegan(), FAST, STOPPING, ASK, PATIENCE),
    (running, StopBegan(), FAST, STOPPING, ASK, PATIENCE),
    (terminating, StopBegan(), FAST, STOPPING, (), PATIENCE),
    (restarting, StopBegan(), FAST, STOPPING, (), PATIENCE),
    (killed, StopBegan(), FAST, STOPPING, (), KILL_TIMEOUT),
    (terminating_unborn, Hello(), FAST, STOPPING, ASK, PATIENCE),
    (
        overdue,
        DeadlinePassed(),
        FAST,
        STOPPED,
        (GiveUp(), RecordUnknown("SIGKILL does not end it"), Retire()),
        None,
    ),
    # IMMEDIATE: does not ask.
    (registered, StopBegan(), IMMEDIATE, STOPPED, (Retire(),), None),
    (backing_off, StopBegan(), IMMEDIATE, STOPPED, (Retire(),), None),
    (launched, StopBegan(), IMMEDIATE, STOPPED, (Drop(), Retire()), None),
    (terminating_unborn, StopBegan(), IMMEDIATE, STOPPED, (Drop(), Retire()), None),
    (greeted, StopBegan(), IMMEDIATE, STOPPING, (Signal(SIGQUIT),), KILL_TIMEOUT),
    (running, StopBegan(), IMMEDIATE, STOPPING, (Signal(SIGQUIT),), KILL_TIMEOUT),
    (terminating, StopBegan(), IMMEDIATE, STOPPING, (Signal(SIGQUIT),), KILL_TIMEOUT),
    (restarting, TERMINATED, IMMEDIATE, STOPPED, (Retire(),), None),
    (
        overdue,
        DeadlinePassed(),
        IMMEDIATE,
        STOPPED,
        (GiveUp(), RecordUnknown("SIGKILL does not end it"), Retire()),
        None,
    ),
]


def _id(row: Row) -> str:
    stop = row[2].stop
    where = f" under {stop.name}" if stop is not None else ""
    return f"{row[0].__name__}, {row[1]!r}{where}"


@pytest.mark.parametrize("row", TABLE, ids=_id)
def test_the_table_holds(row: Row) -> None:
    make, happening, situation, state, actions, due_in = row
    life, done = plan(make(), happening, situation, NOW)

    assert life.state is state
    assert done == actions
    assert life.deadline == (None if due_in is None else NOW + due_in)
    assert (life.due is None) == (life.deadline is None)


def test_no_row_of_the_table_is_there_twice() -> None:
    assert len({_id(row) for row in TABLE}) == len(TABLE)


# Gates and phases.


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("start_when", Phase)
def test_a_worker_starts_in_its_phase_or_a_later_one(phase: Phase, start_when: Phase) -> None:
    life, actions = plan(Life(Rule(start_when=start_when)), Consider(), Situation(phase), NOW)

    assert (actions == (Launch(),)) == (phase >= start_when)
    assert (life.state is STARTING) == (phase >= start_when)


def test_a_closed_gate_is_named_as_the_reason() -> None:
    assert gated().reason == "waits for phase RUNNING"


def test_a_gate_that_opens_starts_a_worker_once() -> None:
    life, first = plan(gated(), Consider(), OPEN, NOW)
    life, second = plan(life, Consider(), OPEN, NOW)

    assert (first, second) == ((Launch(),), ())
    assert life.incarnation == 1


def test_opening_a_gate_does_not_cut_a_restart_delay_short() -> None:
    assert plan(backing_off(), Consider(), OPEN, NOW) == (backing_off(), ())


@pytest.mark.parametrize("waiting", [backing_off, unforkable], ids=lambda make: make.__name__)
def test_a_gate_that_was_closed_again_holds_back_the_next_start_and_opening_it_makes_it(
    waiting: Callable[[], Life],
) -> None:
    closed = Situation(Phase.CONSISTENT_STATE)
    held, actions = plan(waiting(), DeadlinePassed(), closed, NOW + DELAY)
    assert actions == ()
    assert held.reason == "waits for phase RUNNING"
    assert held.deadline is None

    opened, actions = plan(held, Consider(), OPEN, NOW + 99)
    assert (opened.state, actions) == (STARTING, (Launch(),))


def test_closing_a_gate_stops_nobody() -> None:
    assert plan(running(), Consider(), Situation(Phase.SUPERVISOR_START), NOW) == (running(), ())


@pytest.mark.parametrize("mode", ShutdownMode)
def test_no_gate_is_open_once_a_stop_began(mode: ShutdownMode) -> None:
    assert plan(registered(), Consider(), Situation(Phase.RUNNING, mode), NOW)[1] == ()


# Restarts by the rule.


def test_a_restart_by_the_rule_is_counted_and_is_a_new_incarnation() -> None:
    again = after(backing_off(), DeadlinePassed())
    assert (again.incarnation, again.restarts) == (2, 1)


def test_the_delay_is_counted_from_the_exit() -> None:
    life, _ = plan(running(), FAILED, OPEN, NOW + 123)
    assert life.deadline == NOW + 123 + DELAY


def test_a_back_off_says_what_it_waits_for() -> None:
    assert backing_off().reason == "failed exit; waits 7 s"


def test_a_new_incarnation_inherits_nothing_from_the_one_before() -> None:
    scarred = after(restarting(), DeadlinePassed(), SignalAsked(SIGUSR1))
    assert scarred.overdue
    fresh = after(scarred, HasExited(ExitKind.FAILED))

    expected = launched()._replace(incarnation=2, begun=True, was_ready=True)
    assert fresh == expected


# Terminate, in every moment it can come.


def test_a_terminate_together_with_the_exit_prevents_the_restart() -> None:
    life = after(running(), TerminateAsked(), FAILED)
    assert (life.state, life.reason) == (STOPPED, "terminated")


def test_a_terminate_right_after_the_exit_prevents_the_restart() -> None:
    life = after(running(), FAILED, TerminateAsked())
    assert life.state is STOPPED


def test_terminate_before_the_start_says_so() -> None:
    assert after(registered(), TerminateAsked()).reason == "terminated before it started"


def test_a_terminate_before_hello_is_sent_with_the_hello_and_once() -> None:
    life, first = plan(terminating_unborn(), Hello(), OPEN, NOW)
    _, second = plan(life, HasStarted(), OPEN, NOW)
    assert (first, second) == (ASK, ())


def test_a_terminate_before_hello_that_meets_an_immediate_stop_never_asks() -> None:
    """Whoever says hello during an IMMEDIATE stop is not asked politely."""
    assert plan(terminating_unborn(), Hello(), IMMEDIATE, NOW)[1] == (Signal(SIGQUIT),)


def test_terminating_again_does_not_move_the_deadline() -> None:
    once = terminating()
    again, actions = plan(once, TerminateAsked(), OPEN, NOW + 5)
    assert (again, actions) == (once, ())


def test_a_terminate_turns_an_intended_restart_into_the_end() -> None:
    life = after(restarting(), TerminateAsked(), TERMINATED)
    assert life.state is STOPPED


def test_a_stop_timeout_of_zero_kills_at_once() -> None:
    life = terminating(Rule(stop_timeout=0.0))
    assert life.deadline == NOW
    life, actions = plan(life, DeadlinePassed(), OPEN, NOW)
    assert (life.overdue, actions) == (True, (KILL_GROUP,))


def test_who_is_killed_for_being_late_is_overdue_and_who_is_killed_on_request_is_not() -> None:
    assert overdue().overdue
    assert not killed().overdue


def test_a_kill_comes_after_the_signals_that_were_asked_for_before() -> None:
    life = after(launched(), SignalAsked(SIGUSR1), KillAsked())
    assert plan(life, Hello(), OPEN, NOW)[1] == (Signal(SIGUSR1), KILL_GROUP)


def test_a_launch_that_was_terminated_and_never_came_up_is_dropped_and_over() -> None:
    life, actions = plan(terminating_unborn(), DeadlinePassed(), OPEN, NOW)
    assert actions == (Drop(), Retire())
    assert life.reason == "terminated; its launch never came up"


# An intended restart.


def test_an_intended_restart_counts_for_nothing_and_does_not_wait() -> None:
    again = after(restarting(), TERMINATED)
    assert (again.state, again.incarnation, again.restarts) == (STARTING, 2, 0)


def test_an_intended_restart_in_back_off_means_now_and_counts_for_nothing() -> None:
    again = after(backing_off(), RestartAsked())
    assert (again.state, again.incarnation, again.restarts) == (STARTING, 2, 0)


def test_an_intended_restart_starts_even_what_is_never_restarted() -> None:
    assert after(restarting(Rule(restart=Restart.NEVER)), CLEAN).state is STARTING


def test_an_intended_restart_does_not_open_a_gate() -> None:
    closed = Situation(Phase.SUPERVISOR_START)
    assert plan(gated(), RestartAsked(), closed, NOW) == (gated(), ())
    assert after(restarting(), TERMINATED, situation=closed).state is BACKOFF


def test_an_intended_restart_of_who_is_overdue_still_starts_it_again() -> None:
    life = after(restarting(), DeadlinePassed(), HasExited(ExitKind.FAILED))
    assert (life.state, life.incarnation, life.overdue) == (STARTING, 2, False)


def test_an_intended_restart_is_spent_by_one_start() -> None:
    again = after(restarting(), TERMINATED, Hello(), HasStarted(), FAILED)
    assert again.state is BACKOFF


# Signals.


def test_signals_before_hello_are_sent_with_the_hello_in_their_order() -> None:
    life = after(launched(), *(SignalAsked(number) for number in (10, 12, 10)))
    life, actions = plan(life, Hello(), OPEN, NOW)
    assert actions == (Signal(10), Signal(12), Signal(10))
    assert life.signals == ()


def test_of_many_signals_before_hello_the_last_ones_are_kept() -> None:
    life = after(launched(), *(SignalAsked(1 + n) for n in range(PENDING_SIGNALS + 4)))
    assert len(life.signals) == PENDING_SIGNALS
    assert life.signals[-1] == PENDING_SIGNALS + 4


def test_a_signal_for_who_waits_is_not_kept_for_its_next_life() -> None:
    life = after(backing_off(), SignalAsked(SIGUSR1), DeadlinePassed())
    assert plan(life, Hello(), OPEN, NOW)[1] == ()


def test_a_signal_leaves_the_rest_to_the_rule() -> None:
    life = after(running(), SignalAsked(SIGTERM), HasExited(ExitKind.FAILED))
    assert life.state is BACKOFF


# Launches that reach no process.


def test_a_lost_launch_is_made_again_under_the_same_number() -> None:
    life = after(launched(), LaunchLost("the spare died"), LaunchLost("so did the next"))
    assert (life.state, life.incarnation, life.restarts) == (STARTING, 1, 0)


@pytest.mark.parametrize(
    ("restart", "state"),
    [(Restart.NEVER, STOPPED), (Restart.ON_FAILURE, BACKOFF), (Restart.ALWAYS, BACKOFF)],
)
def test_the_third_lost_launch_is_an_exit_of_unknown_status_and_left_to_the_rule(
    restart: Restart, state: WorkerState
) -> None:
    life = after(launched(Rule(restart=restart)), LaunchLost("one"), LaunchLost("two"))
    life, actions = plan(life, LaunchLost("three"), OPEN, NOW)

    assert life.state is state
    assert actions[0] == RecordUnknown("3 launches reached no process: three")
    assert actions[1:] == ((Retire(),) if state is STOPPED else ())


def test_after_three_lost_launches_the_next_attempt_is_another_incarnation() -> None:
    lost = (LaunchLost("?"),) * 3
    life = after(launched(), *lost, DeadlinePassed())
    assert (life.incarnation, life.restarts, life.failures) == (2, 1, 0)

    again = after(life, *lost[:2])
    assert (again.state, again.incarnation) == (STARTING, 2)


def test_a_launch_that_started_clears_the_account_of_lost_ones() -> None:
    life = after(launched(), LaunchLost("?"), LaunchLost("?"), Hello(), HasStarted())
    assert (life.state, life.failures) == (RUNNING, 0)


def test_failed_forks_wait_longer_each_time() -> None:
    life, waits = launched(), []
    for _ in range(8):
        life = after(life, LaunchFailed("no memory"))
        assert life.deadline is not None
        waits.append(life.deadline - NOW)
        life = after(life, DeadlinePassed())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert (life.incarnation, life.restarts) == (1, 0)


def test_a_failed_fork_ends_what_is_never_restarted_and_says_why() -> None:
    life, actions = plan(
        launched(Rule(restart=Restart.NEVER)), LaunchFailed("no memory"), OPEN, NOW
    )
    assert (life.state, actions) == (STOPPED, (Retire(),))
    assert life.reason == "could not be launched: no memory"


def test_a_failed_fork_of_who_has_lived_before_is_a_back_off() -> None:
    life = after(backing_off(), DeadlinePassed(), LaunchFailed("no memory"))
    assert (life.state, life.incarnation, life.restarts) == (BACKOFF, 2, 1)
    assert life.deadline == NOW + 1.0

    again = after(life, DeadlinePassed())
    assert (again.state, again.incarnation, again.restarts) == (STARTING, 2, 1)


# Stops.


def test_a_stop_only_gets_stricter() -> None:
    modes = list(ShutdownMode)
    for now in modes:
        for asked in modes:
            assert stricter(now, asked) is max(now, asked)
        assert stricter(None, now) is now


def test_a_smart_stop_that_becomes_fast_asks_the_running_ones() -> None:
    waiting = after(running(), StopBegan(), situation=SMART)
    assert plan(waiting, StopBegan(), FAST, NOW)[1] == ASK


def test_a_fast_stop_that_becomes_immediate_shortens_the_patience_and_never_extends_it() -> None:
    asked = after(running(), StopBegan(), situation=FAST)

    early, actions = plan(asked, StopBegan(), IMMEDIATE, NOW + 1)
    assert (early.deadline, actions) == (NOW + 1 + KILL_TIMEOUT, (Signal(SIGQUIT),))

    late, _ = plan(asked, StopBegan(), IMMEDIATE, NOW + PATIENCE - 1)
    assert late.deadline == NOW + PATIENCE


def test_an_immediate_stop_does_not_give_a_killed_worker_a_second_life() -> None:
    life, _ = plan(killed(), StopBegan(), IMMEDIATE, NOW + 2)
    assert (life.due, life.deadline) == (Due.GIVE_UP, NOW + KILL_TIMEOUT)


def test_a_stop_says_what_it_was_that_ended_a_worker() -> None:
    assert after(registered(), StopBegan(), situation=FAST).reason == "the supervisor is stopping"
    life = after(running(), StopBegan(), TERMINATED, situation=FAST)
    assert life.reason == "the supervisor is stopping"


def test_an_unkillable_worker_keeps_its_slot_until_it_is_over_after_all() -> None:
    stuck, actions = plan(overdue(), DeadlinePassed(), OPEN, NOW)
    assert (stuck.state, actions) == (STOPPING, (GiveUp(),))
    assert plan(stuck, TERMINATED, OPEN, NOW)[1] == (Retire(),)


def test_an_unkillable_worker_holds_up_no_stop() -> None:
    stuck, actions = plan(overdue(), DeadlinePassed(), FAST, NOW)
    recorded = RecordUnknown("SIGKILL does not end it")
    assert (stuck.state, actions) == (STOPPED, (GiveUp(), recorded, Retire()))


OBEYS, IGNORES, CANNOT_DIE = "obeys", "ignores all but SIGKILL", "cannot be killed"


def _end(life: Life, actions: tuple[Action, ...], situation: Situation, process: str) -> list[Life]:
    """Play the process and the clock until nothing more happens; return the lives."""
    lives, now = [life], NOW
    while life.state is not STOPPED and len(lives) < 20:
        signals = [action.signum for action in actions if isinstance(action, Signal)]
        deadly = {OBEYS: {SIGTERM, SIGQUIT, SIGKILL}, IGNORES: {SIGKILL}, CANNOT_DIE: set()}
        happening: Happening = DeadlinePassed()
        if life.has_process and deadly[process].intersection(signals):
            happening = HasExited(ExitKind.TERMINATED)
        elif life.deadline is None:
            break  # nothing will ever happen again
        else:
            now = max(now, life.deadline)
        life, actions = plan(life, happening, situation, now)
        lives.append(life)
    return lives


@pytest.mark.parametrize("process", [OBEYS, IGNORES, CANNOT_DIE])
@pytest.mark.parametrize("situation", [FAST, IMMEDIATE], ids=["FAST", "IMMEDIATE"])
@pytest.mark.parametrize("make", LIVES, ids=lambda make: make.__name__)
def test_every_life_ends_under_a_stop_whatever_its_process_does(
    make: Callable[[], Life], situation: Situation, process: str
) -> None:
    before = make()
    life, actions = plan(before, StopBegan(), situation, NOW)
    # A signal that is on its way from before the stop counts, too.
    if before.kill or before.overdue:
        actions = (*actions, KILL_GROUP)
    elif before.asked:
        actions = (*actions, Signal(SIGTERM))
    lives = _end(life, actions, situation, process)

    assert lives[-1].state is STOPPED, lives
    assert lives[-1].deadline is None


@pytest.mark.parametrize("make", ALIVE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("mode", ShutdownMode)
def test_no_life_is_launched_by_anything_once_a_stop_began(
    make: Callable[[], Life], mode: ShutdownMode
) -> None:
    situation = Situation(Phase.RUNNING, mode)
    life = after(make(), StopBegan(), situation=situation)
    for happening in EVERYTHING:
        assert Launch() not in plan(life, happening, situation, NOW)[1], happening


# Too late, or out of place.

EVERYTHING: list[Happening] = [
    Consider(),
    Hello(),
    HasStarted(),
    HasExited(ExitKind.CRASHED),
    LaunchLost("?"),
    LaunchFailed("?"),
    Withdrawn(),
    TerminateAsked(),
    KillAsked(),
    RestartAsked(),
    SignalAsked(SIGUSR1),
    CycleBegan("?"),
    StopBegan(),
    DeadlinePassed(),
]


@pytest.mark.parametrize("happening", EVERYTHING, ids=repr)
@pytest.mark.parametrize("situation", [OPEN, SMART, FAST, IMMEDIATE])
def test_nothing_happens_to_a_worker_that_is_over(
    happening: Happening, situation: Situation
) -> None:
    assert plan(stopped(), happening, situation, NOW) == (stopped(), ())


LATE: list[tuple[Callable[[], Life], Happening]] = [
    (launched, Consider()),
    (running, Consider()),
    (terminating, Consider()),
    (running, Hello()),
    (running, HasStarted()),
    (running, DeadlinePassed()),
    (registered, DeadlinePassed()),
    (running, Withdrawn()),
    (running, LaunchFailed("?")),
    (backing_off, Hello()),
    (backing_off, LaunchLost("?")),
    (backing_off, LaunchFailed("?")),
    (backing_off, Withdrawn()),
    (registered, SignalAsked(SIGUSR1)),
    (backing_off, SignalAsked(SIGUSR1)),
    (launched, RestartAsked()),
    (terminating, RestartAsked()),
    (killed, RestartAsked()),
    (killed, TerminateAsked()),
    (terminating_unborn, TerminateAsked()),
]


@pytest.mark.parametrize(("make", "happening"), LATE)
def test_what_is_out_of_place_changes_nothing(
    make: Callable[[], Life], happening: Happening
) -> None:
    assert plan(make(), happening, OPEN, NOW) == (make(), ())


def test_an_intended_restart_during_a_stop_changes_nothing() -> None:
    for make in LIVES:
        for situation in (SMART, FAST, IMMEDIATE):
            assert plan(make(), RestartAsked(), situation, NOW) == (make(), ())


def given_up() -> Life:
    """A worker that SIGKILL did not end, before any stop."""
    return after(overdue(), DeadlinePassed())


@pytest.mark.parametrize("situation", [SMART, FAST, IMMEDIATE])
def test_a_worker_that_was_given_up_on_holds_up_no_later_stop(situation: Situation) -> None:
    life, actions = plan(given_up(), StopBegan(), situation, NOW)
    assert life.state is STOPPED
    assert actions[-1] == Retire()


def test_signals_remembered_before_hello_survive_a_lost_launch() -> None:
    life = after(launched(), SignalAsked(12), LaunchLost("?"))
    assert plan(life, Hello(), OPEN, NOW)[1] == (Signal(12),)


def test_a_restart_that_a_gate_held_back_is_counted_when_it_comes() -> None:
    life = after(backing_off(), DeadlinePassed(), situation=Situation(Phase.SUPERVISOR_START))
    assert life.restarts == 0
    assert after(life, Consider()).restarts == 1


def test_killing_again_does_not_put_off_the_end() -> None:
    killed_once = after(running(), KillAsked())
    assert plan(killed_once, KillAsked(), OPEN, NOW + 4.9) == (killed_once, ())


def test_forks_that_failed_do_not_count_as_launches_that_were_lost() -> None:
    life = registered()
    for _ in range(3):
        life = after(life, Consider() if life.due is None else DeadlinePassed(), LaunchFailed("?"))
    life = after(life, DeadlinePassed(), LaunchLost("?"))
    assert life.state is WorkerState.STARTING
