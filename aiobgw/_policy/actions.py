"""What can be done about a worker.  Values only; the supervisor's effects carry them out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """Have it started; the outcome comes back as an event."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the launch back if nobody knows of it yet (Withdrawn), else do nothing."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Take back a launch whose hello was not heard; nothing of it runs afterwards."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to its process, or to its whole group."""

    signum: int
    group: bool = False


@dataclass(frozen=True, slots=True)
class Dump:
    """Have it write its stacks, to its output and for its exit status; SIGCONT must follow."""


@dataclass(frozen=True, slots=True)
class BeginCycle:
    """Its end begins a crash cycle: tell all others (CycleBegan)."""


@dataclass(frozen=True, slots=True)
class RestartGroup:
    """Its failure concerns others of its group: have them end, in reverse order."""


@dataclass(frozen=True, slots=True)
class StopGroup:
    """End all of its group for good, because it cannot be kept up."""

    why: str


@dataclass(frozen=True, slots=True)
class FailSupervisor:
    """Have the supervisor fail."""

    why: str


@dataclass(frozen=True, slots=True)
class RecordUnknown:
    """Record an exit of unknown status: no launch reached a process, or nothing ends it."""

    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Its process cannot be killed: say so, with its pid."""


@dataclass(frozen=True, slots=True)
class Retire:
    """It is over for good: free the slot, then tell its waiters."""


Action = (
    Launch
    | Withdraw
    | Drop
    | Signal
    | Dump
    | BeginCycle
    | RestartGroup
    | StopGroup
    | FailSupervisor
    | RecordUnknown
    | GiveUp
    | Retire
)
