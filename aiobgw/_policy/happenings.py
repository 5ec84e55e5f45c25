"""What happens to a worker.  Values only; ``plan`` says which of them are possible when."""

from __future__ import annotations

from dataclasses import dataclass

from ..status import ExitKind


@dataclass(frozen=True, slots=True)
class Consider:
    """It was registered, or a gate may have opened: look whether it can start, or its
    turn to end has come."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The launch has a process, whose pidfd we hold."""


@dataclass(frozen=True, slots=True)
class HasStarted:
    """The target is imported and about to be called, or the command was executed.

    ``luck``: a random number from 0 to 1, for what is to be spread.
    """

    luck: float = 0.0


@dataclass(frozen=True, slots=True)
class SaidReady:
    """It is ready: it says so, or a probe does."""


@dataclass(frozen=True, slots=True)
class SaidReloading:
    """It is not ready until it says so again (RELOADING=1)."""


@dataclass(frozen=True, slots=True)
class SaidStopping:
    """It has begun to end by itself (STOPPING=1)."""


@dataclass(frozen=True, slots=True)
class Beat:
    """It gave a sign of life."""


@dataclass(frozen=True, slots=True)
class Extend:
    """It needs more time for its start or its end: so many seconds from now."""

    seconds: float


@dataclass(frozen=True, slots=True)
class OverLimit:
    """It uses more than it may, as the text says."""

    why: str


@dataclass(frozen=True, slots=True)
class HasExited:
    """Its process is over; what that means was classified before.

    ``abrupt``: it may have left in mid-work whatever it shares with others.  ``luck``: a
    random number from 0 to 1, for what is to be spread.
    """

    kind: ExitKind
    abrupt: bool = False
    luck: float = 0.0


@dataclass(frozen=True, slots=True)
class LaunchLost:
    """The order reached no process: whoever had it in hand died.

    ``luck``: a random number from 0 to 1, for what is to be spread.
    """

    why: str
    luck: float = 0.0


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """The fork failed, and the system said why."""

    why: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A launch was taken back before anybody knew of it."""


@dataclass(frozen=True, slots=True)
class TerminateAsked:
    """End it for good."""


@dataclass(frozen=True, slots=True)
class KillAsked:
    """End it for good, at once."""


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """End it and start it again; in BACKOFF, start it now."""


@dataclass(frozen=True, slots=True)
class SignalAsked:
    """Send it a signal; the rest is for its restart rule."""

    signum: int


@dataclass(frozen=True, slots=True)
class CycleBegan:
    """A member crashed, and what the members share is not to be relied on any more."""

    why: str


@dataclass(frozen=True, slots=True)
class GroupEnds:
    """Another member of its group has it end, in its turn."""

    why: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class StopBegan:
    """The supervisor stops, or stops more strictly; the Situation says how."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Its deadline is over."""


Happening = (
    Consider
    | Hello
    | HasStarted
    | SaidReady
    | SaidReloading
    | SaidStopping
    | Beat
    | Extend
    | OverLimit
    | HasExited
    | LaunchLost
    | LaunchFailed
    | Withdrawn
    | TerminateAsked
    | KillAsked
    | RestartAsked
    | SignalAsked
    | CycleBegan
    | GroupEnds
    | StopBegan
    | DeadlinePassed
)
