"""A worker's life as the rules see it, and what of its spec and its supervisor they depend on.

One enum (WorkerState) says where it is; the flags beside it are latches that were asked for
and are never taken back.  Values only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from signal import SIGTERM
from typing import NamedTuple

from ..spec import Escalate, Phase, Restart, ShutdownMode, Strategy
from ..status import WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What of a spec the rules depend on; ``dumps``: it writes its stacks if it is told to."""

    restart: Restart = Restart.ON_FAILURE
    restart_delay: float = 1.0
    restart_backoff: float = 2.0
    restart_delay_max: float = 60.0
    restart_jitter: float = 0.25
    restart_reset: float | None = None
    max_restarts: int | None = 5
    max_seconds: float = 60.0
    escalate: Escalate = Escalate.IGNORE
    essential: bool = False
    needs_ready: bool = False
    start_timeout: float | None = None
    watchdog: float | None = None
    dumps: bool = False
    stop_signal: int = int(SIGTERM)
    stop_timeout: float = 10.0
    max_age: float | None = None
    max_age_jitter: float = 0.1
    start_when: Phase = Phase.RUNNING
    group: str | None = None
    strategy: Strategy = Strategy.ONE_FOR_ONE
    member: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What of the supervisor the rules depend on; ``cycle``: a crash cycle is under way.

    The last three are of one worker, from its group and its dependencies, as texts: what it
    waits for before it starts, why it never can, and what it waits for before it ends.
    """

    phase: Phase = Phase.RUNNING
    stop: ShutdownMode | None = None
    cycle: bool = False
    waits_for: str = ""
    never_starts: str = ""
    ends_after: str = ""


class Due(enum.Enum):
    """What a worker's deadline is for."""

    START = "start"
    KILL = "kill"
    ABORT = "abort"
    KILL_ABORTED = "kill, as SIGABRT did not end it"
    GIVE_UP = "give up"


class Life(NamedTuple):
    """Where a worker is, what was asked of it, and when it is due.

    ``incarnation`` counts launches; a launch that reached no process is made again under
    the same number.  ``begun`` says that some incarnation started.  ``lost`` counts
    its launches that reached no process, ``failures`` those whose fork
    failed.  ``overdue``: SIGKILL was sent because it did not end in time.  ``cycled``: its
    process was ended by a crash cycle that it did not begin; ``dropped``: its launch was.
    ``with_group``: why its group has it end, also while it waits for its turn; ``for_good``: and
    does not start it again.

    ``ready`` is of this incarnation, ``healthy_since`` the moment it became so first;
    ``was_ready``: some incarnation was.
    ``streak`` counts the failures since it was healthy for long enough, ``recent`` has the
    moments of its restarts by rule that the window of its intensity still holds.  ``trouble``:
    why the rules end this incarnation, as a failure.  Besides ``deadline``, which says what
    follows next (``due``), three moments may be set while it is up: ``ready_by`` (ready, or
    it counts as failed), ``watch_at`` (look for a sign of life; ``silent`` counts the looks
    without one, -1 if there was a beat since the last) and ``old_at`` (replace it).

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
    with_group: str = ""
    for_good: bool = False
    signals: tuple[int, ...] = ()
    lost: int = 0
    failures: int = 0
    ready: bool = False
    was_ready: bool = False
    healthy_since: float | None = None
    streak: int = 0
    recent: tuple[float, ...] = ()
    trouble: str = ""
    deadline: float | None = None
    due: Due | None = None
    ready_by: float | None = None
    watch_at: float | None = None
    silent: int = 0
    old_at: float | None = None
    reason: str = ""

    @property
    def asked(self) -> bool:
        """Tell whether its end was asked for."""
        ends_with_group = self.with_group != "" and self.state is WorkerState.STOPPING
        return self.terminate or self.restart or ends_with_group

    @property
    def wakes_at(self) -> float | None:
        """The first of its moments, None if it waits for no time to pass."""
        first = self.deadline
        for at in (self.ready_by, self.watch_at, self.old_at):
            if at is not None and (first is None or at < first):
                first = at
        return first
