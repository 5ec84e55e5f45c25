"""How often a worker may fail, and what follows when it failed more often, or is essential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from aiobgw._policy.actions import (
    Action,
    BeginCycle,
    FailSupervisor,
    GiveUp,
    RecordUnknown,
    Retire,
    StopGroup,
)
from aiobgw._policy.backoff import restart_delay
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
    OverLimit,
    RestartAsked,
    SaidReady,
    StopBegan,
    TerminateAsked,
)
from aiobgw._policy.intensity import escalation
from aiobgw._policy.life import Life, Rule, Situation
from aiobgw._policy.plan import plan
from aiobgw.spec import Escalate, Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState

OPEN = Situation()
BACKOFF, RUNNING, STOPPED = WorkerState.BACKOFF, WorkerState.RUNNING, WorkerState.STOPPED
FAILED, CLEAN = HasExited(ExitKind.FAILED), HasExited(ExitKind.CLEAN)
TERMINATED = HasExited(ExitKind.TERMINATED)
COMES_UP = (Hello(), HasStarted())

NOW = 1_000.0
EXACT = Rule(restart_jitter=0.0)


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


def after(
    life: Life, *happenings: Happening, situation: Situation = OPEN, now: float = NOW
) -> Life:
    """Let things happen one after the other, all at the same moment."""
    for happening in happenings:
        life = plan(life, happening, situation, now)[0]
    return life


def running(rule: Rule = EXACT, now: float = NOW) -> Life:
    return after(Life(rule), Consider(), *COMES_UP, now=now)


def again(life: Life) -> Life:
    """Have a worker that waits come up, at the moment for which that is planned."""
    assert life.deadline is not None
    return after(life, DeadlinePassed(), *COMES_UP, now=life.deadline)


# The streak.


def test_each_failure_in_a_row_makes_the_pause_longer() -> None:
    life, pauses = running(replace(EXACT, max_restarts=None)), []
    for _ in range(8):
        now = life.healthy_since
        assert now is not None
        life = after(life, FAILED, now=now)
        assert life.deadline is not None
        pauses.append(life.deadline - now)
        life = again(life)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("reset", [0.0, 5.0, None])
@pytest.mark.parametrize(("missing", "streak"), [(0.0, 1), (0.25, 4)])
def test_a_streak_ends_exactly_with_the_healthy_time(
    reset: float | None, missing: float, streak: int
) -> None:
    if reset == 0.0 and missing:
        return  # nobody is healthy for less than no time
    rule = replace(EXACT, restart_reset=reset)
    ended = NOW + (60.0 if reset is None else reset) - missing
    life = after(running(rule)._replace(streak=3), FAILED, now=ended)
    assert life.streak == streak
    assert life.deadline == ended + restart_delay(rule, streak, 0.0)


def test_health_begins_when_a_worker_is_ready_and_not_when_it_runs() -> None:
    rule = replace(EXACT, needs_ready=True, restart_reset=10.0)
    life = running(rule)._replace(streak=3)
    assert (life.state, life.ready) == (RUNNING, False)
    assert after(life, FAILED, now=NOW + 500).streak == 4

    ready = after(life, SaidReady(), now=NOW + 490.5)
    assert after(ready, FAILED, now=NOW + 500).streak == 4
    assert after(ready, FAILED, now=NOW + 500.5).streak == 1


ENDS_OF_HEALTH: list[tuple[str, tuple[Happening, ...], int]] = [
    # What ends a healthy incarnation, and the streak before anything else fails.
    ("a restart that was asked for", (RestartAsked(), TERMINATED), 0),
    ("somebody else's crash", (CycleBegan("x"), TERMINATED), 0),
    ("its own failure", (FAILED,), 1),
    ("too much memory", (OverLimit("much"), FAILED), 1),
]


@pytest.mark.parametrize(("what", "ending", "streak"), ENDS_OF_HEALTH, ids=lambda row: str(row))
def test_a_healthy_incarnation_ends_the_streak_however_it_ends(
    what: str, ending: tuple[Happening, ...], streak: int
) -> None:
    """Or a streak of long ago would go on after an intended restart (systemd#43813)."""
    rule = replace(EXACT, member=what == "somebody else's crash")
    situation = replace(OPEN, cycle=rule.member)
    life = running(rule)._replace(streak=5)
    assert after(life, *ending, situation=situation, now=NOW + 60).streak == streak
    assert after(life, *ending, situation=situation, now=NOW + 59).streak == 5 + streak


def test_the_time_in_which_a_sick_worker_is_ended_is_no_health() -> None:
    life = after(running()._replace(streak=5), OverLimit("uses much"), now=NOW + 55)
    ended = after(life, FAILED, now=NOW + 65)
    assert ended.streak == 6
    assert ended.reason.startswith("uses much; waits ")


def test_a_failed_fork_has_a_back_off_of_its_own() -> None:
    life = after(running(), FAILED)
    assert life.deadline == NOW + 1
    for failures, pause in enumerate((1, 2, 4, 8, 16, 32, 60), start=1):
        now = life.deadline or 0.0
        life = after(life, DeadlinePassed(), LaunchFailed("no memory"), now=now)
        assert (life.deadline, life.failures) == (now + pause, failures)
        assert (life.streak, len(life.recent), life.restarts) == (1, 1, 1)


def test_launches_that_reach_no_process_are_a_failure_whose_pause_is_spread() -> None:
    lost = LaunchLost("its spare died", luck=1.0)
    life = after(Life(Rule()), Consider(), lost, lost, lost)
    assert (life.state, life.streak, len(life.recent)) == (BACKOFF, 1, 1)
    assert life.deadline == NOW + 1.25


# The window.


def failing(rule: Rule, *moments: float) -> Life:
    """Fail at these moments, each time right after a start; stop when that is too often."""
    life = running(rule)
    for now in moments:
        life = after(life, FAILED, now=now)
        if life.state is STOPPED:
            break
        life = after(life, DeadlinePassed(), *COMES_UP, now=now)
    return life


WINDOWS: list[tuple[int | None, float, list[float], bool]] = [
    # max_restarts, max_seconds, moments of failures, whether the last one is too much
    (1, 5.0, [0], False),
    (1, 5.0, [0, 5], True),  # the edge belongs to it, as in OTP's add_restart
    (1, 5.0, [0, 5.125], False),
    (1, 5.0, [0, 6, 12, 18], False),
    (1, 5.0, [0, 6, 11], True),
    (2, 5.0, [0, 1, 5], True),
    (2, 5.0, [0, 4, 6], False),  # it slides: a window that starts anew at 5 would forget 4 ...
    (2, 5.0, [0, 4, 6, 9], True),  # ... and not see that 4, 6 and 9 are three
    (5, 60.0, [0, 10, 20, 30, 40, 60], True),
    (5, 60.0, [0, 10, 20, 30, 40, 60.5, 70.75], False),
    (0, 5.0, [0], True),
    (None, 5.0, [0] * 50, False),
]


@pytest.mark.parametrize(("most", "seconds", "moments", "too_much"), WINDOWS, ids=str)
def test_one_more_than_the_window_allows_ends_it_for_good(
    most: int | None, seconds: float, moments: list[float], too_much: bool
) -> None:
    life = failing(replace(EXACT, max_restarts=most, max_seconds=seconds), *moments)
    assert life.state is (STOPPED if too_much else RUNNING)
    assert life.restarts == len(moments) - too_much
    assert too_much == ("not restarted any more" in life.reason)


def test_the_reason_says_what_happened_and_what_was_allowed() -> None:
    rule = replace(EXACT, max_restarts=1, max_seconds=90.0)
    assert failing(rule, 0, 1).reason == (
        "failed exit; not restarted any more: max_restarts=1 in max_seconds=90"
    )
    life = after(failing(rule, 0), OverLimit("uses 3 GiB"), FAILED, now=1.0)
    assert life.reason.startswith("uses 3 GiB; not restarted any more: ")


def test_a_pause_is_told_in_seconds_that_people_read() -> None:
    rule = replace(EXACT, restart_delay=86_399.96, max_restarts=None)
    assert after(running(rule), FAILED).reason == "failed exit; waits 86400 s"
    assert after(running(replace(rule, restart_delay=1 / 3)), FAILED).reason.endswith("0.33 s")


def test_clean_exits_that_are_followed_by_a_start_count_like_failures() -> None:
    life = running(replace(EXACT, restart=Restart.ALWAYS, max_restarts=2))
    for _ in range(2):
        life = again(after(life, CLEAN))
    assert (life.streak, life.restarts) == (2, 2)
    assert after(life, CLEAN).state is STOPPED


def test_intended_restarts_count_for_nothing_and_trip_nothing() -> None:
    life = running(replace(EXACT, max_restarts=0, escalate=Escalate.FAIL, essential=True))
    for kind in (ExitKind.TERMINATED, ExitKind.FAILED):  # FAILED: it had to be killed
        life, actions = plan(after(life, RestartAsked()), HasExited(kind), OPEN, NOW)
        life = after(life, *COMES_UP)
        assert not any(isinstance(action, FailSupervisor) for action in actions)
        assert (life.state, life.streak, life.recent, life.restarts) == (RUNNING, 0, (), 0)
    assert life.incarnation == 3


def test_an_intended_restart_that_finds_its_gate_closed_stays_an_intended_one() -> None:
    closed = replace(OPEN, phase=min(type(OPEN.phase)))
    asked = after(running(), RestartAsked())
    waiting = after(after(running(), FAILED), RestartAsked(), situation=closed)
    for life in (after(asked, TERMINATED, situation=closed), waiting):
        assert life.state is BACKOFF
        assert after(life, Consider()).restarts == 0


def test_crash_cycles_count_for_who_crashed_and_not_for_who_was_ended_by_them() -> None:
    rule = replace(EXACT, member=True, max_restarts=1)
    crash = HasExited(ExitKind.CRASHED, abrupt=True)
    life, actions = plan(running(rule), crash, OPEN, NOW)
    assert actions == (BeginCycle(),)
    assert (life.streak, len(life.recent)) == (1, 1)
    again = after(life, Consider(), *COMES_UP)
    assert plan(again, crash, OPEN, NOW) == (
        again._replace(
            state=STOPPED,
            has_process=False,
            ready=False,
            healthy_since=None,
            streak=2,
            recent=(NOW, NOW),
            reason="crashed exit; not restarted any more: max_restarts=1 in max_seconds=60",
        ),
        (BeginCycle(), Retire()),
    )

    in_cycle = replace(OPEN, cycle=True)
    for _ in range(5):
        ended = after(running(rule), CycleBegan("x crashed"), TERMINATED, situation=in_cycle)
        assert (ended.state, ended.streak, ended.recent) == (BACKOFF, 0, ())


ESCALATIONS: list[tuple[Escalate, tuple[Action, ...]]] = [
    (Escalate.IGNORE, ()),
    (Escalate.STOP_GROUP, (StopGroup("why"),)),
    (Escalate.FAIL, (FailSupervisor("why"),)),
]


@pytest.mark.parametrize(("escalate", "actions"), ESCALATIONS, ids=str)
def test_what_follows_for_others_is_as_the_rule_says(
    escalate: Escalate, actions: tuple[Action, ...]
) -> None:
    rule = replace(EXACT, escalate=escalate, max_restarts=0)
    assert escalation(Life(rule), "why") == actions

    life, done = plan(running(rule), FAILED, OPEN, NOW)
    assert [type(action) for action in done] == [Retire, *map(type, actions)]
    assert all(action.why == life.reason for action in done[1:])  # type: ignore[union-attr]


@pytest.mark.parametrize("escalate", Escalate)
def test_who_is_never_restarted_or_is_asked_to_end_escalates_nothing(escalate: Escalate) -> None:
    for rule in (
        replace(EXACT, escalate=escalate, restart=Restart.NEVER),
        replace(EXACT, escalate=escalate, max_restarts=0),
    ):
        asked = rule.restart is not Restart.NEVER
        life = after(running(rule), TerminateAsked()) if asked else running(rule)
        assert plan(life, FAILED, OPEN, NOW)[1] == (Retire(),)


# Essential workers.

SMART = Situation(stop=ShutdownMode.SMART)
FAST = Situation(stop=ShutdownMode.FAST)
Ends = tuple[Callable[[Rule], Life], tuple[Happening, ...], Situation, bool]


def waiting(rule: Rule) -> Life:
    return after(running(rule), FAILED)


def registered(rule: Rule) -> Life:
    return Life(rule)


def launched(rule: Rule) -> Life:
    return after(Life(rule), Consider())


LOSSES: dict[str, Ends] = {
    "it returned": (running, (CLEAN,), OPEN, True),
    "it failed too often": (waiting, (DeadlinePassed(), *COMES_UP, FAILED), OPEN, True),
    "it was terminated": (running, (TerminateAsked(), TERMINATED), OPEN, False),
    "it had to be killed": (running, (TerminateAsked(), FAILED), OPEN, False),
    "it was killed": (running, (KillAsked(), TERMINATED), OPEN, False),
    "it failed as it was terminated": (running, (TerminateAsked(), CLEAN), OPEN, False),
    "terminated in its pause": (waiting, (TerminateAsked(),), OPEN, False),
    "killed in its pause": (waiting, (KillAsked(),), OPEN, False),
    "terminated before it started": (registered, (TerminateAsked(),), OPEN, False),
    "killed before it started": (registered, (KillAsked(),), OPEN, False),
    "its launch was taken back": (launched, (TerminateAsked(), DeadlinePassed()), OPEN, False),
    "a stop in its pause": (waiting, (StopBegan(),), FAST, False),
    "a stop": (running, (StopBegan(), TERMINATED), FAST, False),
    "a stop that waits for it": (running, (StopBegan(), CLEAN), SMART, False),
    "it crashed during a stop": (running, (HasExited(ExitKind.CRASHED),), SMART, False),
}


@pytest.mark.parametrize("what", LOSSES)
def test_the_end_of_an_essential_worker_fails_the_supervisor_unless_it_was_asked_for(
    what: str,
) -> None:
    make, happenings, situation, fails = LOSSES[what]
    life, actions = make(replace(EXACT, essential=True, max_restarts=1)), ()
    for happening in happenings:
        life, actions = plan(life, happening, situation, NOW)
    assert life.state is STOPPED
    failures = [action for action in actions if isinstance(action, FailSupervisor)]
    assert len(failures) == fails
    if fails:
        assert actions.index(Retire()) < actions.index(failures[0]), "its slot goes first"
        assert failures[0].why == f"it is essential, and has ended: {life.reason}"


def test_an_essential_worker_that_is_never_launched_fails_the_supervisor() -> None:
    rule = replace(EXACT, essential=True, restart=Restart.NEVER)
    _, actions = plan(launched(rule), LaunchFailed("no memory"), OPEN, NOW)
    assert actions[-1] == FailSupervisor(
        "it is essential, and has ended: could not be launched: no memory"
    )
    lost = LaunchLost("its spare died")
    last = plan(after(launched(rule), lost, lost), lost, OPEN, NOW)[1]
    assert [type(action) for action in last] == [RecordUnknown, Retire, FailSupervisor]


def test_an_essential_worker_that_comes_again_or_cannot_be_ended_fails_nothing() -> None:
    rule = replace(EXACT, essential=True)
    assert plan(running(rule), FAILED, OPEN, NOW)[1] == ()
    stuck = after(running(rule), KillAsked())
    assert plan(stuck, DeadlinePassed(), OPEN, NOW + 5)[1] == (GiveUp(),)


def test_a_member_that_a_cycle_forgets_has_ended_unasked() -> None:
    rule = replace(EXACT, essential=True, restart=Restart.NEVER, member=True)
    in_cycle = replace(OPEN, cycle=True)
    actions = plan(registered(rule), CycleBegan("x crashed"), in_cycle, NOW)[1]
    assert actions == (Retire(), FailSupervisor("it is essential, and has ended: x crashed"))


# Histories, and beside them a model that forgets nothing and counts anew each time.

CHUNKS, CHUNK = 20, 1_000


@dataclass
class Model:
    """What has happened to one worker, as a list; every question is answered from all of it."""

    rule: Rule
    failures: list[float] = field(default_factory=list)
    ends: list[tuple[bool, bool]] = field(default_factory=list)  # healthy, failed

    def end(self, now: float, healthy_for: float, *, failed: bool) -> None:
        least = self.rule.restart_reset
        assert least is not None
        self.ends.append((healthy_for >= least, failed))
        if failed:
            self.failures.append(now)

    @property
    def streak(self) -> int:
        last = max((n for n, (healthy, _) in enumerate(self.ends) if healthy), default=0)
        return sum(failed for _, failed in self.ends[last:])

    def in_window(self, now: float) -> int:
        return sum(now - moment <= self.rule.max_seconds for moment in self.failures)

    @property
    def pause(self) -> float:
        pause = self.rule.restart_delay
        for _ in range(self.streak - 1):
            pause = min(pause * self.rule.restart_backoff, self.rule.restart_delay_max)
        return pause


def any_rule(random: Random) -> Rule:
    return Rule(
        restart=random.choice([Restart.ALWAYS, Restart.ON_FAILURE]),
        restart_delay=random.choice([0.0, 0.5, 2.0]),
        restart_backoff=random.choice([1.0, 2.0, 4.0]),
        restart_delay_max=random.choice([2.0, 8.0]),
        restart_jitter=random.choice([0.0, 0.25, 1.0]),
        restart_reset=random.choice([0.0, 3.0, 10.0]),
        max_restarts=random.choice([None, 0, 1, 2, 3, 5]),
        max_seconds=random.choice([1.0, 4.0, 10.0]),
        needs_ready=random.random() < 0.5,
    )


def play(seed: int) -> tuple[Model, Life]:
    """Live through some incarnations on a clock of quarters of seconds, which are exact."""
    random = Random(seed)
    rule = any_rule(random)
    model, life, now = Model(rule), after(Life(rule), Consider(), now=0.0), 0.0
    for _ in range(15):
        now += random.randrange(8) / 4
        life = after(life, *COMES_UP, now=now)
        if rule.needs_ready and random.random() < 0.8:
            now += random.randrange(8) / 4
            life = after(life, SaidReady(), now=now)
        ready_at, now = now, now + random.randrange(50) / 4
        healthy_for = now - ready_at if life.ready else -1.0
        if random.random() < 0.2:
            model.end(now, healthy_for, failed=False)
            life = after(life, RestartAsked(), TERMINATED, now=now)
            assert life.streak == model.streak
            continue
        kind = random.choice([ExitKind.FAILED, ExitKind.CRASHED, ExitKind.UNKNOWN, ExitKind.CLEAN])
        luck = random.randrange(5) / 4
        life = after(life, HasExited(kind, luck=luck), now=now)
        if kind is ExitKind.CLEAN and rule.restart is Restart.ON_FAILURE:
            assert life.state is STOPPED
            break
        model.end(now, healthy_for, failed=True)
        too_often = rule.max_restarts is not None and model.in_window(now) > rule.max_restarts
        assert (life.state is STOPPED) == too_often
        assert (life.wakes_at is None) == too_often
        if too_often:
            break
        assert life.streak == model.streak
        assert life.deadline == now + model.pause * (1 + rule.restart_jitter * luck)
        if random.random() < 0.2:
            now += random.randrange(4) / 4 * (life.deadline - now)
            life = after(life, RestartAsked(), now=now)  # counts for nothing
        else:
            now = life.deadline
            life = after(life, DeadlinePassed(), now=now)
        if random.random() < 0.2:
            life = after(life, LaunchFailed("no memory"), now=now)
            now = life.deadline or now
            life = after(life, DeadlinePassed(), now=now)
    return model, life


@pytest.mark.parametrize("chunk", range(CHUNKS), ids=lambda chunk: f"seeds from {chunk * CHUNK}")
def test_every_history_is_counted_as_one_would_count_it_by_hand(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        try:
            model, life = play(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        most = model.rule.max_restarts
        if most is None:
            continue
        answered = model.failures[:-1] if life.state is STOPPED else model.failures
        for now in answered:
            begins = now - model.rule.max_seconds
            assert sum(begins <= moment <= now for moment in answered) <= most
        assert len(life.recent) <= most + 1, "what the window has left is forgotten"


def test_the_histories_see_streaks_windows_and_their_ends() -> None:
    """Guard the generator: histories in which nothing happens would prove nothing."""
    played = [play(seed) for seed in range(2_000)]
    assert max(model.streak for model, _ in played) > 5
    assert sum("not restarted any more" in life.reason for _, life in played) > 300
    assert sum(life.restarts > 5 for _, life in played) > 200
    began_anew = [m for m, _ in played if any(healthy for healthy, _ in m.ends) and m.streak]
    assert len(began_anew) > 500
    at_the_edge = [
        model
        for model, _ in played
        if any(b - a == model.rule.max_seconds for a in model.failures for b in model.failures)
    ]
    assert len(at_the_edge) > 30
