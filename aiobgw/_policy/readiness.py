"""Readiness: from its start until it says, or a probe finds, that a worker is ready.

Three deadlines, and never one for two of them: ``start_timeout`` from hello to ready (a slow
import is no hang), ``watchdog`` while it is ready (``liveness``), ``stop_timeout`` at its end.
"""

from __future__ import annotations

from ..spec import ShutdownMode
from ..status import WorkerState
from .life import Due, Life, Situation
from .liveness import LATE, begin_watch
from .moves import Plan, fail_incarnation

RELOADING = "is reloading"
ENDS_ITSELF = "says that it is stopping"


def start_clock(life: Life, now: float) -> Life:
    """Begin the time within which it must be ready; called at its hello."""
    if life.rule.start_timeout is None:
        return life
    return life._replace(ready_by=now + life.rule.start_timeout)


def became_ready(life: Life, now: float) -> Life:
    """Note that it is ready: the first time in this incarnation it also becomes healthy."""
    since = now if life.healthy_since is None else life.healthy_since
    reason = "" if life.reason == RELOADING else life.reason
    life = life._replace(ready=True, was_ready=True, healthy_since=since)
    return begin_watch(life._replace(ready_by=None, reason=reason), now)


def said_ready(life: Life, now: float) -> Plan:
    """Take its word: also ahead of STARTED, since the two come by different ways."""
    up = life.state in (WorkerState.STARTING, WorkerState.RUNNING)
    if life.ready or not up or life.due is Due.KILL:
        return life, ()
    return became_ready(life, now), ()


def said_reloading(life: Life) -> Plan:
    if not life.ready or life.state is not WorkerState.RUNNING:
        return life, ()
    return life._replace(ready=False, reason=RELOADING), ()


def said_stopping(life: Life, now: float) -> Plan:
    """Let it end by itself, within ``stop_timeout``; its exit is its own.

    Once: saying it again gives it no more time, and nothing takes it back.
    """
    if life.state is not WorkerState.RUNNING or life.due is Due.KILL:
        return life, ()
    deadline = now + life.rule.stop_timeout
    ending = life._replace(
        ready=False, reason=ENDS_ITSELF, ready_by=None, watch_at=None, silent=0, old_at=None
    )
    return ending._replace(deadline=deadline, due=Due.KILL), ()


def without_words(life: Life) -> Life:
    """Forget what it said of itself: that it has ended says more."""
    return life._replace(reason="") if life.reason in (RELOADING, ENDS_ITSELF) else life


def extend(life: Life, seconds: float, situation: Situation, now: float) -> Plan:
    """Move the deadline of a start or an end that is under way; never to an earlier moment.

    What is not asked to end, but made to (an IMMEDIATE stop, a crash cycle), is not heard.
    """
    if situation.stop is ShutdownMode.IMMEDIATE or life.cycled:
        return life, ()
    until = now + seconds
    if life.ready_by is not None:
        return life._replace(ready_by=max(life.ready_by, until)), ()
    if life.due is Due.KILL and life.deadline is not None and not life.kill:
        return life._replace(deadline=max(life.deadline, until)), ()
    return life, ()


def not_ready_in_time(life: Life, now: float) -> Plan:
    """End it, as a failure; but not because the time was looked at late.

    Then the supervisor was stopped or starved, and perhaps the worker with it: it has all of
    its time once more, as with a watchdog.
    """
    timeout = life.rule.start_timeout
    if timeout is None or life.ready_by is None or now - life.ready_by > timeout * LATE:
        return life._replace(ready_by=None if timeout is None else now + timeout), ()
    what = "ready" if life.rule.needs_ready else "started"
    why = f"not {what} within start_timeout ({timeout:g} s)"
    return fail_incarnation(life._replace(ready_by=None), why, now)
