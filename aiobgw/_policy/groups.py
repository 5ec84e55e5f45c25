"""Groups: whom a member starts after, whom it ends after, and who is restarted with whom.

OTP's supervisor, member by member; a group's members are in the order of their registration.

Start.  A member starts when those before it are ready (``start_hindered_by``).  With
ONE_FOR_ONE it is enough that they were ready once: a later crash is nobody else's business.

Restart.  When a member of another strategy fails, and its rule restarts it, those concerned
(``concerned``) are marked in the same moment: ``Life.with_group`` says why.  From then on
whatever becomes of their processes is the group's doing: it counts for nothing and begins no
second restart.  The marked end one after the other, the last first (``end_hindered_by``), each
with its ``stop_timeout``; who is never restarted is over then.  Nobody of the group starts while
one of them has a process, nor (ONE_FOR_ALL) while the culprit is in its pause; then all start in
order.  A launch clears the mark.

Stop.  A group that is ended for good is marked the same way, with ``for_good``; when the
supervisor stops, no mark is needed: everybody ends, in the same order.

Nothing of it is a state of the group.  Who may start, and whose turn to end it is, follows from
the Lives of its members at that moment, and is looked at again whenever one of them changes; so
that nothing is lost if one crashes, is terminated or is restarted in between.

Invariants: whoever waits for its turn waits for one who is ending or waits for its own
turn, and no end is without a bound; the first of the marked waits for nobody before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..spec import ShutdownMode, Strategy
from ..status import WorkerState
from .actions import Drop
from .ending import stop
from .life import Due, Life, Situation
from .moves import WAITING, Plan, drop_and_retire, end_in_turn, held, retire
from .starting import consider

_GONE = (*WAITING, WorkerState.STOPPED)
_UP = (WorkerState.STARTING, WorkerState.RUNNING)


def concerned(strategy: Strategy, me: int, count: int) -> list[int]:
    """Return which of *count* members are restarted with the one at *me*."""
    if strategy is Strategy.ONE_FOR_ALL:
        return [other for other in range(count) if other != me]
    return list(range(me + 1, count)) if strategy is Strategy.REST_FOR_ONE else []


def start_hindered_by(lives: Sequence[Life], me: int) -> int | None:
    """Return for which member the one at *me* waits before it starts, None: it may start.

    The nearest of those before it, so that few wait for the same one; then who is to end, the
    first, who is the last to do so; then who is in the pause that the whole group waits for.
    """
    strategy = lives[me].rule.strategy
    for other in range(me - 1, -1, -1):
        if not _lets_start(lives[other], strategy):
            return other
    for other, life in enumerate(lives):
        if other != me and (_is_to_end(life) or _holds_all(life)):
            return other
    return None


def _lets_start(life: Life, strategy: Strategy) -> bool:
    """Tell whether those after a member may start: it is ready, or over for good."""
    if life.state is WorkerState.STOPPED or (is_stuck(life) and life.terminate):
        return True
    return life.was_ready if strategy is Strategy.ONE_FOR_ONE else is_ready(life)


def is_ready(life: Life) -> bool:
    """Tell whether others may rely on a worker: it is ready, and not about to end."""
    return life.state is WorkerState.RUNNING and life.ready and not life.with_group


def is_stuck(life: Life) -> bool:
    """Tell whether SIGKILL did not end a process."""
    return life.state is WorkerState.STOPPING and life.due is None


def _is_to_end(life: Life) -> bool:
    return bool(life.with_group) and life.state not in _GONE


def _holds_all(life: Life) -> bool:
    """Tell whether a member is the culprit of a restart of all, in its pause."""
    pauses = life.state is WorkerState.BACKOFF and life.due is Due.START and not life.failures
    return pauses and life.rule.strategy is Strategy.ONE_FOR_ALL


def end_hindered_by(lives: Sequence[Life], me: int, *, stopping: bool) -> int | None:
    """Return for whose end the member at *me* waits before it ends itself, None for nobody's.

    One of those after it that ends or will be ended; one that SIGKILL does not end holds up
    nobody.
    """
    for other in range(me + 1, len(lives)):
        life = lives[other]
        if life.state in _GONE or is_stuck(life):
            continue
        if stopping or life.with_group or life.state is WorkerState.STOPPING:
            return other
    return None


def group_ends(life: Life, why: str, for_good: bool, situation: Situation, now: float) -> Plan:
    """Have a member end, in its turn, because of another one.

    Who was never started is not restarted either: it goes on waiting, even if its rule is
    NEVER (OTP forgets it).  A launch that no target has begun to run is dropped.
    """
    if life.state in WAITING:
        return retire(life, why) if for_good else (life, ())
    if not life.with_group or (for_good and not life.for_good):
        life = life._replace(with_group=why, for_good=for_good)
    if life.state is WorkerState.STOPPING:
        return life, ()
    if not life.has_process:
        return drop_and_retire(life, why) if for_good else (held(life, why), (Drop(),))
    return end_in_turn(life, life.with_group, situation, now)


def look_again(life: Life, situation: Situation, now: float) -> Plan:
    """Start who may start, and end whose turn it is; what they waited for may be so now."""
    if life.state not in _UP:
        return consider(life, situation)
    if situation.stop is ShutdownMode.FAST:
        return stop(life, situation, now)
    if life.with_group:
        return end_in_turn(life, life.with_group, situation, now)
    return life, ()
