"""Liveness: a worker that gives no sign of life is ended, and one that is old is replaced.

The watchdog looks four times within its time, so that it needs no moment of any beat.  It begins
when the worker runs and is ready for the first time, and goes on while it reloads.  A look that
finds no beat since the last one counts; the fourth in a row ends the worker: after ``watchdog``
seconds without a beat at least, and after 1.25 times that at most, plus what looks were late.

A look that comes late says nothing of the worker: the supervisor was stopped or starved, and
the worker may have been stopped with it.  So it counts as a beat.  Whatever stops everybody, at
any moment and for any time, thus ends nobody who goes on afterwards.

Sources: systemd's WatchdogSec= and WatchdogSignal= (SIGABRT), RuntimeMaxSec= and
RuntimeRandomizedExtraSec=; but what is too old is no failure here.
"""

from __future__ import annotations

from signal import SIGABRT, SIGCONT

from ..spec import Restart
from ..status import WorkerState
from .actions import Dump, Signal
from .life import Due, Life, Rule, Situation
from .moves import KILL_TIMEOUT, Plan, fail_incarnation, stopping, unwatched

LOOKS = 4
"""Looks within the time of a watchdog, and without a beat in between, that end a worker."""

LATE = 1 / 8
"""The part of that time by which a look may be late, and still counts."""

DUMP_TIMEOUT = 0.5
"""Seconds that a worker has for writing its stacks."""


# Signs of life.


def begin_watch(life: Life, now: float) -> Life:
    """Begin to look for signs of life, at the first moment at which it runs and is ready."""
    if life.rule.watchdog is None or life.state is not WorkerState.RUNNING:
        return life
    if life.watch_at is not None or life.due is not None:
        return life  # it is looked at already, or ends by itself
    return life._replace(watch_at=now + life.rule.watchdog / LOOKS, silent=0)


def said_beat(life: Life) -> Plan:
    """Note a sign of life: it may have come right before the next look, which counts nothing."""
    if life.watch_at is None or life.silent < 0:
        return life, ()
    return life._replace(silent=-1), ()


def look_for_life(life: Life, now: float) -> Plan:
    """Look whether there was a beat since the last look."""
    watchdog = life.rule.watchdog
    if watchdog is None or life.watch_at is None:
        return life._replace(watch_at=None), ()
    is_late = now - life.watch_at > watchdog * LATE
    silent = 0 if is_late else life.silent + 1
    if silent >= LOOKS:
        return _end_silent(life, now)
    # From now on, not from when it was due: two looks are never closer than that.
    return life._replace(watch_at=now + watchdog / LOOKS, silent=silent), ()


def is_unseen(before: Life, after: Life) -> bool:
    """Tell whether two lives differ in looks and beats only, of which nobody is told."""
    return before._replace(watch_at=after.watch_at, silent=after.silent) == after


def _end_silent(life: Life, now: float) -> Plan:
    """End it as a failure; whoever stopped it, it goes on, and writes its stacks."""
    why = f"gave no sign of life for {life.rule.watchdog:g} s"
    ending = unwatched(life)._replace(state=WorkerState.STOPPING, trouble=why, reason=why)
    if not life.rule.dumps:
        return abort(ending, now)
    dumping = ending._replace(deadline=now + DUMP_TIMEOUT, due=Due.ABORT)
    return dumping, (Dump(), Signal(SIGCONT))


def abort(life: Life, now: float) -> Plan:
    """Have it die by SIGABRT, which may leave a trace, and not later by SIGKILL, which cannot."""
    aborting = life._replace(deadline=now + KILL_TIMEOUT, due=Due.KILL_ABORTED)
    return aborting, (Signal(SIGABRT), Signal(SIGCONT))


# Limits.


def over_limit(life: Life, why: str, now: float) -> Plan:
    """End what uses more than it may: a failure, so that the pauses between restarts hold."""
    return fail_incarnation(life, why, now)


def old_at(rule: Rule, luck: float, now: float) -> float | None:
    """Return when a worker that has just started is to be replaced."""
    if rule.max_age is None:
        return None
    return now + rule.max_age * (1.0 + rule.max_age_jitter * luck)


def grew_old(life: Life, situation: Situation, now: float) -> Plan:
    """Replace it, as if somebody had asked for a restart; for good if it is never restarted."""
    life = life._replace(old_at=None)
    if life.state is not WorkerState.RUNNING or situation.stop is not None:
        return life, ()
    never = life.rule.restart is Restart.NEVER
    reason = f"max_age ({life.rule.max_age:g} s) reached"
    return stopping(life._replace(terminate=never, restart=not never, reason=reason), now)
