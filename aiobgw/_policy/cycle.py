"""The crash cycle, as one member goes through it.

PostgreSQL's HandleChildCrash and ResetBackgroundWorkerCrashTimes, for the members only: SIGQUIT
to whoever has a process, SIGKILL after 5 s; who is never restarted is forgotten first, before
the shared memory is rebuilt; all others start at its end, whatever delay they were in.  Until
then the gate of every member is closed (``phases``), so that nothing that is asked for
in between can start one.  Slots, generations and incarnations go on.
"""

from __future__ import annotations

from ..spec import Restart
from ..status import WorkerState
from .actions import Drop
from .life import Life
from .moves import WAITING, Plan, drop_and_retire, held, quit_now, retire

WAITS = "waits for the end of a crash cycle"


def cycle_began(life: Life, why: str, now: float) -> Plan:
    """End a member, because another one crashed; nothing for who is no member."""
    if not life.rule.member:
        return life, ()
    if life.state in WAITING:
        return _forget_or_wait(life, why)
    if not life.has_process:
        return _take_back(life, why)
    if life.state is WorkerState.STOPPING and life.due is None:
        return life, ()  # SIGKILL did not end it; the cycle waits for it
    reason = life.reason if life.asked or life.trouble else why
    return quit_now(life._replace(cycled=True, reason=reason), now)


def _forget_or_wait(life: Life, why: str) -> Plan:
    if life.rule.restart is Restart.NEVER:
        return retire(life, why)
    return until_its_end(life), ()


def _take_back(life: Life, why: str) -> Plan:
    """Drop a launch that no target has begun to run; the next one goes under its number."""
    if life.terminate:
        return drop_and_retire(life, life.reason)
    if life.rule.restart is Restart.NEVER:
        return drop_and_retire(life, why)
    return held(life, WAITS), (Drop(),)


def lost_in_cycle(life: Life) -> Plan:
    """Have a launch that reached no process wait, unless it is to be forgotten."""
    if life.cycled and life.rule.restart is Restart.NEVER:
        return retire(life, life.reason)
    return held(life, WAITS), ()


def until_its_end(life: Life) -> Life:
    """Have it wait without a deadline: it starts when the gates of the members open."""
    return life._replace(deadline=None, due=None, reason=WAITS)
