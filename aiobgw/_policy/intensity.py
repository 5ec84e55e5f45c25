"""How often a worker may fail: the streak of its failures, and the window of its restarts.

Two counters with two purposes.  The streak makes pauses longer; it ends once the worker was
healthy for long enough, so that it is never of a lifetime.  The window is OTP's intensity: it
slides, holds the moments of restarts by rule, and what would be one more than ``max_restarts``
ends the worker for good.  Restarts that were asked for, crash cycles of others, and groups that
restart their members count in neither.
"""

from __future__ import annotations

from ..spec import Escalate
from ..status import ExitKind
from .backoff import healthy_time, restart_delay
from .life import Action, FailSupervisor, Life, StopGroup


def after_failure(life: Life, now: float) -> Life:
    """Count an exit that the rule answers with a restart."""
    healthy = life.healthy_since is not None and now - life.healthy_since >= healthy_time(life.rule)
    recent = () if life.rule.max_restarts is None else (*_in_window(life, now), now)
    return life._replace(streak=1 if healthy else life.streak + 1, recent=recent)


def is_exceeded(life: Life) -> bool:
    """Tell whether the last restart that was counted is one too many."""
    return life.rule.max_restarts is not None and len(life.recent) > life.rule.max_restarts


def pause(life: Life, luck: float) -> float:
    """Return how long it waits now."""
    return restart_delay(life.rule, life.streak, luck)


def given_up(life: Life, kind: ExitKind) -> str:
    """Say why it is not restarted any more."""
    rule = life.rule
    return (
        f"{kind.value} exit; it is not restarted any more:"
        f" max_restarts ({rule.max_restarts}) in {rule.max_seconds:g} s are used up"
    )


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
