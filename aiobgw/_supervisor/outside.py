"""What other processes see of a supervisor: its board, its runtime directory, its peers.

Ownership: the board, the instance (directory and lock), the control socket, and through Peers
every client's channel.  The board is written once somebody can read it: a record costs a start
40 us.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._ipc import rundir
from .._ipc.board import HEAD, BoardWriter
from .._ipc.channel import Channel
from .._ipc.record import pack_head, pack_status
from .._process.watcher import Watcher
from .access import Access
from .control import Control
from .instance import Instance
from .peers import Peers

if TYPE_CHECKING:
    from .core import Core
    from .registry import RegisteredWorker

log = logging.getLogger("aiobgw")


class Outside:
    """The parts of a supervisor that others reach."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._board: BoardWriter | None = None
        self._shared = False
        self._head = b""
        self._used = 0
        self._instance: Instance | None = None
        self._control: Control | None = None
        self._peers: Peers | None = None

    # Coming.

    async def take_place(self) -> None:
        """Take the runtime directory, if there shall be one; raises AlreadyRunning."""
        settings = self._core.settings
        if settings.runtime_dir is None or settings.runtime_dir is False:
            return
        where = settings.runtime_dir
        path = rundir.place(settings.name if where is True else where)
        self._instance = await Instance.take(path, private=Access(settings).is_private)

    @property
    def lock(self) -> int:
        """The descriptor of the instance lock, -1 if there is none."""
        return -1 if self._instance is None else self._instance.lock

    def open(self) -> None:
        self._board = BoardWriter(self._core.settings.max_workers, self._core.epoch)

    def connect(self, watcher: Watcher) -> None:
        """Be ready for peers, which are heard after all else that *watcher* has to tell."""
        self._peers = Peers(self._core, watcher)

    def listen(self) -> None:
        """Let clients in."""
        if self._instance is not None and self._peers is not None:
            access = Access(self._core.settings)
            self._control = Control(self._instance, access, self._peers, self._peers.watcher)

    # The board.

    def share_board(self) -> int:
        """Return the board's descriptor, for somebody who is about to read it."""
        assert self._board is not None
        if not self._shared:
            self._shared = True
            for worker in self._core.registry.all():
                self.publish(worker)
        self._publish_head()
        return self._board.fd

    def publish(self, worker: RegisteredWorker) -> None:
        """Write the worker's record; the board is a copy for others, so that this may fail.

        Ordering: a new worker is here before anybody hears of it, its registrant or others.
        """
        if not self._shared or self._board is None:
            return
        try:
            self._board.write(worker.slot, pack_status(worker.status()))
        except (ValueError, OSError) as error:
            log.error("worker %s: its record cannot be written: %s", worker.spec.name, error)
        if self._core.registry.used != self._used:
            self._publish_head()

    def _publish_head(self, *, closed: bool = False) -> None:
        self._used = self._core.registry.used
        head = pack_head(self._core.status(workers=()), self._used, closed=closed)
        if head != self._head and self._board is not None:
            self._head = head
            self._board.write(HEAD, head)

    def publish_head(self) -> None:
        """Write the supervisor's own record, if anybody may read it."""
        if self._shared:
            self._publish_head()

    # Peers.

    def channel_for(self, name: str) -> Channel:
        """Return the worker's end of a channel to here; whoever holds it may ask."""
        assert self._peers is not None
        ours, theirs = Channel.pair()
        try:
            self._peers.add_worker(ours, name)
        except OSError:
            theirs.close()
            raise
        return theirs

    def hear(self) -> None:
        """Take in what peers ask for, a bounded part of it."""
        if self._peers is not None:
            self._peers.watcher.poll()

    def flush(self) -> None:
        """Publish what a turn has changed, then tell of it."""
        self.publish_head()
        if self._peers is not None and self._peers.behind:
            self._peers.flush()

    # Going.

    def hang_up(self, *, in_order: bool) -> None:
        """Let all clients go, after they were told all there is.

        One that is too far behind to be told finds on the board that it ended in order.
        """
        if self._shared:
            self._publish_head(closed=in_order)
        self.disconnect()

    def disconnect(self) -> None:
        """Undo ``listen`` and ``connect``."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._peers is not None:
            self._peers.close()
            self._peers = None

    def close(self) -> None:
        """Give the rest back.  A reader's mapping of the board stays: last states live on."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    @property
    def board_fd(self) -> int:
        """The board's descriptor, -1 if there is none."""
        return -1 if self._board is None else self._board.fd

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""
        yield self.board_fd
        if self._instance is not None:
            yield from (self._instance.directory, self._instance.lock)
        if self._control is not None:
            yield self._control.fileno()
        if self._peers is not None:
            yield from self._peers.descriptors()

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host, and touch nothing that is shared."""
        if self._control is not None:
            self._control.close_copy()
        if self._peers is not None:
            self._peers.close_copies()
        if self._board is not None:
            self._board.close()
        if self._instance is not None:
            self._instance.close_copy()
