"""Liveness: a worker that gives no sign of life is ended, and one that is old is replaced."""

from __future__ import annotations

from ..status import WorkerState
from .life import Life
from .moves import Plan, fail_incarnation


def over_limit(life: Life, why: str, now: float) -> Plan:
    """End what uses more than it may: a failure, so that the pauses between restarts hold."""
    if life.state is not WorkerState.RUNNING:
        return life, ()
    return fail_incarnation(life, why, now)


def said_beat(life: Life) -> Plan:
    return life, ()


def look_for_life(life: Life, now: float) -> Plan:
    return life._replace(watch_at=None), ()


def grew_old(life: Life, now: float) -> Plan:
    return life._replace(old_at=None), ()
