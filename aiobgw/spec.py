"""What a worker is: one frozen value, which refuses nonsense at birth.

Sources of the rules: PostgreSQL's BackgroundWorker struct and SanityCheckBackgroundWorker()
for the flags, the classes and their order; OTP's child spec and systemd for restart rules;
systemd, Kubernetes and Nomad for back-off, readiness, liveness and limits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGTERM
from typing import TYPE_CHECKING, cast

from ._choices import After as After
from ._choices import CrashScope as CrashScope
from ._choices import Escalate as Escalate
from ._choices import Flags as Flags
from ._choices import Phase as Phase
from ._choices import Readiness as Readiness
from ._choices import Restart as Restart
from ._choices import ShutdownMode as ShutdownMode
from ._choices import Strategy as Strategy
from ._names import is_of_main, main_module
from ._spec_checks import CHECKS, default_restart, stored_by_name
from ._spec_options import DAY as DAY
from ._spec_options import kept_options

if TYPE_CHECKING:
    from ._ipc.latch import Latch

_UNSET = cast("Restart", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Describe a worker: what it runs, and by which rules it is started, watched and ended.

    name          1 to 95 bytes of UTF-8, no control characters; need not be unique
    target        "package.module:function", or a module-level function (stored by name,
                  resolved in the worker); plain or async
    command       instead of a target: the program and its arguments, never a shell
    type          the group it belongs to in listings (default: its name)
    args, kwargs  for the target; pickled by whoever registers, unpickled in the worker only
    extra         up to 128 bytes that the worker finds in its spec
    flags         see Flags
    start_when    the phase that opens its start gate
    crash_scope   whom its crash concerns; ALL needs SHMEM_ACCESS and a target
    unique        refuse the registration while a worker of this name lives
    latches       latches of the registrant that the worker gets, by name (16 at most)
    loop          event loop of an async target: "asyncio" or "uvloop"

    Restarts.  All times are on the monotonic clock.

    restart           see Restart (default ON_FAILURE, for the parallel class NEVER)
    restart_delay     seconds from the first exit of a streak of failures to the next start,
                      0 to 86,400 (default 1)
    restart_backoff   what each further delay of the streak is multiplied by, 1 to 100
                      (default 2; 1 and no jitter: PostgreSQL's fixed interval; 0 s stay 0 s)
    restart_delay_max seconds that no delay exceeds, 0 to 86,400 (default 60; a longer
                      restart_delay holds; jitter is added after that)
    restart_jitter    the part of a delay that is at most added to it, at random, 0 to 1
                      (default 0.25, Nomad's)
    restart_reset     seconds for which it must have been ready to end the streak, 0 to 86,400
                      (default: 60, or 10 times restart_delay if that is more)
    max_restarts      exits within max_seconds that are answered with a restart, clean ones (with
                      ALWAYS) too; with one more it stops for good: 0 to 10,000, None: no limit
                      (default 5; OTP's intensity).  What was asked for does not count
    max_seconds       the length of that window, which slides, above 0 to 86,400 (default 60)
    escalate          what follows then, see Escalate (default IGNORE)
    essential         whether its end for good fails the supervisor, also a clean one; not one that
                      was asked for, and none during a stop

    Order.

    group         members of a group start in the order of their registration, each when those
                  before it are ready; ``Supervisor(groups=...)`` says whom the restart of one
                  concerns (default ONE_FOR_ONE: nobody else, and others start once those before
                  them have been ready).  They end in reverse, each when those after it have:
                  a stop takes up to the sum of their ``stop_timeout`` and 5 s each
    after         names of workers (64 at most) that must be ready before each of its starts, or
                  a mapping from names to After; a name means the newest worker that has it.  It
                  waits for names that nobody has yet, is over if a dependency can never hold,
                  and does not end with it; in a FAST stop it ends first (but for COMPLETED).
                  Circles are refused

    Readiness and liveness.

    ready           who says that it is ready, see Readiness (default NONE)
    probe           what a probe looks at: "tcp://HOST:PORT", "unix:/PATH" or "unix:@NAME",
                    "http://HOST:PORT/PATH" (ready with a status from 200 to 399), or the words of
                    a program (ready if it exits with 0; run with the worker's user, environment
                    and limits, outside of its cgroup).  From its start on, after 20 ms, then ever
                    more rarely, up to once a second; one look lasts 5 s at most
    notification_fd the descriptor on which a command writes a newline when it is ready (s6),
                    3 to 1,023; needs NOTIFY; without it a command speaks sd_notify's protocol
    start_timeout   seconds from its process's birth until it must be ready (without readiness: have
                    started), above 0 to 86,400 (default: 90 with NOTIFY and PROBE, else none)
    watchdog        seconds within which it must give a sign of life once it is ready, 0.5 to
                    86,400 (default: none).  Async targets do so by themselves from their event
                    loop, plain ones call ``beat()``, commands send WATCHDOG=1.  One that does
                    not is ended by SIGABRT, by rule a failure; a Python target's stacks are
                    then on its standard error, and in its ExitStatus

    The end.

    stop_signal   what asks a command to end (default SIGTERM, which targets always get)
    stop_timeout  seconds from the request to end until SIGKILL, 0 to 86,400 (default 10)
    memory_max    bytes of resident memory (of its process; its children's do not count) above
                  which it is ended, by rule a failure; looked at once a second
    max_age       seconds after its start at which it is replaced, above 0 to 366 days; counts
                  for nothing; with Restart.NEVER it ends
    max_age_jitter the part of max_age that is at most added to it, at random, 0 to 1
                  (default 0.1)

    Identity and limits.  What cannot be had fails the launch: nothing runs with more.

    user          name or number of the user to run as (needs the right to switch)
    user_group    name or number of its group (default: the user's own)
    supplementary_groups  names and numbers of its other groups (default: with user the user's)
    umask         0 to 0o777
    cwd           absolute path of its working directory
    env           its environment: a base of PATH, HOME, USER, LOGNAME, SHELL, LANG, LC_* and TZ,
                  and these names; None as a value: as the supervisor's environment has it
                  (default: all of the supervisor's, but what belongs to its service manager)
    nice          -20 to 19
    cpus          the processors it may run on
    rlimits       limits by their names without RLIMIT_, in lower case ({"nofile": 1024}); one
                  number, or soft and hard; -1: none
    cgroup        cgroup v2 files and what is written to them ({"memory.max": "512M"}); it then has
                  a cgroup of its own, which is killed as a whole at its end; needs
                  ``Supervisor(cgroup=...)``

    Raises InvalidSpec: the first rule broken, in PostgreSQL's order.
    """

    name: str
    target: str | Callable[..., object] | None = None
    command: Sequence[str] | None = None
    type: str = ""
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    extra: bytes = b""
    flags: Flags = Flags.NONE
    start_when: Phase = Phase.RUNNING
    restart: Restart = _UNSET
    restart_delay: float = 1.0
    stop_timeout: float = 10.0
    crash_scope: CrashScope = CrashScope.WORKER
    unique: bool = False
    latches: Mapping[str, Latch] = field(default_factory=dict)
    loop: str = "asyncio"
    user: str | int | None = None
    main: str | None = field(default=None, repr=False)
    restart_backoff: float = 2.0
    restart_delay_max: float = 60.0
    restart_jitter: float = 0.25
    restart_reset: float | None = None
    max_restarts: int | None = 5
    max_seconds: float = 60.0
    escalate: Escalate = Escalate.IGNORE
    essential: bool = False
    group: str | None = None
    after: Mapping[str, After] | Sequence[str] = field(default_factory=dict)
    ready: Readiness = Readiness.NONE
    probe: str | Sequence[str] | None = None
    notification_fd: int | None = None
    start_timeout: float | None = None
    watchdog: float | None = None
    stop_signal: int = int(SIGTERM)
    memory_max: int | None = None
    max_age: float | None = None
    max_age_jitter: float = 0.1
    user_group: str | int | None = None
    supplementary_groups: Sequence[str | int] | None = None
    umask: int | None = None
    cwd: str | os.PathLike[str] | None = None
    env: Mapping[str, str | None] | None = field(default=None, repr=False)
    nice: int | None = None
    cpus: Sequence[int] | None = None
    rlimits: Mapping[str, int | tuple[int, int]] | None = None
    cgroup: Mapping[str, str | int] | None = None

    def __post_init__(self) -> None:
        if self.restart is None:
            self._default("restart", default_restart(self.flags))
        if self.type == "":
            self._default("type", self.name)
        for check in CHECKS:
            check(self)

        if self.target is not None:
            self._default("target", stored_by_name(self))
            if is_of_main(str(self.target)) and self.main is None:
                self._default("main", main_module(self.name))
        if self.command is not None:
            self._default("command", tuple(self.command))
        self._default("args", tuple(self.args))
        for name, value in kept_options(self).items():
            self._default(name, value)

    def _default(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def runs(self) -> str:
        """What it runs, as text for people."""
        return str(self.target) if self.command is None else " ".join(self.command)
