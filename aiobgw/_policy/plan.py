"""The rules: what follows from what happened to one worker.

``plan(life, happening, situation, now)`` returns the next life and the actions, in order.
A move that is not listed leaves the life as it is: every request is legal at any time,
any number of times, and means nothing once it is too late.
"""

from __future__ import annotations

from signal import SIGKILL, SIGQUIT, SIGTERM
from typing import assert_never

from ..spec import Restart, ShutdownMode
from ..status import ExitKind, WorkerState
from .backoff import LAUNCH_ATTEMPTS, launch_delay
from .cycle import cycle_began, lost_in_cycle, until_its_end
from .life import (
    BeginCycle,
    Consider,
    CycleBegan,
    DeadlinePassed,
    Due,
    GiveUp,
    Happening,
    HasExited,
    HasStarted,
    Hello,
    KillAsked,
    Launch,
    LaunchFailed,
    LaunchLost,
    Life,
    RecordUnknown,
    RestartAsked,
    Signal,
    SignalAsked,
    Situation,
    StopBegan,
    TerminateAsked,
    Withdraw,
    Withdrawn,
)
from .moves import KILL_TIMEOUT, Plan, drop_and_retire, quit_now
from .moves import WAITING as _WAITING
from .moves import retire as _retire
from .phases import gate_open, gate_reason
from .restart import Verdict, after_exit, begins_cycle

PENDING_SIGNALS = 16
STOPPING = "the supervisor is stopping"

_UP = (WorkerState.STARTING, WorkerState.RUNNING)


def plan(life: Life, happening: Happening, situation: Situation, now: float) -> Plan:
    """Decide what follows from *happening*; ``now`` is on the monotonic clock."""
    if life.state is WorkerState.STOPPED or not _is_possible(life, happening):
        return life, ()

    match happening:
        case Consider():
            return _consider(life, situation)
        case Hello():
            return _said_hello(life, situation)
        case HasStarted():
            return _started(life)
        case HasExited(kind, abrupt):
            return _exited(life, kind, situation, now, abrupt=abrupt)
        case LaunchLost(why):
            return _launch_lost(life, why, situation, now)
        case LaunchFailed(why):
            return _launch_failed(life, why, situation, now)
        case Withdrawn():
            return _retire(life, life.reason)
        case TerminateAsked():
            return _terminate(life, "terminated", now)
        case KillAsked():
            return _kill(life, now)
        case RestartAsked():
            return _restart(life, situation, now)
        case SignalAsked(signum):
            return _signal(life, signum)
        case CycleBegan(why):
            return cycle_began(life, why, now)
        case StopBegan():
            return _stop(life, situation, now)
        case DeadlinePassed():
            return _deadline(life, situation, now)
        case unknown:
            assert_never(unknown)


def _is_possible(life: Life, happening: Happening) -> bool:
    """Tell whether a process could have done this, as things are; a late one could not."""
    match happening:
        case Hello() | LaunchLost() | LaunchFailed() | Withdrawn():
            pending = life.state in (WorkerState.STARTING, WorkerState.STOPPING)
            return pending and (not life.has_process or isinstance(happening, LaunchLost))
        case HasStarted() | HasExited():
            return life.has_process
        case _:
            return True


# Starting.


def _consider(life: Life, situation: Situation, *, asked: bool = False) -> Plan:
    """Launch it if its gate is open; what follows a back-off by rule counts as a restart."""
    if life.state not in _WAITING or life.due is not None:
        return life, ()
    if not gate_open(life, situation):
        return life._replace(reason=gate_reason(life, situation)), ()
    made_before = life.failures or life.dropped  # and counted then
    intended = asked or life.restart or life.cycled
    by_rule = life.state is WorkerState.BACKOFF and not (made_before or intended)
    return _launch(life, restarts=life.restarts + by_rule)


def _launch(life: Life, *, restarts: int | None = None) -> Plan:
    """Begin the next incarnation; a launch that reached no process keeps its number."""
    again = bool(life.failures or life.lost or life.dropped)
    started = life._replace(
        state=WorkerState.STARTING,
        incarnation=life.incarnation + (0 if again else 1),
        restarts=life.restarts if restarts is None else restarts,
        has_process=False,
        restart=False,
        overdue=False,
        cycled=False,
        dropped=False,
        signals=life.signals if again else (),
        deadline=None,
        due=None,
        reason="",
    )
    return started, (Launch(),)


def _said_hello(life: Life, situation: Situation) -> Plan:
    """Send what was asked for while there was no process to send it to."""
    pending = tuple([Signal(signum) for signum in life.signals])
    up = life._replace(has_process=True, signals=())
    if life.kill:
        return up, (*pending, Signal(SIGKILL, group=True))
    if life.asked:
        return up, (*pending, Signal(_stop_signal(situation)))
    return up, pending


def _started(life: Life) -> Plan:
    up = life.state is WorkerState.STARTING
    state = WorkerState.RUNNING if up else life.state
    return life._replace(state=state, begun=True, failures=0, lost=0), ()


def _launch_lost(life: Life, why: str, situation: Situation, now: float) -> Plan:
    life = life._replace(has_process=False, lost=life.lost + 1)
    if life.terminate or situation.stop is not None:
        return _retire(life, life.reason or STOPPING)
    if situation.cycle and life.rule.member:
        return lost_in_cycle(life)
    if life.lost < LAUNCH_ATTEMPTS:
        return _launch(life)

    recorded = RecordUnknown(f"{LAUNCH_ATTEMPTS} launches reached no process: {why}")
    life, actions = _exited(life, ExitKind.UNKNOWN, situation, now)
    return life, (recorded, *actions)


def _launch_failed(life: Life, why: str, situation: Situation, now: float) -> Plan:
    """A failed fork has a back-off of its own, and ends what is never restarted."""
    life = life._replace(has_process=False, failures=life.failures + 1)
    if life.terminate or situation.stop is not None:
        return _retire(life, life.reason or STOPPING)
    if life.rule.restart is Restart.NEVER:
        return _retire(life, f"could not be launched: {why}")

    state = WorkerState.BACKOFF if life.begun else WorkerState.NOT_STARTED
    at = now + launch_delay(life.failures)
    reason = f"could not be launched: {why}; it is tried again"
    return life._replace(state=state, deadline=at, due=Due.START, reason=reason), ()


# Ending.


def _exited(
    life: Life, kind: ExitKind, situation: Situation, now: float, *, abrupt: bool = False
) -> Plan:
    begins = begins_cycle(life, situation, abrupt=abrupt)
    cycle = life.rule.member and (begins or situation.cycle)
    stopping = situation.stop is not None
    verdict = after_exit(life, kind, stopping=stopping, cycle=cycle)
    life, actions = _follow(verdict, life, kind, situation, now)
    return life, (BeginCycle(), *actions) if begins else actions


def _follow(verdict: Verdict, life: Life, kind: ExitKind, situation: Situation, now: float) -> Plan:
    over = life._replace(
        has_process=False,
        lost=0,
        failures=0,
        signals=(),
        deadline=None,
        due=None,
        overdue=False,
    )
    match verdict:
        case Verdict.RETIRE:
            return _retire(over, life.reason or f"{kind.value} exit")
        case Verdict.AGAIN_NOW:
            waiting = over._replace(state=WorkerState.BACKOFF, restart=False)
            return _consider(waiting, situation, asked=True)
        case Verdict.AGAIN_AFTER_CYCLE:
            return until_its_end(over._replace(state=WorkerState.BACKOFF)), ()
        case Verdict.AGAIN_AFTER_DELAY:
            at = now + life.rule.restart_delay
            reason = f"{kind.value} exit; waits {life.rule.restart_delay:g} s"
            state = WorkerState.BACKOFF
            return over._replace(state=state, deadline=at, due=Due.START, reason=reason), ()


def _terminate(life: Life, reason: str, now: float) -> Plan:
    if life.state in _WAITING:
        return _retire(life, f"{reason} before it started" if not life.begun else reason)
    if life.state is WorkerState.STOPPING:
        return life._replace(terminate=True), ()
    return _stopping(life._replace(terminate=True, reason=reason), now)


def _stopping(life: Life, now: float) -> Plan:
    """Ask a worker that is up to end, and give it ``stop_timeout``."""
    stopping = life._replace(
        state=WorkerState.STOPPING,
        deadline=now + life.rule.stop_timeout,
        due=Due.KILL,
    )
    # Without a process the request is remembered, and sent when it says hello.
    return stopping, ((Signal(SIGTERM),) if life.has_process else (Withdraw(),))


def _kill(life: Life, now: float) -> Plan:
    if life.state in _WAITING:
        return _terminate(life, "killed", now)
    if life.kill:
        return life, ()  # once: the deadline stands

    killed = life._replace(
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


def _restart(life: Life, situation: Situation, now: float) -> Plan:
    """An intended restart counts for nothing; in BACKOFF it means now."""
    if situation.stop is not None:
        return life, ()
    if life.state in _WAITING:
        return _consider(life._replace(deadline=None, due=None), situation, asked=True)
    if life.state in _UP and life.has_process:
        return _stopping(life._replace(restart=True, reason="restart was asked for"), now)
    return life, ()  # about to start afresh, or ending for good


def _signal(life: Life, signum: int) -> Plan:
    if life.has_process:
        return life, (Signal(signum),)
    if life.state in _WAITING:
        return life, ()
    return life._replace(signals=(*life.signals, signum)[-PENDING_SIGNALS:]), ()


def _stop(life: Life, situation: Situation, now: float) -> Plan:
    reason = STOPPING
    if life.state in _WAITING:
        return _retire(life, reason)
    if life.state is WorkerState.STOPPING and life.due is None:
        return _unkillable(life, situation)  # it was given up on before
    if situation.stop is ShutdownMode.IMMEDIATE:
        if not life.has_process:
            return drop_and_retire(life._replace(terminate=True), life.reason or reason)
        return quit_now(life._replace(terminate=True, reason=life.reason or reason), now)
    if situation.stop is ShutdownMode.FAST:
        return _terminate(life, reason, now)
    return life, ()  # SMART waits


def _stop_signal(situation: Situation) -> int:
    return SIGQUIT if situation.stop is ShutdownMode.IMMEDIATE else SIGTERM


def _deadline(life: Life, situation: Situation, now: float) -> Plan:
    match life.due:
        case Due.START:
            return _start_again(life, situation)
        case Due.KILL:
            return _overdue(life, situation, now)
        case Due.GIVE_UP:
            return _unkillable(life, situation)
        case None:
            return life, ()


def _start_again(life: Life, situation: Situation) -> Plan:
    return _consider(life._replace(deadline=None, due=None), situation)


def _overdue(life: Life, situation: Situation, now: float) -> Plan:
    if not life.has_process:
        return drop_and_retire(life, f"{life.reason}; its launch never came up")

    if situation.stop is ShutdownMode.IMMEDIATE or life.cycled:
        late = f"killed: SIGQUIT did not end it within {KILL_TIMEOUT:g} s"
        late = f"{life.reason}; {late}" if life.cycled else late
    else:
        late = f"killed: it did not end within stop_timeout ({life.rule.stop_timeout:g} s)"
    killed = life._replace(overdue=True, deadline=now + KILL_TIMEOUT, due=Due.GIVE_UP, reason=late)
    return killed, (Signal(SIGKILL, group=True),)


def _unkillable(life: Life, situation: Situation) -> Plan:
    """A process that SIGKILL does not end keeps its slot, but holds up no stop."""
    stuck = life._replace(deadline=None, due=None, reason="SIGKILL does not end it")
    if situation.stop is None:
        return stuck, (GiveUp(),)
    stuck, retired = _retire(stuck, stuck.reason)
    return stuck, (GiveUp(), *retired)
