"""Start gates and the severity of stops."""

from __future__ import annotations

from ..spec import ShutdownMode
from .cycle import WAITS
from .life import Life, Situation


def gate_open(life: Life, situation: Situation) -> bool:
    """Tell whether a worker may start now.  Gates only hold back starts (PostgreSQL)."""
    if situation.cycle and life.rule.member:
        return False
    opened = situation.stop is None and situation.phase >= life.rule.start_when
    return opened and not situation.waits_for


def gate_reason(life: Life, situation: Situation) -> str:
    """Say what a worker waits for whose gate is closed, and no stop has begun."""
    if situation.phase < life.rule.start_when:
        return f"waits for phase {life.rule.start_when.name}"
    if situation.cycle and life.rule.member:
        return WAITS
    return situation.waits_for


def stricter(now: ShutdownMode | None, asked: ShutdownMode) -> ShutdownMode:
    """Return the mode that holds: a stop only gets stricter."""
    return asked if now is None else max(now, asked)
