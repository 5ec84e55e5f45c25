"""Every exception that aiobgw raises on purpose.

The message says what happened, the note (``hint: ...``) what to do about it.  Errors cross
processes, so each of them survives pickling with its attributes and notes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from .status import ExitStatus


class AiobgwError(Exception):
    """Base of all errors of aiobgw."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.add_note(f"hint: {hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(kind: type[AiobgwError], args: tuple[object, ...], state: dict[str, object]) -> Any:
    """Make an error again without running its constructor, whose signature differs."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidSpec(AiobgwError, ValueError):
    """A worker's specification makes no sense; nothing was registered."""

    @classmethod
    def of(cls, name: object, field: str, given: object, allowed: str) -> Self:
        """Name the worker, the field, what was given, and what is allowed."""
        return cls(f"worker {name!r}: {field} {allowed}, not {given!r}")


class NoFreeSlot(AiobgwError):
    """Registration failed: every worker slot is in use."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"all {limit} worker slots are in use",
            hint="a worker in its restart delay holds its slot; raise Supervisor(max_workers=...)",
        )
        self.limit = limit


class TooManyParallelWorkers(AiobgwError):
    """Registration failed: the quota of the parallel class is used up."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"all {limit} places for parallel workers are in use",
            hint="raise Supervisor(max_parallel_workers=...)",
        )
        self.limit = limit


class PayloadTooLarge(AiobgwError):
    """The pickled arguments of a worker are larger than the supervisor allows."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the pickled arguments take {size} bytes, {limit} are allowed",
            hint="pass a path, or raise Supervisor(max_payload=...)",
        )
        self.size = size
        self.limit = limit


class ShuttingDown(AiobgwError):
    """The supervisor is stopping, or has stopped, and takes no new workers."""


class AlreadyRegistered(AiobgwError):
    """A spec with ``unique=True`` met a living worker of the same name."""


class NeverStarted(AiobgwError):
    """A worker ended, or was given up, before its target was called.

    ``error`` is the worker's traceback as text, where there is one; ``next_start_at`` the
    moment (wall clock) of the next attempt, if its restart rule makes one.
    """

    def __init__(
        self,
        name: str,
        reason: str,
        *,
        error: str | None = None,
        next_start_at: float | None = None,
    ) -> None:
        super().__init__(f"worker {name!r} did not start: {reason}")
        self.name = name
        self.reason = reason
        self.error = error
        self.next_start_at = next_start_at
        if error:
            self.add_note(error.rstrip())


class WorkerFailed(AiobgwError):
    """A worker ended in another way than cleanly or on request."""

    def __init__(self, name: str, exit: ExitStatus) -> None:
        super().__init__(f"worker {name!r} {exit}")
        self.name = name
        self.exit = exit
        if exit.error:
            self.add_note(exit.error.rstrip())


class SupervisorDied(AiobgwError):
    """The supervisor is gone, and the kernel has ended its workers."""


class SupervisorFailed(AiobgwError):
    """The supervisor gave up, for a reason of its own, and has ended its workers."""


class NotAttached(AiobgwError):
    """This process has no way to the supervisor."""


class AccessDenied(AiobgwError):
    """The supervisor does not let this process do that."""


class AlreadyRunning(AiobgwError):
    """Another supervisor of that name lives."""


class WrongProcess(AiobgwError, RuntimeError):
    """An object was used in a fork of the process that it belongs to."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} belongs to the process that made it, not to a fork of it",
            hint="make one of your own here, or attach to the supervisor",
        )


class ProtocolMismatch(AiobgwError):
    """Two processes speak different versions of aiobgw."""


class Unsupported(AiobgwError, RuntimeError):
    """This machine lacks something that aiobgw needs; found by trying it."""


class Interrupted(AiobgwError):
    """SIGINT came while a worker was in an ``interruptible()`` block, which has ended early.

    The worker goes on.  The cause is what ended the action: a cancellation, a
    KeyboardInterrupt, or the driver's own error.
    """

    def __init__(self) -> None:
        super().__init__("SIGINT interrupted the action in hand")


class Terminated(SystemExit):
    """Raised inside a plain target when SIGTERM asks it to end; its exit code is 1."""

    def __init__(self) -> None:
        super().__init__(1)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())
