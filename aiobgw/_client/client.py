"""Clients: a process that uses another process's supervisor, async."""

from __future__ import annotations

import asyncio
from typing import final

from ..errors import AiobgwError
from ..spec import WorkerSpec
from ..status import SupervisorStatus
from .connection import Connection
from .events import EventStream
from .handle import WorkerHandle
from .lookup import find
from .remote import RemotePort


@final
class Client:
    """The supervisor of another process, with the same names.

    Belongs to one event loop and its thread.  Handles go on as they do beside the supervisor:
    every wait sees the supervisor's death within a second, and raises SupervisorDied.  A
    client that ends leaves its workers running (as in PostgreSQL: nobody owns a worker).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._closed = False
        connection.on_blocked = self._on_blocked
        self._loop.add_reader(connection.fd, self._on_message)
        if connection.welcome is not None:
            self._watch_death()

    async def welcomed(self) -> None:
        """Wait until the supervisor has answered; raises what refuses this client."""
        while not self._connection.greeted():
            await self._connection.changes.wait()
        self._watch_death()

    @property
    def epoch(self) -> int:
        """The number of the supervisor's instance."""
        return self._connection.check_open().epoch

    async def register(self, spec: WorkerSpec) -> WorkerHandle:
        """Register a worker with the supervisor; see ``Supervisor.register``.

        Raises also AccessDenied and SupervisorDied.  Cancelled after the request was sent,
        it ends the worker if there is one.
        """
        answered: asyncio.Future[RemotePort | AiobgwError] = self._loop.create_future()

        def answer(result: RemotePort | AiobgwError) -> None:
            if not answered.done():
                answered.set_result(result)

        number = self._connection.register(spec, answer)
        try:
            result = await answered
        except asyncio.CancelledError:  # perhaps with the answer in: nobody will have the handle
            self._connection.withdraw(number)
            raise
        if isinstance(result, AiobgwError):
            raise result
        return self._handle(result, spec.name)

    def handles(self) -> list[WorkerHandle]:
        """Return the workers that hold a slot, the first registered first."""
        port = self._connection.port
        workers = self._connection.workers()
        return [self._handle(port(one.slot, one.generation), one.name) for one in workers]

    def get(self, name_or_token: str) -> WorkerHandle | None:
        """Return the newest worker of that name, or the one of that token; None if gone."""
        found = find(self._connection, name_or_token)
        return None if found is None else self._handle(found[0], found[1])

    def status(self) -> SupervisorStatus:
        """Return how the supervisor and its workers are now, read from its board."""
        return self._connection.status()

    def events(self) -> EventStream:
        """Subscribe to what happens from now on; iterate with ``async for``."""
        return self._connection.follow()

    async def wait_closed(self) -> None:
        """Return when the supervisor has ended in order; raise SupervisorDied if it died.

        Raises NotAttached once this client is closed, and whatever else cut it off.
        """
        connection = self._connection
        connection.check()
        while connection.over is None:
            await connection.changes.wait()
        if not connection.ended_in_order:
            raise connection.ending()

    def _handle(self, port: RemotePort, name: str) -> WorkerHandle:
        return WorkerHandle(port, name, self.epoch, *port.key)

    def _watch_death(self) -> None:
        self._loop.add_reader(self._connection.pidfd, self._on_death)

    # Called by the loop.

    def _on_message(self) -> None:
        self._connection.drain()
        self._look()

    def _on_death(self) -> None:
        self._connection.look_alive()
        self._look()

    def _on_blocked(self) -> None:
        self._loop.add_writer(self._connection.fd, self._on_writable)

    def _on_writable(self) -> None:
        if self._connection.flush():
            self._loop.remove_writer(self._connection.fd)

    def _look(self) -> None:
        """Stop reading what has ended: it would be readable for ever."""
        if self._connection.over is not None:
            self._forget()

    def _forget(self) -> None:
        if self._loop.is_closed():
            return
        for fd in (self._connection.fd, self._connection.pidfd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        self._loop.remove_writer(self._connection.fd)

    def close(self) -> None:
        """Detach; idempotent.  Waits raise NotAttached."""
        if not self._closed:
            self._closed = True
            self._forget()
            self._connection.close()

    def __repr__(self) -> str:
        over = self._connection.over
        return f"<Client {'attached' if over is None else over}>"
