"""A worker's life as the rules see it, what happens to it, and what can be done about it.

One enum (WorkerState) says where it is; the flags beside it are latches that were asked for
and are never taken back.  Values only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from ..spec import Phase, Restart, ShutdownMode
from ..status import ExitKind, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What of a spec the rules depend on."""

    restart: Restart = Restart.ON_FAILURE
    restart_delay: float = 1.0
    stop_timeout: float = 10.0
    start_when: Phase = Phase.RUNNING
    member: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What of the supervisor the rules depend on; ``cycle``: a crash cycle is under way."""

    phase: Phase = Phase.RUNNING
    stop: ShutdownMode | None = None
    cycle: bool = False


class Due(enum.Enum):
    """What a worker's one deadline is for."""

    START = "start"
    KILL = "kill"
    GIVE_UP = "give up"


class Life(NamedTuple):
    """Where a worker is, what was asked of it, and when it is due.

    ``incarnation`` counts launches; a launch that reached no process is made again under
    the same number.  ``begun`` says that some incarnation started.  ``lost`` counts
    its launches that reached no process, ``failures`` those whose fork
    failed.  ``overdue``: SIGKILL was sent because it did not end in time.  ``cycled``: its
    process was ended by a crash cycle that it did not begin; ``dropped``: its launch was.

    A named tuple: each decision makes a new one, in a tenth of dataclasses.replace's time.
    """

    rule: Rule
    state: WorkerState = WorkerState.NOT_STARTED
    incarnation: int = 0
    restarts: int = 0
    begun: bool = False
    has_process: bool = False
    terminate: bool = False
    kill: bool = False
    restart: bool = False
    overdue: bool = False
    cycled: bool = False
    dropped: bool = False
    signals: tuple[int, ...] = ()
    lost: int = 0
    failures: int = 0
    deadline: float | None = None
    due: Due | None = None
    reason: str = ""

    @property
    def asked(self) -> bool:
        """Tell whether its end was asked for."""
        return self.terminate or self.restart


# What happens to a worker.


@dataclass(frozen=True, slots=True)
class Consider:
    """It was registered, or a gate may have opened: look whether it can start."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The launch has a process, whose pidfd we hold."""


@dataclass(frozen=True, slots=True)
class HasStarted:
    """The target is imported and about to be called, or the command was executed."""


@dataclass(frozen=True, slots=True)
class HasExited:
    """Its process is over; what that means was classified before.

    ``abrupt``: it may have left in mid-work whatever it shares with others.
    """

    kind: ExitKind
    abrupt: bool = False


@dataclass(frozen=True, slots=True)
class LaunchLost:
    """The order reached no process: whoever had it in hand died."""

    why: str


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
class StopBegan:
    """The supervisor stops, or stops more strictly; the Situation says how."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Its deadline is over."""


Happening = (
    Consider
    | Hello
    | HasStarted
    | HasExited
    | LaunchLost
    | LaunchFailed
    | Withdrawn
    | TerminateAsked
    | KillAsked
    | RestartAsked
    | SignalAsked
    | CycleBegan
    | StopBegan
    | DeadlinePassed
)


# What can be done about it.


@dataclass(frozen=True, slots=True)
class Launch:
    """Have it started; the outcome comes back as an event."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the launch back if nobody knows of it yet (Withdrawn), else do nothing."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the way to a launch that never said hello: no target runs without one."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to its process, or to its whole group."""

    signum: int
    group: bool = False


@dataclass(frozen=True, slots=True)
class BeginCycle:
    """Its end begins a crash cycle: tell all others (CycleBegan)."""


@dataclass(frozen=True, slots=True)
class RecordUnknown:
    """Record an exit of unknown status: launch after launch reached no process."""

    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Its process cannot be killed: say so, with its pid."""


@dataclass(frozen=True, slots=True)
class Retire:
    """It is over for good: free the slot, then tell its waiters."""


Action = Launch | Withdraw | Drop | Signal | BeginCycle | RecordUnknown | GiveUp | Retire
