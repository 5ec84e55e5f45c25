"""Peers: the clients of a supervisor, each on a channel of its own, none of them trusted.

A peer can ask, and nothing else: what it sends is decoded strictly, checked as if it were a
stranger's, and counted.  What it does not read waits in its ``outbox``, bounded.  It slows
nobody down, and nobody is ever signalled.

Ordering: exits come before requests, whichever happened first: who asks finds the room that
others have left.  So peers have a watcher of their own, which has its turn after the other.

Invariants: a request is carried out within the call that read it, so that a peer killed at
any moment has either asked or not.  A peer's subscriptions go with it.  No more descriptors
are taken in than a message of its kind may bring, and what is not used is closed.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .. import __version__
from .._inject import _inject
from .._ipc import requests
from .._ipc.channel import BrokenMessage, Channel
from .._ipc.record import pack_status
from .._ipc.verbs import Rights, Verb
from .._policy.rate import Bucket
from .._process.watcher import LateWatcher, Watcher
from ..errors import AccessDenied, AiobgwError, ProtocolMismatch
from ..status import Event
from . import foreign
from .admission import admit
from .outbox import Outbox

if TYPE_CHECKING:
    from .core import Core
    from .registry import RegisteredWorker

MESSAGES_PER_TURN = 4
BURST, PER_SECOND = 4_000, 8_000
ALL_BURST, ALL_PER_SECOND = 8_000, 16_000
GARBAGE_COSTS = 100
"""A message that is none costs as much as so many: who sends nothing else is soon slow."""

WITHDRAWABLE = 1_024
"""So many registrations of each peer are remembered by their numbers: more cannot be on the way."""

MOST_FDS = 253
"""So many the kernel allows: what it does not hand over it closes itself, and waits for that."""

HELLO_TIMEOUT = 5.0
log = logging.getLogger("aiobgw")


class Peers:
    """All peers of a supervisor."""

    def __init__(self, core: Core, first: Watcher) -> None:
        self.core = core
        self.watcher = LateWatcher(first)
        self.bucket = Bucket(ALL_BURST, ALL_PER_SECOND)
        self.behind: set[Peer] = set()
        self._peers: set[Peer] = set()

    @property
    def clients(self) -> int:
        """How many there are that connected."""
        return sum(not peer.is_worker for peer in self._peers)

    def add_worker(self, channel: Channel, name: str) -> None:
        """Take the channel of a worker with SHMEM_ACCESS, which says hello if it wants to."""
        peer = Peer(self, channel, Rights.ADMINISTRATE, own=True, name=f"worker {name}")
        peer.is_worker = True
        self._add(peer)

    def add(self, channel: Channel, rights: Rights, *, own: bool, name: str) -> None:
        """Take a client that connected, and has to say hello soon."""
        peer = Peer(self, channel, rights, own=own, name=name)
        self._add(peer)
        self.watcher.timer(("hello", peer), time.monotonic() + HELLO_TIMEOUT, peer.too_late)

    def _add(self, peer: Peer) -> None:
        """Watch a peer; its channel is closed by the peer, or right here."""
        try:
            self.watcher.watch(peer.channel.fd, peer.on_ready, select.EPOLLIN)
        except OSError:
            peer.channel.close()
            raise
        self._peers.add(peer)

    def discard(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self.behind.discard(peer)

    def flush(self) -> None:
        """Tell who has to look at what, at the end of a turn: once each."""
        behind, self.behind = self.behind, set()
        for peer in behind:
            peer.outbox.flush()

    def close(self) -> None:
        """Let all of them go, after what waits for them."""
        self.flush()
        for peer in list(self._peers):
            peer.close()
        self.watcher.close()

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that they hold."""
        yield self.watcher.epoll.fileno()
        yield from (peer.channel.fd for peer in self._peers)

    def close_copies(self) -> None:
        self.watcher.epoll.close()
        for peer in self._peers:
            peer.channel.close()


class Peer:
    """One client."""

    def __init__(
        self, peers: Peers, channel: Channel, rights: Rights, *, own: bool, name: str
    ) -> None:
        self.channel = channel
        self.rights = rights
        self.own = own
        self.name = name
        self.is_worker = False
        self._peers = peers
        self._core = peers.core
        self._greeted = False
        self._bucket = Bucket(BURST, PER_SECOND)
        self._events = select.EPOLLIN
        self._held_back = False
        self._watching: dict[RegisteredWorker, Callable[[], None]] = {}
        self._registered: dict[int, tuple[int, int]] = {}
        self._follows = False
        self._open = True
        self.outbox = Outbox(channel, self._listen)

    # Reading.

    def on_ready(self) -> None:
        """Send what waits, then read some, unless answers still wait."""
        waited = self.outbox.blocked
        self.outbox.flush()
        if self._held_back and waited:
            return  # it came for room; held back and not waiting, only a hang-up comes
        for _ in range(MESSAGES_PER_TURN):
            if not self._open or self.outbox.answers or not self._read():
                break
        if self._open:
            self._hold_back()

    def _read(self) -> bool:
        """Read one message and carry it out; return whether there may be another."""
        try:
            data, fds = self.channel.receive(MOST_FDS, discard=foreign.close)
        except BlockingIOError:
            if self.outbox.deaf:
                self.close()
            return False
        except BrokenMessage:
            self._garbage("too long")
            return True
        except ConnectionResetError:
            return True  # Race: it went with something unread; what it asked for is still there
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return False
        try:
            self._count(1)
            self._take(data, fds)
        finally:
            foreign.close(fds)  # what was used was taken out
        return True

    def _take(self, data: bytes, fds: list[int]) -> None:
        try:
            message = requests.read_request(data)
        except requests.BadMessage as error:
            self._garbage(str(error))
            return
        most = requests.REGISTER_FDS if isinstance(message, requests.Register) else 0
        if len(fds) > most:
            self._garbage("unasked descriptors")
        elif isinstance(message, requests.Hello):
            self._hello(message)
        elif not self._greeted:
            self._refuse(0, ProtocolMismatch("a client says hello first"))
            self.close()
        else:
            self._carry_out(message, fds)

    def _carry_out(self, message: requests.ToSupervisor, fds: list[int]) -> None:
        match message:
            case requests.Register():
                self._register(message, fds)
            case requests.Withdraw(number):
                self._withdraw(number)
            case requests.Ask(verb, slot, generation, argument):
                worker = self._tenant(slot, generation)
                if self.rights >= Rights.OPERATE and worker is not None:
                    self._core.ask(worker, verb, argument)
            case requests.Watch(slot, generation):
                self._watch(slot, generation)
            case requests.Unwatch(slot, generation):
                worker = self._tenant(slot, generation)
                if worker is not None:
                    self._unwatch(worker)
            case requests.Follow():
                self._follow()
            case requests.Unfollow():
                self._unfollow()

    def _count(self, tokens: int) -> None:
        now = time.monotonic()
        self._bucket.take(now, tokens)
        self._peers.bucket.take(now, tokens)

    def _garbage(self, why: str) -> None:
        self._count(GARBAGE_COSTS)
        log.debug("%s: a message that is none: %s", self.name, why)
        self._refuse(0, ProtocolMismatch(f"no message of this protocol: {why}"))

    def _hold_back(self) -> None:
        """Do not read from one that has asked for too much, until that is made up for."""
        now = time.monotonic()
        at = max(self._bucket.free_at(now), self._peers.bucket.free_at(now))
        if at > now:
            self._held_back = True
            self._listen()
            self._peers.watcher.timer(("rate", self), at, self._go_on)

    def _go_on(self) -> None:
        self._held_back = False
        self._listen()

    def _listen(self) -> None:
        """Ask for what can be used: no requests while answers wait, or after too many.

        One that is deaf is always writable: so it is read from up to its end, and let go.
        """
        reads = not self._held_back and not self.outbox.answers
        writes = self.outbox.blocked or (self.outbox.deaf and reads)
        events = select.EPOLLIN * reads | select.EPOLLOUT * writes
        if self._open and self._events != events:
            self._events = events
            self._peers.watcher.change(self.channel.fd, events)

    # Requests.

    def _hello(self, hello: requests.Hello) -> None:
        if hello.wire != requests.WIRE:
            theirs = f"a client of aiobgw {hello.version} (wire {hello.wire})"
            error = ProtocolMismatch(f"{theirs}; this is {__version__} (wire {requests.WIRE})")
            self._refuse(0, error)
            self.close()
        elif not self._greeted:
            self._peers.watcher.cancel(("hello", self))
            self._welcome()

    def _welcome(self) -> None:
        core = self._core
        answer = requests.Welcome(
            requests.WIRE, __version__, core.epoch, self.rights, core.settings.max_payload
        )
        try:
            pidfd = os.pidfd_open(os.getpid())
        except OSError as error:
            self._refuse(0, AiobgwError(f"the supervisor cannot let anybody in: {error}"))
            self.close()
            return
        try:
            self.channel.send(requests.pack(answer), (core.outside.share_board(), pidfd))
            self._greeted = True
        except OSError:
            self.close()  # it asked before, and reads nothing
        finally:
            os.close(pidfd)

    def too_late(self) -> None:
        if not self._greeted:
            self.close()

    def _register(self, message: requests.Register, fds: list[int]) -> None:
        try:
            if self.rights < Rights.ADMINISTRATE:
                raise AccessDenied("this process may not administrate here")
            _inject("before_answer")
            worker = admit(self._core, message, fds, own=self.own)
        except AiobgwError as error:
            self._refuse(message.number, error)
            return
        except OSError as error:
            self._refuse(message.number, AiobgwError(f"the supervisor cannot: {error}"))
            return
        self._registered[message.number] = (worker.slot, worker.generation)
        if len(self._registered) > WITHDRAWABLE:
            del self._registered[next(iter(self._registered))]
        self.outbox.answer(requests.Accepted(message.number, worker.slot, worker.generation))
        self._subscribe(worker)
        self._core.consider(worker)

    def _withdraw(self, number: int) -> None:
        worker = self._tenant(*self._registered.pop(number, (-1, 0)))
        if worker is not None:
            self._core.ask(worker, Verb.TERMINATE, 0)

    def _tenant(self, slot: int, generation: int) -> RegisteredWorker | None:
        worker = self._core.registry.at(slot)
        return worker if worker is not None and worker.generation == generation else None

    # What it is told.

    def _watch(self, slot: int, generation: int) -> None:
        worker = self._tenant(slot, generation)
        if worker is None:
            body = pack_status(self._core.registry.last_words(slot, generation))
            self.outbox.changed[slot, generation] = body
            self._peers.behind.add(self)
        else:
            self._subscribe(worker)
            self._note(worker)  # always once: it may have changed before this

    def _subscribe(self, worker: RegisteredWorker) -> None:
        if worker not in self._watching:
            note = self._watching[worker] = partial(self._note, worker)
            worker.changes.call(note)

    def _unwatch(self, worker: RegisteredWorker) -> None:
        note = self._watching.pop(worker, None)
        if note is not None:
            worker.changes.forget(note)

    def _note(self, worker: RegisteredWorker) -> None:
        key = (worker.slot, worker.generation)
        if worker.is_over:
            self._unwatch(worker)
            self.outbox.changed[key] = pack_status(worker.status())
        else:
            self.outbox.changed[key] = None
        self._peers.behind.add(self)

    def _follow(self) -> None:
        if not self._follows:
            self._follows = True
            self._core.news.add(self)

    def _unfollow(self) -> None:
        self._follows = False
        self._core.news.remove(self)

    def push(self, event: Event) -> None:
        """Hear of an event (as a sink of News)."""
        self.outbox.tell(event)

    def _refuse(self, number: int, error: AiobgwError) -> None:
        self.outbox.answer(requests.refused(number, error))

    def close(self) -> None:
        """Let it go, and all that it had asked to be told."""
        if not self._open:
            return
        self._open = False
        for name in ("hello", "rate"):
            self._peers.watcher.cancel((name, self))
        for worker in list(self._watching):
            self._unwatch(worker)
        if self._follows:
            self._unfollow()
        self._peers.watcher.unwatch(self.channel.fd)
        self.channel.close()
        self._peers.discard(self)
