"""Watchdog, age and limits: the table of looks, the ends they lead to, and seeded histories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from signal import SIGABRT, SIGCONT, SIGKILL, SIGQUIT, SIGTERM

import pytest

from aiobgw._policy.actions import Action, BeginCycle, Dump, GiveUp, Launch, Retire, Signal
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
    OverLimit,
    RestartAsked,
    SaidReady,
    SaidReloading,
    SaidStopping,
    StopBegan,
    TerminateAsked,
)
from aiobgw._policy.life import Due, Life, Rule, Situation
from aiobgw._policy.liveness import DUMP_TIMEOUT, LATE, LOOKS, is_unseen
from aiobgw._policy.moves import KILL_TIMEOUT
from aiobgw._policy.plan import plan
from aiobgw._policy.restart import exit_kind
from aiobgw.spec import Phase, Restart, ShutdownMode
from aiobgw.status import ExitKind, WorkerState


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


NOW = 1_000.0
WATCHDOG = 8.0
STEP = WATCHDOG / LOOKS
RULE = Rule(watchdog=WATCHDOG, dumps=True, restart_jitter=0.0)
COMMAND = replace(RULE, dumps=False)
MEMBER = replace(RULE, member=True)

OPEN = Situation(Phase.RUNNING)
SMART, FAST, IMMEDIATE = (Situation(Phase.RUNNING, stop=mode) for mode in ShutdownMode)

RUNNING, STOPPING, STOPPED = WorkerState.RUNNING, WorkerState.STOPPING, WorkerState.STOPPED
BACKOFF, STARTING = WorkerState.BACKOFF, WorkerState.STARTING
KILL_GROUP = Signal(SIGKILL, group=True)
SILENT = "gave no sign of life for 8 s"


def after(
    life: Life, *happenings: Happening, situation: Situation = OPEN, now: float = NOW
) -> Life:
    """Let things happen one after the other, all at the same moment."""
    for happening in happenings:
        life = plan(life, happening, situation, now)[0]
    return life


def running(rule: Rule = RULE) -> Life:
    return after(Life(rule), Consider(), Hello(), HasStarted())


def due(life: Life) -> float:
    """Return when it is to be looked at next."""
    assert life.wakes_at is not None
    return life.wakes_at


def pass_time(life: Life, times: int = 1) -> tuple[Life, tuple[Action, ...], float]:
    """Let deadlines pass, each on time."""
    actions: tuple[Action, ...] = ()
    now = NOW
    for _ in range(times):
        now = due(life)
        life, actions = plan(life, DeadlinePassed(), OPEN, now)
    return life, actions, now


# Looks.

ON_TIME, JUST_ON_TIME, TOO_LATE = 0.0, WATCHDOG * LATE, WATCHDOG * LATE + 0.01

# silent before the look, whether there was a beat since the last one, how late it is, and what
# is silent after it; None: the worker is ended
TABLE: list[tuple[int, bool, float, int | None]] = [
    (-1, False, ON_TIME, 0),
    (0, False, ON_TIME, 1),
    (2, False, ON_TIME, 3),
    (3, False, ON_TIME, None),
    (3, False, JUST_ON_TIME, None),
    (3, False, TOO_LATE, 0),
    (3, False, 3600.0, 0),
    (0, False, TOO_LATE, 0),
    (3, True, ON_TIME, 0),
    (3, True, JUST_ON_TIME, 0),
    (3, True, TOO_LATE, 0),
    (-1, True, ON_TIME, 0),
]


@pytest.mark.parametrize(("silent", "beat", "late", "then"), TABLE)
def test_a_look_counts_what_the_table_says(
    silent: int, beat: bool, late: float, then: int | None
) -> None:
    life = running()._replace(silent=silent)
    now = due(life) + late
    if beat:
        life = after(life, Beat())
    looked, actions = plan(life, DeadlinePassed(), OPEN, now)
    if then is None:
        assert (looked.state, looked.trouble, looked.watch_at) == (STOPPING, SILENT, None)
    else:
        assert (looked.state, looked.silent, actions) == (RUNNING, then, ())
        assert looked.watch_at == now + STEP


@pytest.mark.parametrize("beat_after", [0.0, 0.01, STEP / 2, STEP - 0.01, STEP])
def test_the_time_without_a_beat_is_the_watchdogs_and_a_quarter_more_at_most(
    beat_after: float,
) -> None:
    """Wherever between two looks the last beat came."""
    life, _, now = pass_time(running(), 2)
    beat_at = now + beat_after
    life = after(life, Beat(), now=beat_at)
    while life.state is RUNNING:
        now = due(life)
        life = after(life, DeadlinePassed(), now=now)
    assert WATCHDOG <= now - beat_at <= WATCHDOG * 1.25


def test_a_worker_that_never_gives_a_sign_has_its_whole_time() -> None:
    _, _, now = pass_time(running(), LOOKS)
    assert now - NOW == WATCHDOG


# When it is on.


def test_nobody_is_looked_at_without_a_watchdog() -> None:
    life = running(replace(RULE, watchdog=None))
    assert life.wakes_at is None
    assert after(life, Beat()) is life


def test_the_watch_begins_when_it_runs_and_is_ready_for_the_first_time() -> None:
    rule = replace(RULE, needs_ready=True, start_timeout=90.0)
    starting = after(Life(rule), Consider(), Hello())
    started = after(starting, HasStarted())
    assert (started.watch_at, started.wakes_at) == (None, NOW + 90)  # a slow start is no hang
    assert after(starting, Beat()).watch_at is None

    early = after(starting, SaidReady())
    assert early.watch_at is None  # its import may go on for long
    later = after(early, HasStarted(), now=NOW + 5)
    assert later.watch_at == NOW + 5 + STEP
    assert after(started, SaidReady(), now=NOW + 7).watch_at == NOW + 7 + STEP


def test_the_watch_goes_on_while_it_reloads_and_does_not_begin_again() -> None:
    life = running()._replace(silent=2)
    reloading = after(life, SaidReloading(), now=NOW + 1)
    again = after(reloading, SaidReady(), now=NOW + 2)
    for one in (reloading, again):
        assert (one.watch_at, one.silent) == (life.watch_at, 2)


@pytest.mark.parametrize(
    "happening", [SaidStopping(), TerminateAsked(), RestartAsked(), KillAsked(), OverLimit("?")]
)
def test_nobody_is_looked_at_on_the_way_to_an_end(happening: Happening) -> None:
    life = after(running(replace(RULE, max_age=60.0)), happening)
    assert (life.watch_at, life.old_at) == (None, None)
    assert after(life, SaidReady(), Beat()).watch_at is None


def test_a_beat_in_time_changes_nothing_that_anybody_sees() -> None:
    life = running()
    heard = after(life, Beat())
    assert heard.silent == -1
    assert after(heard, Beat()) is heard
    looked, _, _ = pass_time(heard)
    assert is_unseen(life, heard)
    assert is_unseen(heard, looked)
    assert not is_unseen(life, after(life, SaidReloading()))


# How the silent end.


def silent(rule: Rule = RULE) -> Life:
    """A worker that is being ended because it gave no sign of life."""
    return pass_time(running(rule), LOOKS)[0]


def test_a_silent_target_writes_its_stacks_then_gets_sigabrt_then_sigkill() -> None:
    life, actions, now = pass_time(running(), LOOKS)
    assert actions == (Dump(), Signal(SIGCONT))
    assert (life.due, life.deadline, life.reason) == (Due.ABORT, now + DUMP_TIMEOUT, SILENT)

    life, actions, then = pass_time(life)
    assert (then, actions) == (now + DUMP_TIMEOUT, (Signal(SIGABRT), Signal(SIGCONT)))

    life, actions, last = pass_time(life)
    assert (last, actions) == (then + KILL_TIMEOUT, (KILL_GROUP,))
    assert life.reason == f"{SILENT}; killed: SIGABRT did not end it within 5 s"

    life, actions, _ = pass_time(life)
    assert (life.state, actions) == (STOPPING, (GiveUp(),))


def test_a_silent_command_gets_sigabrt_at_once() -> None:
    life, actions, now = pass_time(running(COMMAND), LOOKS)
    assert actions == (Signal(SIGABRT), Signal(SIGCONT))
    assert life.deadline == now + KILL_TIMEOUT
    assert pass_time(life)[1] == (KILL_GROUP,)


STAGES = {
    "writes its stacks": lambda: silent(),
    "was sent SIGABRT": lambda: pass_time(silent())[0],
    "was sent SIGKILL": lambda: pass_time(silent(), 2)[0],
    "a command": lambda: silent(COMMAND),
}

HOW = [{"code": 0}, {"code": 1}, {"signal": SIGABRT}, {"signal": SIGKILL}, {"signal": SIGTERM}]


@pytest.mark.parametrize("how", HOW, ids=repr)
@pytest.mark.parametrize("stage", STAGES)
def test_however_a_silent_worker_ends_it_has_failed_and_its_rule_decides(
    stage: str, how: dict[str, int]
) -> None:
    life = STAGES[stage]()
    kind = exit_kind(
        code=how.get("code"),
        signal=how.get("signal"),
        farewell="code" in how,
        command=not life.rule.dumps,
        asked=life.asked,
        overdue=life.overdue,
        trouble=bool(life.trouble),
    )
    assert kind is ExitKind.FAILED

    over = after(life, HasExited(kind), now=NOW + 100)
    assert (over.state, over.streak, over.recent) == (BACKOFF, 1, (NOW + 100,))
    assert over.reason.startswith(SILENT)
    assert (over.deadline, over.watch_at) == (NOW + 101, None)

    never = life._replace(rule=replace(life.rule, restart=Restart.NEVER))
    assert after(never, HasExited(kind)).reason.startswith(SILENT)
    assert after(never, HasExited(kind)).state is STOPPED


REQUESTS: dict[str, tuple[Happening, Situation, WorkerState]] = {
    "terminate": (TerminateAsked(), OPEN, STOPPED),
    "kill": (KillAsked(), OPEN, STOPPED),
    "restart": (RestartAsked(), OPEN, STARTING),
    "more time": (Extend(3600.0), OPEN, BACKOFF),
    "too fat as well": (OverLimit("?"), OPEN, BACKOFF),
    "a beat": (Beat(), OPEN, BACKOFF),
    "ready": (SaidReady(), OPEN, BACKOFF),
    "smart stop": (StopBegan(), SMART, STOPPED),
    "fast stop": (StopBegan(), FAST, STOPPED),
    "immediate stop": (StopBegan(), IMMEDIATE, STOPPED),
}


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_puts_off_the_end_of_a_silent_worker_and_what_was_asked_holds(
    stage: str, request_: str
) -> None:
    happening, situation, then = REQUESTS[request_]
    life = STAGES[stage]()
    asked = after(life, happening, situation=situation, now=NOW + WATCHDOG)
    assert asked.state is STOPPING
    assert asked.deadline is not None and life.deadline is not None
    if request_ != "kill":
        assert asked.deadline <= life.deadline
    over = after(asked, HasExited(ExitKind.FAILED), situation=situation)
    assert over.state is then


def test_a_silent_member_that_leaves_a_mess_begins_a_crash_cycle() -> None:
    aborted = HasExited(ExitKind.FAILED, abrupt=True)
    assert BeginCycle() in plan(silent(MEMBER), aborted, OPEN, NOW)[1]
    in_order = HasExited(ExitKind.FAILED, abrupt=False)
    assert BeginCycle() not in plan(silent(MEMBER), in_order, OPEN, NOW)[1]


def test_a_silent_member_still_says_so_when_another_one_begins_a_crash_cycle() -> None:
    life = silent(MEMBER)
    life, actions = plan(life, CycleBegan("another one crashed"), OPEN, NOW + WATCHDOG)
    assert actions == (Signal(SIGQUIT),)
    assert (life.reason, life.deadline) == (SILENT, NOW + WATCHDOG + DUMP_TIMEOUT)


# Age, and limits.


@pytest.mark.parametrize(("luck", "at"), [(0.0, 60.0), (0.5, 63.0), (1.0, 66.0)])
def test_it_grows_old_after_its_age_and_a_random_part_of_it(luck: float, at: float) -> None:
    starting = after(Life(Rule(max_age=60.0)), Consider(), Hello())
    assert starting.old_at is None
    assert after(starting, HasStarted(luck)).old_at == NOW + at


OLD = Rule(max_age=60.0, max_age_jitter=0.0)


@pytest.mark.parametrize("rule", Restart)
def test_the_old_are_asked_to_end_and_replaced_unless_never_restarted(rule: Restart) -> None:
    life, actions, now = pass_time(running(replace(OLD, restart=rule)))
    assert (now, life.reason) == (NOW + 60, "max_age (60 s) reached")
    assert actions == (Signal(SIGTERM), Signal(SIGCONT))
    assert (life.state, life.deadline) == (STOPPING, now + 10)
    assert life.asked, "so that its exit is TERMINATED"

    over, actions = plan(life, HasExited(ExitKind.TERMINATED), OPEN, now)
    if rule is Restart.NEVER:
        assert (over.state, over.reason) == (STOPPED, "max_age (60 s) reached")
    else:
        assert (over.state, actions) == (STARTING, (Launch(),))
        assert (over.restarts, over.streak, over.recent) == (0, 0, ())


def test_nobody_ages_between_two_lives_nor_at_the_end() -> None:
    assert after(running(OLD), HasExited(ExitKind.FAILED)).old_at is None
    assert after(running(OLD), TerminateAsked()).old_at is None


def test_a_smart_stop_lets_the_old_go_on() -> None:
    life = running(OLD)
    old, actions = plan(life, DeadlinePassed(), SMART, NOW + 60)
    assert (old, actions) == (life._replace(old_at=None), ())


def test_an_essential_worker_that_grows_old_fails_nobody() -> None:
    essential = running(replace(OLD, restart=Restart.NEVER, essential=True))
    old, _, now = pass_time(essential)
    assert plan(old, HasExited(ExitKind.TERMINATED), OPEN, now)[1] == (Retire(),)


@pytest.mark.parametrize("happenings", [(), (HasStarted(),)], ids=["in its import", "running"])
def test_who_uses_too_much_is_asked_to_end_as_a_failure(happenings: tuple[Happening, ...]) -> None:
    up = after(Life(RULE), Consider(), Hello(), *happenings)
    life, actions = plan(up, OverLimit("too fat"), OPEN, NOW)
    assert actions == (Signal(SIGTERM), Signal(SIGCONT))
    assert (life.state, life.trouble, life.reason) == (STOPPING, "too fat", "too fat")
    over = after(life, HasExited(ExitKind.FAILED))
    assert (over.state, over.streak) == (BACKOFF, 1)
    assert "too fat" in over.reason
    assert plan(over, OverLimit("too fat"), OPEN, NOW) == (over, ())


# Histories: supervisor and worker are stopped and starved at random.

TICK = WATCHDOG / 80
HISTORIES = 1_000


@dataclass
class History:
    """A supervisor that looks, and a worker that beats until it is stuck."""

    random: Random
    now: float = NOW
    life: Life = field(default_factory=running)
    supervisor_sleeps: float = 0.0
    worker_sleeps: float = 0.0
    next_beat: float = NOW + WATCHDOG / 3
    queued: bool = False
    beat_at: float = NOW
    awake_since: float = NOW
    stuck: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def tick(self) -> None:
        self.now += TICK
        if self.now >= self.worker_sleeps and not self.stuck and self.now >= self.next_beat:
            self.queued = True
            self.beat_at = self.now
            self.next_beat = self.now + WATCHDOG / 3
        if self.now >= self.supervisor_sleeps:
            self.turn()

    def turn(self) -> None:
        """Frames first, then deadlines."""
        if self.queued:
            self.queued = False
            self.life = after(self.life, Beat(), now=self.now)
        late = self.now - due(self.life)
        if late >= 0:
            self.seen["late" if late > WATCHDOG * LATE else "on time"] += 1
            self.life = after(self.life, DeadlinePassed(), now=self.now)

    def disturb(self) -> None:
        """Stop everybody, or the supervisor only, or keep the worker from its next beat."""
        seconds = self.random.choice([TICK, STEP / 2, STEP, WATCHDOG, 2 * WATCHDOG])
        until = self.now + seconds * self.random.uniform(0.5, 1.5)
        what = self.random.choice(["all", "all", "supervisor", "worker"])
        self.seen[what] += 1
        if what == "worker":
            if self.now >= self.worker_sleeps:
                self.worker_sleeps = self.now + WATCHDOG / 4
            return
        self.awake_since = self.supervisor_sleeps = max(until, self.supervisor_sleeps)
        if what == "all":
            # Who continues what was stopped for long may come to the worker last.
            more = self.random.uniform(0, WATCHDOG / 4) if seconds >= WATCHDOG else 0.0
            self.worker_sleeps = max(self.supervisor_sleeps + more, self.worker_sleeps)


def play(seed: int) -> History:
    history = History(Random(seed))
    often = history.random.choice([0.01, 0.05, 0.3])
    for _ in range(history.random.randrange(100, 600)):
        if history.random.random() < often:
            history.disturb()
        history.tick()
        while history.now < history.supervisor_sleeps:
            history.tick()
        assert history.life.state is RUNNING, f"seed {seed}: a healthy worker was ended"
        history.seen[f"healthy, silent {history.life.silent}"] += 1

    history.stuck = True
    for _ in range(10_000):
        history.tick()
        if history.life.state is not RUNNING:
            break
    assert history.now - history.beat_at >= WATCHDOG, f"seed {seed}: too early"
    since = max(history.beat_at, history.awake_since)
    bound = WATCHDOG * 1.25 + (LOOKS + 2) * TICK
    assert history.now - since <= bound, f"seed {seed}: too late"
    return history


def test_whatever_stops_the_healthy_live_and_the_stuck_are_ended_in_time() -> None:
    seen: Counter[str] = sum((play(seed).seen for seed in range(HISTORIES)), Counter())
    # Guard the generator: histories in which nothing happens would prove nothing.
    for what in ("all", "supervisor", "worker", "on time", "late", "healthy, silent 2"):
        assert seen[what] > 50, (what, seen)
