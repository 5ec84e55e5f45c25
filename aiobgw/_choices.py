"""The choices of a spec and of a supervisor: enums, named as in PostgreSQL, OTP and systemd."""

from __future__ import annotations

import enum


class Restart(enum.Enum):
    """Whether an exit that nobody asked for is followed by another start.

    systemd's ``Restart=`` and OTP's temporary, transient and permanent.
    """

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class CrashScope(enum.Enum):
    """Whom the crash of a worker concerns.

    ALL is PostgreSQL's rule for what is attached to shared memory: a worker that ends
    without its farewell may leave that memory half-changed, so that all others of this scope
    (the members) are ended, the application rebuilds its memory (``on_reset``), and they
    start again.  Whoever ended it, ``kill()`` and a ``stop_timeout`` that ran out included.
    """

    WORKER = "worker"
    ALL = "all"


class Flags(enum.IntFlag):
    """What a worker may use, and the class it counts for (PostgreSQL's bits)."""

    NONE = 0
    SHMEM_ACCESS = 0x1
    DATABASE_CONNECTION = 0x2
    CLASS_PARALLEL = 0x10


class Phase(enum.IntEnum):
    """How far the service is; a worker's ``start_when`` is the first one it may start in."""

    SUPERVISOR_START = 1
    CONSISTENT_STATE = 2
    RUNNING = 3


class ShutdownMode(enum.IntEnum):
    """How a supervisor stops; a stop only gets stricter.

    SMART takes no new workers and waits for the running ones, FAST asks all to end (SIGTERM,
    ``stop_timeout``, SIGKILL): at once, but members of groups and dependencies after those that
    were to start after them.  IMMEDIATE does not ask, and keeps no order (SIGQUIT, 5 s, SIGKILL).
    """

    SMART = 1
    FAST = 2
    IMMEDIATE = 3


class Escalate(enum.Enum):
    """What follows when a worker needed more restarts than its rule allows, and stops for good.

    OTP's supervisors end themselves then, which their own supervisors see (FAIL, or STOP_GROUP
    if the group is what would have been a supervisor there).
    """

    IGNORE = "ignore"
    STOP_GROUP = "stop-group"
    FAIL = "fail"


class Strategy(enum.Enum):
    """Whom the restart of a worker concerns within its group (OTP's, by the same names).

    That is: a restart by its rule, after an exit that counts; not one that was asked for.
    ONE_FOR_ALL: all others end, the last first, and start again in order with it;
    REST_FOR_ONE: those registered after it.  Whatever becomes of them on the way counts for
    nothing; those that are never restarted end with the others, and are over.
    """

    ONE_FOR_ONE = "one-for-one"
    ONE_FOR_ALL = "one-for-all"
    REST_FOR_ONE = "rest-for-one"


class After(enum.Enum):
    """What another worker must have come to before one that depends on it may start.

    STARTED: its target is about to be called; READY: it is ready (without readiness of its
    own: started); COMPLETED: it ended for good, and well.
    """

    STARTED = "started"
    READY = "ready"
    COMPLETED = "completed"


class Readiness(enum.Enum):
    """Who says that a worker is ready: nobody (it is once it has started), itself, or a probe."""

    NONE = "none"
    NOTIFY = "notify"
    PROBE = "probe"
