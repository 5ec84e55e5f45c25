"""The blocking twin: the same names for plain code, which waits in ``poll``."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar, final

from ..errors import AiobgwError
from ..spec import WorkerSpec
from ..status import Event, ExitStatus, SupervisorStatus, WorkerStatus
from . import waits
from .connection import Connection
from .events import EventStream
from .handle import Handle
from .lookup import find
from .remote import RemotePort

T = TypeVar("T")

LONGEST = 2_000_000.0


def wait_for(connection: Connection, look: Callable[[], T | None], timeout: float | None) -> T:
    """Look, and wait for a message until it is so; raises TimeoutError after *timeout* s."""
    give_up = time.monotonic() + (LONGEST if timeout is None else timeout)
    while True:
        found = look()
        if found is not None:
            return found
        left = give_up - time.monotonic()
        if left <= 0:
            raise TimeoutError
        poll(connection, left)


def poll(connection: Connection, timeout: float) -> None:
    """Take what comes next, within *timeout* seconds."""
    poller = select.poll()
    poller.register(connection.fd, select.POLLIN)
    if connection.pidfd >= 0:
        poller.register(connection.pidfd, select.POLLIN)
    if poller.poll(timeout * 1000):
        connection.drain()
        connection.look_alive()


@final
class BlockingHandle(Handle):
    """A worker, as WorkerHandle, for plain code: waits block, for *timeout* seconds at most.

    A wait that takes longer raises TimeoutError, and loses nothing.  None: without limit.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection, port: RemotePort, name: str) -> None:
        super().__init__(port, name, connection.check_open().epoch, *port.key)
        self._connection = connection

    def wait_for_startup(self, timeout: float | None = None) -> WorkerStatus:
        """Wait until it has started at least once; see WorkerHandle."""
        return self._wait(waits.startup(self._port), timeout)

    def wait_for_ready(self, timeout: float | None = None) -> WorkerStatus:
        """Wait until it is ready; see WorkerHandle."""
        return self._wait(waits.ready(self._port), timeout)

    def wait_for_exit(self, timeout: float | None = None) -> ExitStatus:
        """Wait until the incarnation of this moment has ended; see WorkerHandle."""
        return self._wait(waits.exit(self._port), timeout)

    def wait_for_shutdown(self, timeout: float | None = None) -> ExitStatus | None:
        """Wait until it is over for good and its slot is free; None if it never ran."""
        return self._wait(waits.shutdown, timeout)[0]

    def _wait(self, look: Callable[[WorkerStatus], T | None], timeout: float | None) -> T:
        def find() -> T | None:
            status = self._port.look()
            return None if status is None else look(status)

        return wait_for(self._connection, find, timeout)


class _Events:
    """An iterator that goes on after a TimeoutError, as a generator cannot."""

    def __init__(self, connection: Connection, stream: EventStream, timeout: float | None) -> None:
        self._connection = connection
        self._stream = stream
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return wait_for(self._connection, self._stream.take, self._timeout)


@final
class BlockingClient:
    """The supervisor of another process, for plain code.

    One thread at a time may use it.  Messages are taken in while something waits, and
    whenever a status is asked for.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def welcomed(self, timeout: float) -> None:
        """Wait until the supervisor has answered; raises what refuses this client."""
        wait_for(self._connection, self._connection.greeted, timeout)

    @property
    def epoch(self) -> int:
        """The number of the supervisor's instance."""
        return self._connection.check_open().epoch

    def register(self, spec: WorkerSpec) -> BlockingHandle:
        """Register a worker with the supervisor; see ``Client.register``."""
        answers: list[RemotePort | AiobgwError] = []
        number = self._connection.register(spec, answers.append)
        try:
            answer = wait_for(self._connection, lambda: answers or None, None)[0]
        except BaseException:  # KeyboardInterrupt, Interrupted: nobody waits for it any more
            self._connection.withdraw(number)
            raise
        if isinstance(answer, AiobgwError):
            raise answer
        return BlockingHandle(self._connection, answer, spec.name)

    def handles(self) -> list[BlockingHandle]:
        """Return the workers that hold a slot, the first registered first."""
        self._connection.drain()
        return [
            BlockingHandle(
                self._connection, self._connection.port(one.slot, one.generation), one.name
            )
            for one in self._connection.workers()
        ]

    def get(self, name_or_token: str) -> BlockingHandle | None:
        """Return the newest worker of that name, or the one of that token; None if gone."""
        self._connection.drain()
        found = find(self._connection, name_or_token)
        return None if found is None else BlockingHandle(self._connection, found[0], found[1])

    def status(self) -> SupervisorStatus:
        """Return how the supervisor and its workers are now, read from its board."""
        self._connection.drain()
        return self._connection.status()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Subscribe to what happens from now on; each event may take *timeout* seconds.

        Then TimeoutError is raised; whoever goes on asking loses nothing.
        """
        return _Events(self._connection, self._connection.follow(), timeout)

    def close(self) -> None:
        """Detach; idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
