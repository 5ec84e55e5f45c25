"""Ending: what is asked of a worker, how it comes to its end, and what follows that."""

from __future__ import annotations

from signal import SIGKILL

from ..spec import Restart, ShutdownMode, Strategy
from ..status import ExitKind, WorkerState
from .actions import BeginCycle, GiveUp, RecordUnknown, RestartGroup, Signal, Withdraw
from .backoff import LAUNCH_ATTEMPTS, launch_delay
from .cycle import lost_in_cycle, until_its_end
from .happenings import HasExited, LaunchLost
from .intensity import (
    after_failure,
    end_health,
    escalation,
    given_up,
    is_exceeded,
    pause,
    what_happened,
)
from .life import Due, Life, Situation
from .liveness import abort, grew_old, look_for_life
from .moves import (
    KILL_TIMEOUT,
    WAITING,
    Plan,
    drop_and_retire,
    end_in_turn,
    held,
    quit_now,
    retire,
    stopping,
    unwatched,
    without_process,
)
from .readiness import not_ready_in_time
from .restart import Verdict, after_exit, begins_cycle
from .starting import consider, launch

PENDING_SIGNALS = 16
STOPPING = "the supervisor is stopping"

_UP = (WorkerState.STARTING, WorkerState.RUNNING)


def launch_lost(life: Life, lost: LaunchLost, situation: Situation, now: float) -> Plan:
    life = without_process(life)._replace(lost=life.lost + 1)
    if life.terminate or situation.stop is not None:
        return retire(life, life.reason or STOPPING)
    if situation.cycle and life.rule.member:
        return lost_in_cycle(life)
    if life.for_good:
        return retire(life, life.with_group)
    if situation.waits_for:
        return consider(held(life, situation.waits_for), situation)
    if life.lost < LAUNCH_ATTEMPTS:
        return launch(life)

    recorded = RecordUnknown(f"{LAUNCH_ATTEMPTS} launches reached no process: {lost.why}")
    life, actions = exited(life, HasExited(ExitKind.UNKNOWN, luck=lost.luck), situation, now)
    return life, (recorded, *actions)


def launch_failed(life: Life, why: str, situation: Situation, now: float) -> Plan:
    """A failed fork has a back-off of its own, and ends what is never restarted."""
    life = life._replace(has_process=False, failures=life.failures + 1)
    if life.terminate or situation.stop is not None:
        return retire(life, life.reason or STOPPING)
    if life.rule.restart is Restart.NEVER:
        return retire(life, f"could not be launched: {why}")

    state = WorkerState.BACKOFF if life.begun else WorkerState.NOT_STARTED
    at = now + launch_delay(life.failures)
    reason = f"could not be launched: {why}; it is tried again"
    return life._replace(state=state, deadline=at, due=Due.START, reason=reason), ()


def exited(life: Life, exit: HasExited, situation: Situation, now: float) -> Plan:
    begins = begins_cycle(life, situation, abrupt=exit.abrupt)
    cycle = life.rule.member and (begins or situation.cycle)
    verdict = after_exit(life, exit.kind, stopping=situation.stop is not None, cycle=cycle)
    life, actions = _follow(verdict, life, exit, situation, now)
    return life, (BeginCycle(), *actions) if begins else actions


def _follow(
    verdict: Verdict, life: Life, exit: HasExited, situation: Situation, now: float
) -> Plan:
    life = end_health(life, now)
    counts = _counts(verdict, life, exit.kind)
    life = after_failure(life, now) if counts else life
    over = without_process(life)._replace(lost=0, failures=0, signals=(), overdue=False)
    if counts and is_exceeded(life):
        over, retired = retire(over, why := given_up(life, exit.kind))
        return over, (*retired, *escalation(over, why))
    others = (RestartGroup(),) if counts and _concerns_others(life) else ()
    match verdict:
        case Verdict.RETIRE:
            return retire(over, _why_over(life, situation) or f"{exit.kind.value} exit")
        case Verdict.AGAIN_NOW | Verdict.AGAIN_WITH_GROUP:
            return consider(over._replace(state=WorkerState.BACKOFF), situation)
        case Verdict.AGAIN_AFTER_CYCLE:
            return until_its_end(over._replace(state=WorkerState.BACKOFF)), others
        case Verdict.AGAIN_AFTER_DELAY:
            wait = pause(over, exit.luck)
            reason = f"{what_happened(life, exit.kind)}; waits {round(wait, 2):g} s"
            pausing = over._replace(state=WorkerState.BACKOFF, reason=reason)
            return pausing._replace(deadline=now + wait, due=Due.START), others


def _why_over(life: Life, situation: Situation) -> str:
    """Return the reason of an end; without what it waited for, if it ended by itself."""
    if life.state in _UP and situation.stop is ShutdownMode.FAST:
        return STOPPING
    return life.with_group if life.state in _UP and life.with_group else life.reason


def _counts(verdict: Verdict, life: Life, kind: ExitKind) -> bool:
    """Tell whether what follows is a restart by rule: its own failure, and nobody's wish."""
    if verdict is Verdict.AGAIN_AFTER_CYCLE:
        return kind is not ExitKind.TERMINATED and not (life.cycled or life.with_group)
    return verdict is Verdict.AGAIN_AFTER_DELAY


def _concerns_others(life: Life) -> bool:
    """Tell whether the restart of a member is one of its group; a launch that failed is not."""
    rule = life.rule
    shared = rule.group is not None and rule.strategy is not Strategy.ONE_FOR_ONE
    return shared and life.lost < LAUNCH_ATTEMPTS


def terminate(life: Life, reason: str, now: float) -> Plan:
    if life.state in WAITING:
        why = reason if life.begun else f"{reason} before it started"
        return retire(life._replace(terminate=True), why)
    if life.state is WorkerState.STOPPING:
        return life._replace(terminate=True), ()
    return stopping(life._replace(terminate=True, reason=reason), now)


def kill(life: Life, now: float) -> Plan:
    if life.state in WAITING:
        return terminate(life, "killed", now)
    if life.kill:
        return life, ()  # once: the deadline stands

    killed = unwatched(life)._replace(
        state=WorkerState.STOPPING,
        terminate=True,
        kill=True,
        reason="killed",
        deadline=now + KILL_TIMEOUT,
        due=Due.GIVE_UP if life.has_process else Due.KILL,
    )
    if life.has_process:
        return killed, (Signal(SIGKILL, group=True),)
    return killed, (Withdraw(),)


def restart(life: Life, situation: Situation, now: float) -> Plan:
    """An intended restart counts for nothing; in BACKOFF it means now."""
    if situation.stop is not None:
        return life, ()
    if life.state in WAITING:
        again = life.state is WorkerState.BACKOFF
        return consider(life._replace(deadline=None, due=None, restart=again), situation)
    if life.state in _UP and life.has_process:
        return stopping(life._replace(restart=True, reason="restart was asked for"), now)
    if life.trouble and not life.terminate:
        return life._replace(restart=True), ()  # it ends already
    return life, ()  # about to start afresh, or ending for good


def signal(life: Life, signum: int) -> Plan:
    if life.has_process:
        return life, (Signal(signum),)
    if life.state in WAITING:
        return life, ()
    return life._replace(signals=(*life.signals, signum)[-PENDING_SIGNALS:]), ()


def stop(life: Life, situation: Situation, now: float) -> Plan:
    reason = STOPPING
    if life.state in WAITING:
        return retire(life, reason)
    if life.state is WorkerState.STOPPING and life.due is None:
        return _unkillable(life, situation)  # it was given up on before
    if situation.stop is ShutdownMode.IMMEDIATE:
        if not life.has_process:
            return drop_and_retire(life._replace(terminate=True), life.reason or reason)
        return quit_now(life._replace(terminate=True, reason=life.reason or reason), now)
    if situation.stop is ShutdownMode.FAST:
        if situation.ends_after and life.state in _UP and life.has_process:
            return end_in_turn(life, reason, situation, now)
        return terminate(life, reason, now)
    return _left_alone(life), ()  # SMART waits


def _left_alone(life: Life) -> Life:
    """Have a member that its group would have restarted go on: nothing starts any more."""
    if life.with_group and not life.for_good and life.state in _UP:
        return life._replace(with_group="", reason="")
    return life


def deadline_passed(life: Life, situation: Situation, now: float) -> Plan:
    """Do what has come first; what else is due comes with the next call."""
    if life.deadline is not None and life.deadline == life.wakes_at:
        return _due(life, situation, now)
    if life.ready_by is not None and life.ready_by == life.wakes_at:
        return not_ready_in_time(life, now)
    if life.watch_at is not None and life.watch_at == life.wakes_at:
        return look_for_life(life, now)
    return grew_old(life, situation, now) if life.old_at is not None else (life, ())


def _due(life: Life, situation: Situation, now: float) -> Plan:
    match life.due:
        case Due.START:
            return _start_again(life, situation)
        case Due.KILL | Due.KILL_ABORTED:
            return _overdue(life, situation, now)
        case Due.ABORT:
            return abort(life, now)
        case Due.GIVE_UP:
            return _unkillable(life, situation)
        case None:
            return life, ()


def _start_again(life: Life, situation: Situation) -> Plan:
    return consider(life._replace(deadline=None, due=None), situation)


def _overdue(life: Life, situation: Situation, now: float) -> Plan:
    if not life.has_process:
        return drop_and_retire(life, f"{life.reason}; its launch never came up")

    if life.due is Due.KILL_ABORTED:
        late = f"{life.trouble}; killed: SIGABRT did not end it within {KILL_TIMEOUT:g} s"
    elif situation.stop is ShutdownMode.IMMEDIATE or life.cycled:
        late = f"killed: SIGQUIT did not end it within {KILL_TIMEOUT:g} s"
        late = f"{life.reason}; {late}" if life.cycled else late
    else:
        late = f"killed: it did not end within stop_timeout ({life.rule.stop_timeout:g} s)"
        cause = life.trouble or ("" if life.terminate else life.with_group)
        late = f"{cause}; {late}" if cause else late
    killed = life._replace(overdue=True, deadline=now + KILL_TIMEOUT, due=Due.GIVE_UP, reason=late)
    return killed, (Signal(SIGKILL, group=True),)


def _unkillable(life: Life, situation: Situation) -> Plan:
    """A process that SIGKILL does not end keeps its slot, but holds up no stop."""
    stuck = life._replace(deadline=None, due=None, reason="SIGKILL does not end it")
    if situation.stop is None:
        return stuck, (GiveUp(),)
    stuck, retired = retire(stuck, stuck.reason)
    return stuck, (GiveUp(), RecordUnknown(stuck.reason), *retired)
