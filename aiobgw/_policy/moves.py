"""Moves that several rules make; each returns the next life and the actions, in order."""

from __future__ import annotations

from signal import SIGQUIT

from ..status import WorkerState
from .life import Action, Drop, Due, Life, Retire, Signal

KILL_TIMEOUT = 5.0
"""Seconds from SIGQUIT to SIGKILL, and from SIGKILL until a process counts as unkillable
(PostgreSQL's SIGKILL_CHILDREN_AFTER_SECS)."""

WAITING = (WorkerState.NOT_STARTED, WorkerState.BACKOFF)

Plan = tuple[Life, tuple[Action, ...]]


def retire(life: Life, reason: str) -> Plan:
    """End it for good: no process of it is left, or none that could be ended."""
    over = life._replace(
        state=WorkerState.STOPPED,
        has_process=False,
        deadline=None,
        due=None,
        reason=reason,
    )
    return over, (Retire(),)


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
    quitting = life._replace(state=WorkerState.STOPPING, deadline=due_at, due=due)
    return quitting, (Signal(SIGQUIT),)
