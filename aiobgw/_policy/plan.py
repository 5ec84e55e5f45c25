"""The rules: what follows from what happened to one worker.

``plan(life, happening, situation, now)`` returns the next life and the actions, in order.
A move that is not listed leaves the life as it is: every request is legal at any time,
any number of times, and means nothing once it is too late.
"""

from __future__ import annotations

from typing import assert_never

from ..status import WorkerState
from .actions import Action, FailSupervisor, Retire
from .cycle import cycle_began
from .ending import (
    deadline_passed,
    exited,
    kill,
    launch_failed,
    launch_lost,
    restart,
    signal,
    stop,
    terminate,
)
from .groups import group_ends, look_again
from .happenings import (
    Beat,
    Consider,
    CycleBegan,
    DeadlinePassed,
    Extend,
    GroupEnds,
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
from .life import Life, Situation
from .liveness import over_limit, said_beat
from .moves import Plan, retire
from .readiness import extend, said_ready, said_reloading, said_stopping, without_words
from .starting import said_hello, started


def plan(life: Life, happening: Happening, situation: Situation, now: float) -> Plan:
    """Decide what follows from *happening*; ``now`` is on the monotonic clock."""
    if life.state is WorkerState.STOPPED or not _is_possible(life, happening):
        return life, ()
    life, actions = _follow_rules(life, happening, situation, now)
    return life, (*actions, *_loss(life, actions, situation))


def _loss(life: Life, actions: tuple[Action, ...], situation: Situation) -> tuple[Action, ...]:
    """Return what the end of an essential worker leads to, if nobody has asked for it."""
    unasked = not life.terminate and situation.stop is None
    if not (life.rule.essential and unasked) or Retire() not in actions:
        return ()
    if any(isinstance(action, FailSupervisor) for action in actions):
        return ()  # it escalates already
    return (FailSupervisor(f"it is essential, and has ended: {life.reason}"),)


def _follow_rules(life: Life, happening: Happening, situation: Situation, now: float) -> Plan:
    match happening:
        case Consider():
            return look_again(life, situation, now)
        case Hello():
            return said_hello(life, situation, now)
        case HasStarted(luck):
            return started(life, luck, now)
        case SaidReady():
            return said_ready(life, now)
        case SaidReloading():
            return said_reloading(life)
        case SaidStopping():
            return said_stopping(life, now)
        case Beat():
            return said_beat(life)
        case Extend(seconds):
            return extend(life, seconds, situation, now)
        case OverLimit(why):
            return over_limit(life, why, now)
        case HasExited():
            return exited(without_words(life), happening, situation, now)
        case LaunchLost():
            return launch_lost(life, happening, situation, now)
        case LaunchFailed(why):
            return launch_failed(life, why, situation, now)
        case Withdrawn():
            return retire(life, life.reason)
        case TerminateAsked():
            return terminate(life, "terminated", now)
        case KillAsked():
            return kill(life, now)
        case RestartAsked():
            return restart(life, situation, now)
        case SignalAsked(signum):
            return signal(life, signum)
        case CycleBegan(why):
            return cycle_began(life, why, now)
        case GroupEnds(why, for_good):
            return group_ends(life, why, for_good, situation, now)
        case StopBegan():
            return stop(life, situation, now)
        case DeadlinePassed():
            return deadline_passed(life, situation, now)
        case unknown:
            assert_never(unknown)


def _is_possible(life: Life, happening: Happening) -> bool:
    """Tell whether a process could have done this, as things are; a late one could not."""
    match happening:
        case Hello() | LaunchLost() | LaunchFailed() | Withdrawn():
            pending = life.state in (WorkerState.STARTING, WorkerState.STOPPING)
            return pending and (not life.has_process or isinstance(happening, LaunchLost))
        case HasStarted() | HasExited() | SaidReady() | SaidReloading() | SaidStopping():
            return life.has_process
        case Beat() | Extend() | OverLimit():
            return life.has_process
        case _:
            return True
