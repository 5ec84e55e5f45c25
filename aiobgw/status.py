"""How a worker is, how it ended, and what happened: plain values, safe to keep and compare."""

from __future__ import annotations

import enum
import signal as signals
from dataclasses import dataclass

from .errors import WorkerFailed
from .spec import Phase, ShutdownMode


class WorkerState(enum.Enum):
    """Where a worker is between registration and its end.

    PostgreSQL's BGWH_STOPPED means "down for now", "gone for good" and "never started" at
    once; here BACKOFF is for now, STOPPED for good, and NOT_STARTED neither.
    """

    NOT_STARTED = "not started"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "back-off"
    STOPPED = "stopped"


class ExitKind(enum.Enum):
    """What an exit means.

    Python targets: 0 is CLEAN; 1, and any code that came with a farewell, FAILED; everything
    else CRASHED.  Commands: 0 is CLEAN, a code FAILED, a signal CRASHED.  Whatever was asked
    to end and did so in time is TERMINATED, whatever its code; what had to be killed because
    it did not is FAILED (it did not crash: we ended it).  UNKNOWN (the status could not be had)
    counts as a crash.

    Members (``crash_scope=CrashScope.ALL``) are held to PostgreSQL's rule: without a farewell
    0 and 1 are CRASHED, too.  A member that ends because another one crashed is TERMINATED, its
    ``reason`` names the other one.
    """

    CLEAN = "clean"
    FAILED = "failed"
    CRASHED = "crashed"
    TERMINATED = "terminated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How one incarnation of a worker ended.

    Exactly one of ``code`` and ``signal`` is set, none if ``kind`` is UNKNOWN.  ``error`` is
    the worker's exception as text (type, message, the tail of the traceback); it is never
    made an object again.
    """

    incarnation: int
    kind: ExitKind
    code: int | None = None
    signal: int | None = None
    reason: str = ""
    error: str | None = None
    name: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether it ended cleanly, or on request and in time."""
        return self.kind in (ExitKind.CLEAN, ExitKind.TERMINATED)

    def check(self) -> None:
        """Raise WorkerFailed unless it ended ``ok``."""
        if not self.ok:
            raise WorkerFailed(self.name, self)

    def __str__(self) -> str:
        text = self.kind.value
        if self.code is not None:
            text += f" with exit code {self.code}"
        elif self.signal is not None:
            text += f" by {_signal_name(self.signal)}"
        return f"{text} ({self.reason})" if self.reason else text


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker at one moment.

    ``started_at`` and ``next_start_at`` are moments on the wall clock (``time.time()``), for
    people; no decision depends on them.  ``restarts`` counts the restarts that the rule made,
    not those that somebody asked for.  ``reason`` says why the worker is where it is, ``says``
    what a command last said of itself (sd_notify's STATUS, 240 bytes), in this incarnation.
    """

    name: str
    type: str
    state: WorkerState
    slot: int
    generation: int
    incarnation: int = 0
    restarts: int = 0
    pid: int | None = None
    ready: bool = False
    started_at: float | None = None
    next_start_at: float | None = None
    exit: ExitStatus | None = None
    reason: str = ""
    says: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatus:
    """A supervisor at one moment, with the workers that hold a slot.

    ``cycle`` counts the crash cycles that came to their end.
    """

    name: str
    pid: int
    epoch: int
    phase: Phase
    stopping: ShutdownMode | None
    max_workers: int
    parallel_workers: int
    max_parallel_workers: int
    spares: int
    zygote_pid: int | None
    reaper: str
    cycle: int
    workers: tuple[WorkerStatus, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``at`` is a moment on the wall clock."""

    at: float


@dataclass(frozen=True, slots=True)
class WorkerEvent(Event):
    """Something that happened to a worker; ``status`` is how it was right after."""

    status: WorkerStatus


@dataclass(frozen=True, slots=True)
class Registered(WorkerEvent):
    """A worker has a slot."""


@dataclass(frozen=True, slots=True)
class Started(WorkerEvent):
    """Its target is about to be called, or its command was executed."""


@dataclass(frozen=True, slots=True)
class Ready(WorkerEvent):
    """It is ready: it says so, a probe finds so, or it needs neither and has started.

    Once in each incarnation, and once more after each reload that a command tells of.
    """


@dataclass(frozen=True, slots=True)
class Exited(WorkerEvent):
    """An incarnation has ended; how, is in ``status.exit``."""


@dataclass(frozen=True, slots=True)
class Restarting(WorkerEvent):
    """It will be started again, at ``status.next_start_at``."""


@dataclass(frozen=True, slots=True)
class Retired(WorkerEvent):
    """It is over for good, and its slot is free."""


@dataclass(frozen=True, slots=True)
class PhaseChanged(Event):
    """The start gates of another phase hold from now on."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class CrashCycle(Event):
    """A crash cycle is over: its members have ended, ``on_reset`` has run, they start again.

    ``name`` is the worker that crashed first, ``exit`` how; ``cycle`` is the cycle's number.
    """

    name: str
    exit: ExitStatus
    cycle: int


@dataclass(frozen=True, slots=True)
class ZygoteRestarted(Event):
    """The process that forks workers had died and was replaced; no worker was touched."""

    pid: int


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """A shutdown began, or became stricter."""

    mode: ShutdownMode


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """The supervisor has ended; no event follows."""


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """The subscriber was too slow: this many events before the next one are missing.

    ``count`` 0: nobody knows how many, since the supervisor has ended meanwhile.
    """

    count: int
