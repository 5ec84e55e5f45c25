"""How often a worker may fail: the streak of its failures, and the window of its restarts.

Two counters with two purposes.  The streak makes pauses longer; it ends once the worker was
healthy for long enough, however that incarnation then ends, so that it is never of a lifetime.
The window is OTP's intensity: it slides, holds the moments of the exits that were answered with a
restart, its edge included, and one more than ``max_restarts`` ends the worker for good.  As in
OTP the exit counts and not the start after its pause.  Restarts that were asked for, crash cycles
of others, and groups that restart their members count in neither; nor do forks that fail.
"""

from __future__ import annotations

from ..spec import Escalate
from ..status import ExitKind
from .actions import Action, FailSupervisor, StopGroup
from .backoff import healthy_time, restart_delay
from .life import Life


def end_health(life: Life, now: float) -> Life:
    """Stop the clock of an incarnation's health; it ends the streak if that was long enough."""
    if life.healthy_since is None:
        return life
    healthy = now - life.healthy_since >= healthy_time(life.rule)
    return life._replace(healthy_since=None, streak=0 if healthy else life.streak)


def after_failure(life: Life, now: float) -> Life:
    """Count an exit that the rule answers with a restart."""
    recent = () if life.rule.max_restarts is None else (*_in_window(life, now), now)
    return life._replace(streak=life.streak + 1, recent=recent)


def is_exceeded(life: Life) -> bool:
    """Tell whether the last restart that was counted is one too many."""
    return life.rule.max_restarts is not None and len(life.recent) > life.rule.max_restarts


def pause(life: Life, luck: float) -> float:
    """Return how long it waits now."""
    return restart_delay(life.rule, life.streak, luck)


def what_happened(life: Life, kind: ExitKind) -> str:
    """Say what is answered with a restart, or is not."""
    return life.trouble or f"{kind.value} exit"


def given_up(life: Life, kind: ExitKind) -> str:
    """Say why it is not restarted any more."""
    rule = life.rule
    allowed = f"max_restarts={rule.max_restarts} in max_seconds={rule.max_seconds:g}"
    return f"{what_happened(life, kind)}; not restarted any more: {allowed}"


def escalation(life: Life, why: str) -> tuple[Action, ...]:
    """Return what follows for others when a worker cannot be kept up."""
    match life.rule.escalate:
        case Escalate.IGNORE:
            return ()
        case Escalate.STOP_GROUP:
            return (StopGroup(why),)
        case Escalate.FAIL:
            return (FailSupervisor(why),)


def _in_window(life: Life, now: float) -> tuple[float, ...]:
    """Return the moments that the window still holds."""
    begins = now - life.rule.max_seconds
    return tuple([moment for moment in life.recent if moment >= begins])
