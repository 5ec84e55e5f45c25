"""What an exit means, and what follows it: two truth tables.

PostgreSQL restarts after exit 1 and never after 0; here the spec says it (systemd's and
OTP's vocabulary).  What was asked to end is never a failure, and never restarted by rule.

Members (crash scope ALL) are held to PostgreSQL's CleanupBackend: whoever shares memory with
others and ends without having said that it is done with it (there: MarkPostmasterChildInactive,
here: the farewell), or by a signal, crashed, whatever its code.
"""

from __future__ import annotations

import enum

from ..spec import Restart
from ..status import ExitKind
from .life import Life, Situation


class Verdict(enum.Enum):
    """What follows an exit."""

    RETIRE = "retire"
    AGAIN_AFTER_DELAY = "again, after the delay"
    AGAIN_NOW = "again, now: it was asked for"
    AGAIN_WITH_GROUP = "again, in its turn: its group restarts"
    AGAIN_AFTER_CYCLE = "again, at the end of the crash cycle"


def exit_kind(
    *,
    code: int | None,
    signal: int | None,
    farewell: bool,
    command: bool,
    asked: bool,
    overdue: bool,
    member: bool = False,
    cycled: bool = False,
    trouble: bool = False,
) -> ExitKind:
    """Classify an exit.

    ``farewell``: the worker said that it ends, so that its code is its own; ``asked``: its
    end was requested; ``overdue``: it had to be killed because it did not end in time;
    ``cycled``: a crash cycle ended it, unless it left in order at the same time; ``trouble``:
    the rules ended it, for something that counts as a failure.
    """
    ended = asked or (cycled and is_abrupt(signal=signal, farewell=farewell))
    if code is None and signal is None:
        in_order = ended and not (overdue or trouble)
        return ExitKind.TERMINATED if in_order else ExitKind.UNKNOWN
    if overdue or trouble:
        return ExitKind.FAILED
    if ended:
        return ExitKind.TERMINATED
    if signal is not None:
        return ExitKind.CRASHED
    if command:
        return ExitKind.CLEAN if code == 0 else ExitKind.FAILED
    return _target_kind(code, farewell, member)


def _target_kind(code: int | None, farewell: bool, member: bool) -> ExitKind:
    """A Python target's code counts if it came with a farewell, or is 0 or 1."""
    if not farewell and (member or code not in (0, 1)):
        return ExitKind.CRASHED
    return ExitKind.CLEAN if code == 0 else ExitKind.FAILED


def is_abrupt(*, signal: int | None, farewell: bool) -> bool:
    """Tell whether an exit may have left something half-done, whoever brought it about."""
    return signal is not None or not farewell


def begins_cycle(life: Life, situation: Situation, *, abrupt: bool) -> bool:
    """Tell whether an exit begins a crash cycle: one at a time, and none during a stop."""
    return life.rule.member and abrupt and not situation.cycle and situation.stop is None


def after_exit(life: Life, kind: ExitKind, *, stopping: bool, cycle: bool = False) -> Verdict:
    """Decide what follows the exit of a worker; *cycle*: of a member, in a crash cycle."""
    match (life.rule.restart, kind):
        case _ if life.terminate or life.for_good or stopping:
            return Verdict.RETIRE
        case (Restart.NEVER, _) if cycle:
            # PostgreSQL forgets them, asked to restart or not: their arguments may name
            # what was in the memory that is rebuilt.
            return Verdict.RETIRE
        case _ if life.restart:
            return Verdict.AGAIN_AFTER_CYCLE if cycle else Verdict.AGAIN_NOW
        case (Restart.NEVER, _) | (Restart.ON_FAILURE, ExitKind.CLEAN):
            return Verdict.RETIRE
        case _ if cycle:
            return Verdict.AGAIN_AFTER_CYCLE
        case _ if life.with_group:
            return Verdict.AGAIN_WITH_GROUP
        case _:
            return Verdict.AGAIN_AFTER_DELAY
