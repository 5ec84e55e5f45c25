"""``current_worker()``: what a worker knows of itself, and what it can say."""

from __future__ import annotations

import os
from importlib import import_module

from .._ipc import launch
from .._ipc.channel import Channel
from .._ipc.latch import Latch
from ..errors import NotAttached, WrongProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from typing import Any

    from ..spec import WorkerSpec
    from ..status import SupervisorStatus
    from .beats import Beats
    from .connection import Database
    from .interrupt import Interruptible

_current: CurrentWorker | None = None


def current_worker() -> CurrentWorker:
    """Return the worker that this process is.

    Raises NotAttached in every other process, WrongProcess in a fork of a worker.
    """
    if _current is None:
        raise NotAttached("this process is no worker", hint="call it in a worker's target")
    if _current.pid != os.getpid():
        raise WrongProcess("current_worker()")
    return _current


def become(worker: CurrentWorker) -> None:
    """Make *worker* the one that ``current_worker()`` returns."""
    global _current
    _current = worker


class CurrentWorker:
    """This process as a worker."""

    def __init__(
        self,
        order: Mapping[str, Any],
        channel: Channel,
        latches: Mapping[str, Latch],
        client_fd: int = -1,
    ) -> None:
        self._fields: dict[str, Any] = order["spec"]
        self._channel = channel
        self._client_fd = client_fd
        self._connection: Any = None
        self._client: Any = None
        self._latch: Latch | None = None
        self._woken = False
        self._spec: WorkerSpec | None = None
        self._waiting: list[tuple[asyncio.Future[None], object]] = []
        self.pid = os.getpid()
        self.name: str = self._fields["name"]
        self.incarnation: int = order["incarnation"]
        self.slot: int = order["slot"]
        self.generation: int = order["generation"]
        self.epoch: int = order["epoch"]
        self.latches = latches
        self.database: Database | None = None
        self.beats: Beats | None = None
        self.stop_requested = False

    @property
    def spec(self) -> WorkerSpec:
        """The spec it was registered with, without the arguments."""
        if self._spec is None:
            from .._ipc.record import spec_of_fields

            self._spec = spec_of_fields(self._fields)
        return self._spec

    @property
    def latch(self) -> Latch:
        """The worker's own latch, which ``handle.wake()`` and SIGUSR1 set.

        Made at its first use, so that workers without one have no descriptor for it; a wake
        that came earlier is not lost.
        """
        if self._latch is None:
            latch = Latch()
            self._latch = latch
            # Ordering: publish the latch, then look, so that a signal in between is seen.
            if self._woken:
                latch.set()
        return self._latch

    def wake(self) -> None:
        """Set the worker's latch."""
        self._woken = True
        if self._latch is not None:
            self._latch.set()

    def ready(self) -> None:
        """Tell everybody who waits for it that this worker is ready.  Idempotent.

        Means nothing unless the spec says ``ready=Readiness.NOTIFY``.
        """
        self._say(launch.ready())

    def beat(self) -> None:
        """Give a sign of life; does nothing unless the spec has a ``watchdog``.

        A plain target with a watchdog must call it at least that often, from any thread; an
        async one need not: its event loop does.  Cheap, also in a tight loop, and never waits.
        """
        if self.beats is not None:
            self.beats.beat()

    @property
    def connection(self) -> Any:
        """What the supervisor's connector returned, from the target's first line to its last.

        Raises NotAttached in a worker without ``Flags.DATABASE_CONNECTION``.
        """
        return self._connected().connection

    def interruptible(self) -> Interruptible:
        """Make a block that SIGINT ends early, and the worker not: ``Interrupted`` is raised.

        ``async with`` in a coroutine: the block's task is cancelled.  ``with`` in plain code of
        the main thread: the block gets KeyboardInterrupt, and a statement that runs in C is
        ended by the connection's own ``interrupt()`` or ``cancel()``, if it has one.  Outside
        such a block, and once the worker's end was asked for, SIGINT does nothing.

        Raises NotAttached in a worker without ``Flags.DATABASE_CONNECTION``.
        """
        return self._connected().interrupts.block()

    def _connected(self) -> Database:
        if self.database is None:
            raise NotAttached(
                f"worker {self.name!r} has no database connection",
                hint="register it with Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION",
            )
        return self.database

    def _say(self, frame: bytes) -> None:
        try:
            self._channel.send(frame, block=True)
        except OSError:
            pass  # the supervisor is gone, and the kernel is about to end this process

    # With SHMEM_ACCESS: what clients of the supervisor can do.

    @property
    def client(self) -> Any:
        """The way to the supervisor: a Client for async targets, else a BlockingClient.

        Raises NotAttached without SHMEM_ACCESS.  Its first use waits for the supervisor, a
        turn of its loop.
        """
        if self.pid != os.getpid():
            raise WrongProcess("current_worker()")
        if self._client_fd < 0:
            raise NotAttached(
                f"worker {self.name!r} has no way to the supervisor",
                hint="register it with flags=Flags.SHMEM_ACCESS",
            )
        if self._client is None:
            # By name: workers and clients meet only in what they share.
            inside = import_module("aiobgw._client.inside")
            if self._connection is None:
                self._connection = inside.connect(self._client_fd)
            self._client = inside.open_client(self._connection, self.main_task is not None)
        return self._client

    def register(self, spec: WorkerSpec) -> Any:
        """Register a worker: awaited in an async target, plain (and blocking) in a plain one.

        Returns a WorkerHandle, or a BlockingHandle.  See ``Supervisor.register``; what this
        worker registers does not end with it.
        """
        return self.client.register(spec)

    def handles(self) -> list[Any]:
        """Return the handles of the workers that hold a slot, the first registered first."""
        handles: list[Any] = self.client.handles()
        return handles

    def get(self, name_or_token: str) -> Any:
        """Return the newest worker of that name, or the one of that token; None if gone."""
        return self.client.get(name_or_token)

    def status(self) -> SupervisorStatus:
        """Return how the supervisor and its workers are now, read from its board."""
        status: SupervisorStatus = self.client.status()
        return status

    def request_stop(self) -> bool:
        """Note that the end was asked for; return whether the main task awaits just that."""
        self.stop_requested = True
        self.wake()
        main_waits = False
        for waiter, task in self._waiting:
            main_waits = main_waits or task is self.main_task
            if not waiter.done():
                waiter.set_result(None)
        return main_waits

    main_task: object = None

    async def wait_for_stop(self) -> None:
        """Return when the worker's end is asked for.

        A main task that waits here is not cancelled: it returns, and has ``stop_timeout``
        to finish what it has in hand.
        """
        import asyncio

        if self.stop_requested:
            return
        waiting = (asyncio.get_running_loop().create_future(), asyncio.current_task())
        self._waiting.append(waiting)
        try:
            await waiting[0]
        finally:
            self._waiting.remove(waiting)

    def __repr__(self) -> str:
        return f"<CurrentWorker {self.name!r} incarnation={self.incarnation} pid={self.pid}>"
