"""What an exit means, and what follows it: two truth tables.

PostgreSQL restarts after exit 1 and never after 0; here the spec says it (systemd's and
OTP's vocabulary).  What was asked to end is never a failure, and never restarted by rule.
"""

from __future__ import annotations

import enum

from ..spec import Restart
from ..status import ExitKind
from .life import Life


class Verdict(enum.Enum):
    """What follows an exit."""

    RETIRE = "retire"
    AGAIN_AFTER_DELAY = "again, after the delay"
    AGAIN_NOW = "again, now: it was asked for"


def exit_kind(
    *,
    code: int | None,
    signal: int | None,
    farewell: bool,
    command: bool,
    asked: bool,
    overdue: bool,
) -> ExitKind:
    """Classify an exit.

    ``farewell``: the worker said that it ends, so that its code is its own; ``asked``: its
    end was requested; ``overdue``: it had to be killed because it did not end in time.
    """
    if code is None and signal is None:
        return ExitKind.TERMINATED if asked and not overdue else ExitKind.UNKNOWN
    if overdue:
        return ExitKind.FAILED
    if asked:
        return ExitKind.TERMINATED
    if signal is not None:
        return ExitKind.CRASHED
    if command:
        return ExitKind.CLEAN if code == 0 else ExitKind.FAILED
    return _target_kind(code, farewell)


def _target_kind(code: int | None, farewell: bool) -> ExitKind:
    """A Python target's code counts if it came with a farewell, or is 0 or 1."""
    if code == 0:
        return ExitKind.CLEAN
    return ExitKind.FAILED if code == 1 or farewell else ExitKind.CRASHED


def after_exit(life: Life, kind: ExitKind, *, stopping: bool) -> Verdict:
    """Decide what follows the exit of a worker."""
    match (life.rule.restart, kind):
        case _ if life.terminate or stopping:
            return Verdict.RETIRE
        case _ if life.restart:
            return Verdict.AGAIN_NOW
        case (Restart.NEVER, _) | (Restart.ON_FAILURE, ExitKind.CLEAN):
            return Verdict.RETIRE
        case _:
            return Verdict.AGAIN_AFTER_DELAY
