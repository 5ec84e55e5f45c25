"""Moves that several rules make; each returns the next life and the actions, in order."""

from __future__ import annotations

from signal import SIGCONT, SIGQUIT

from ..status import WorkerState
from .actions import Action, Drop, Retire, Signal, Withdraw
from .intensity import end_health
from .life import Due, Life, Rule, Situation

KILL_TIMEOUT = 5.0
"""Seconds from SIGQUIT to SIGKILL, and from SIGKILL until a process counts as unkillable
(PostgreSQL's SIGKILL_CHILDREN_AFTER_SECS)."""

WAITING = (WorkerState.NOT_STARTED, WorkerState.BACKOFF)

Plan = tuple[Life, tuple[Action, ...]]


def retire(life: Life, reason: str) -> Plan:
    """End it for good: no process of it is left, or none that could be ended."""
    over = without_process(life)._replace(state=WorkerState.STOPPED, reason=reason)
    return over, (Retire(),)


def without_process(life: Life) -> Life:
    """Clear what belongs to a process."""
    return unwatched(life)._replace(
        has_process=False, ready=False, healthy_since=None, deadline=None, due=None
    )


def unwatched(life: Life) -> Life:
    """Clear the moments of a worker that is up: it has come to its end."""
    return life._replace(ready_by=None, watch_at=None, silent=0, old_at=None)


def stopping(life: Life, now: float) -> Plan:
    """Ask a worker that is up to end, and give it ``stop_timeout``."""
    ending = unwatched(life)._replace(
        state=WorkerState.STOPPING,
        deadline=now + life.rule.stop_timeout,
        due=Due.KILL,
    )
    # Without a process the request is remembered, and sent when it says hello.
    return ending, (stop_signals(life.rule) if life.has_process else (Withdraw(),))


def stop_signals(rule: Rule) -> tuple[Signal, ...]:
    """Return what asks a process to end; SIGCONT, since a stopped one hears nothing (s6)."""
    return Signal(rule.stop_signal), Signal(SIGCONT)


def end_in_turn(life: Life, why: str, situation: Situation, now: float) -> Plan:
    """Ask a process to end, once those that must end before it have."""
    if not situation.ends_after:
        return stopping(life._replace(reason=why), now)
    reason = f"{why}; {situation.ends_after}"
    return life if reason == life.reason else life._replace(reason=reason), ()


def held(life: Life, why: str) -> Life:
    """Have a launch that reached no target wait; the next one goes under its number."""
    state = WorkerState.BACKOFF if life.begun else WorkerState.NOT_STARTED
    return life._replace(
        state=state, has_process=False, dropped=True, deadline=None, due=None, reason=why
    )


def fail_incarnation(life: Life, why: str, now: float) -> Plan:
    """End an incarnation as a failure; what follows is for its restart rule.

    Who is asked to end already just ends.
    """
    if life.state not in (WorkerState.STARTING, WorkerState.RUNNING) or not life.has_process:
        return life, ()
    return stopping(end_health(life, now)._replace(trouble=why, reason=why), now)


def drop_and_retire(life: Life, reason: str) -> Plan:
    """End what has no process yet."""
    over, retired = retire(life, reason)
    return over, (Drop(), *retired)


def quit_now(life: Life, now: float) -> Plan:
    """Have a process end without asking it; an end that is due earlier stays due then."""
    due_at = now + KILL_TIMEOUT
    if life.state is WorkerState.STOPPING and life.deadline is not None:
        due_at = min(due_at, life.deadline)
    due = Due.GIVE_UP if life.due is Due.GIVE_UP else Due.KILL
    quitting = unwatched(life)._replace(state=WorkerState.STOPPING, deadline=due_at, due=due)
    return quitting, (Signal(SIGQUIT),)
