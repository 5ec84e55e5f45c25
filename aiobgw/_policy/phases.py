"""Start gates and the severity of stops."""

from __future__ import annotations

from ..spec import Phase, ShutdownMode
from .life import Life, Situation


def gate_open(life: Life, situation: Situation) -> bool:
    """Tell whether a worker may start now.  Gates only hold back starts (PostgreSQL)."""
    return situation.stop is None and situation.phase >= life.rule.start_when


def gate_reason(start_when: Phase) -> str:
    return f"waits for phase {start_when.name}"


def stricter(now: ShutdownMode | None, asked: ShutdownMode) -> ShutdownMode:
    """Return the mode that holds: a stop only gets stricter."""
    return asked if now is None else max(now, asked)
