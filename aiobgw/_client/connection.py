"""A client's end of its channel: sends requests, takes in what the supervisor says.

Waits for nothing: the event loop of an async client calls ``drain`` when there is something to
read, a blocking one polls.  What is known of a worker comes from the board; messages say when to
look again, and bring the last status of a worker, whose slot may have another tenant by then.

Ownership: a Connection owns its channel, its mapping of the board and its pidfd of the
supervisor; its copies in a fork of the process are closed there.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from weakref import WeakSet, WeakValueDictionary, finalize

from .. import __version__
from .._ipc import forks, requests
from .._ipc.board import HEAD, BadBoard, BoardReader, TornRecord
from .._ipc.channel import BrokenMessage, Channel
from .._ipc.record import (
    INLINE_BYTES,
    Head,
    pack_arguments,
    payload_memfd,
    spec_fields,
    unpack_head,
    unpack_status,
)
from .._ipc.verbs import Rights, Verb
from ..errors import (
    AccessDenied,
    AiobgwError,
    NotAttached,
    ProtocolMismatch,
    SupervisorDied,
    WrongProcess,
)
from ..spec import WorkerSpec
from ..status import Closed, EventsLost, SupervisorStatus, WorkerState, WorkerStatus
from .changes import Changes
from .events import EventStream
from .remote import RemotePort, Watched

WELCOME_FDS = 2
DRAINED_AT_ONCE = 64

Answer = Callable[["RemotePort | AiobgwError"], None]


class Connection:
    """What a client knows and has asked for."""

    def __init__(self, channel: Channel) -> None:
        self.fd = channel.fd
        self.pidfd = -1
        self.welcome: requests.Welcome | None = None
        self.changes = Changes()
        self.over: AiobgwError | None = None
        self.ended_in_order = False
        self.on_blocked: Callable[[], None] | None = None
        self._channel = channel
        self._pid = os.getpid()
        self._board: BoardReader | None = None
        self._numbers = 0
        self._expected: dict[int, Answer] = {}
        self._watched: WeakValueDictionary[tuple[int, int], Watched] = WeakValueDictionary()
        self._forgotten: deque[tuple[int, int]] = deque()
        self._streams: WeakSet[EventStream] = WeakSet()
        self._follows = False
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        forks.close_in_forks(self)
        self._send(requests.pack(requests.Hello(requests.WIRE, __version__)))

    # Checks.

    def check(self) -> None:
        """Raise in a fork of the process that attached."""
        if os.getpid() != self._pid:
            raise WrongProcess("a client of a supervisor")

    def check_open(self, needed: Rights = Rights.VIEW) -> requests.Welcome:
        """Raise unless requests that need such rights can be sent."""
        self.check()
        self.look_alive()
        if self.over is not None:
            raise self.ending()
        if self.welcome is None:
            raise NotAttached("the supervisor has not answered yet")
        if self.welcome.rights < needed:
            raise AccessDenied(f"this process may not {needed.name.lower()} here")
        return self.welcome

    def greeted(self) -> bool | None:
        """Look whether the supervisor has answered; raises what refused this client."""
        if self.over is not None:
            raise self.ending()
        return self.welcome is not None or None

    def ending(self) -> AiobgwError:
        """Return why this is over: a fresh error for each, since a raised one carries more."""
        assert self.over is not None
        error = copy(self.over)
        error.__notes__ = [*getattr(self.over, "__notes__", ())]
        return error

    def look_alive(self) -> None:
        """Notice the supervisor's death now, if it is dead."""
        if self.over is None and self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(0):
                self._take_the_rest()

    # Requests.

    def register(self, spec: WorkerSpec, answer: Answer) -> int:
        """Ask for a worker; *answer* gets its port, or what refused it.  Returns a number."""
        welcome = self.check_open(Rights.ADMINISTRATE)
        payload = pack_arguments(spec, welcome.max_payload)
        fields = requests.Spec(**spec_fields(spec, payload))
        inline = payload if len(payload) <= INLINE_BYTES else None
        self._numbers += 1
        message = requests.Register(self._numbers, fields, inline, tuple(spec.latches))
        memfd = [] if inline is not None else [payload_memfd(payload)]
        try:
            self._expected[self._numbers] = answer
            self._send(
                requests.pack(message),
                [*memfd, *(latch.fileno() for latch in spec.latches.values())],
            )
        finally:
            for fd in memfd:
                os.close(fd)
        return message.number

    def withdraw(self, number: int) -> None:
        """Have the worker of a registration ended, whether it is answered or not."""
        self._expected.pop(number, None)
        self._send(requests.pack(requests.Withdraw(number)))

    def ask(self, verb: Verb, slot: int, generation: int, argument: int) -> None:
        """Pass a request about a worker on; nothing if the supervisor is gone, as they are."""
        if self.over is None:
            self.check_open(Rights.OPERATE)
            self._send(requests.pack(requests.Ask(verb, slot, generation, argument)))

    def follow(self) -> EventStream:
        """Subscribe to events."""
        self.check_open()
        stream = EventStream()
        self._streams.add(stream)
        # Ordering: known before it is sent, since that may find out that all is over.
        if not self._follows:
            self._follows = True
            self._send(requests.pack(requests.Follow()))
        return stream

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self.over is not None:
            return
        while self._forgotten:
            self._transmit(requests.pack(requests.Unwatch(*self._forgotten.popleft())), ())
        self._transmit(data, fds)

    def _transmit(self, data: bytes, fds: Sequence[int]) -> None:
        """Send, or keep the order: what cannot be sent now is sent when there is room."""
        try:
            if not self._outgoing:
                self._channel.send(data, fds, block=self.on_blocked is None)
                return
        except BlockingIOError:
            pass
        except OSError:
            self._take_the_rest()
            return
        self._outgoing.append((data, [os.dup(fd) for fd in fds]))
        if self.on_blocked is not None:
            self.on_blocked()

    def flush(self) -> bool:
        """Send what had to wait; return whether all is sent."""
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                self._channel.send(data, fds)
            except BlockingIOError:
                return False
            except OSError:
                self._take_the_rest()
                return True
            self._outgoing.popleft()
            for fd in fds:
                os.close(fd)
        return True

    # What the supervisor says.

    def drain(self) -> None:
        """Take what has come, a bounded part of it."""
        for _ in range(DRAINED_AT_ONCE):
            if not self._take_next():
                return

    def _take_the_rest(self) -> None:
        """It is gone: take all that it said before, which comes first, and is finite."""
        while self._take_next():
            pass
        self.lost()

    def _take_next(self) -> bool:
        """Take one message; return whether there may be another."""
        if self.over is not None:
            return False
        try:
            data, fds = self._channel.receive(0 if self.welcome else WELCOME_FDS)
            if data:
                self._take(requests.read_answer(data), fds)
            else:
                self.lost()
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass  # Race: it went with something of ours unread; what it said is still there
        except (OSError, BrokenMessage):
            self.lost()
        except AiobgwError as error:
            self.lost(error)
        return True

    def _take(self, message: requests.ToClient, fds: list[int]) -> None:
        if not isinstance(message, requests.Welcome):
            for fd in fds:
                os.close(fd)
        match message:
            case requests.Welcome():
                self._take_welcome(message, fds)
            case requests.Accepted(number, slot, generation):
                answer = self._expected.pop(number, None)
                port = self.port(slot, generation, watch=False)
                if answer is not None:
                    answer(port)
            case requests.Refused(number):
                self._take_refusal(number, requests.error_of(message))
            case requests.Changed(workers):
                for slot, generation, body in workers:
                    self._changed(slot, generation, body)
            case requests.Happened():
                self._publish(message)

    def _take_welcome(self, message: requests.Welcome, fds: list[int]) -> None:
        if len(fds) != WELCOME_FDS or self.welcome is not None:
            for fd in fds:
                os.close(fd)
            raise ProtocolMismatch("a welcome without a board")
        board, self.pidfd = fds
        try:
            self._board = BoardReader(board)
        except BadBoard as error:
            raise ProtocolMismatch(f"the supervisor's board: {error}") from None
        finally:
            os.close(board)  # the mapping holds a copy of its own
        if self._board.epoch != message.epoch:
            raise ProtocolMismatch("the board is another supervisor's")
        self.welcome = message
        self.changes.tell()

    def _take_refusal(self, number: int, error: AiobgwError) -> None:
        answer = self._expected.pop(number, None)
        if answer is not None:
            answer(error)
        elif self.welcome is None:
            raise error

    def _changed(self, slot: int, generation: int, body: bytes | None) -> None:
        watched = self._watched.get((slot, generation))
        if watched is None:
            return
        if body is not None:
            watched.note(unpack_status(slot, body), final=True)
        elif (status := self.read(slot)) is not None and status.generation == generation:
            watched.note(status)
        watched.changes.tell()
        self.changes.tell()

    def _publish(self, message: requests.Happened) -> None:
        if not self._streams and self._follows:
            self._follows = False  # all of them were dropped
            self._send(requests.pack(requests.Unfollow()))
        event = requests.event_of(message)
        if event is not None:
            for stream in list(self._streams):
                stream.push(event)
            self.changes.tell()

    # What is known.

    def read(self, slot: int) -> WorkerStatus | None:
        """Return what the board says of a slot; None if it never had a worker."""
        if self._board is None:
            return None  # closed
        try:
            body = self._board.read(slot)
        except TornRecord:
            self.look_alive()
            return None
        return unpack_status(slot, body) if body else None

    def head(self) -> Head:
        """Return what the supervisor's own record says."""
        self.check_open()
        assert self._board is not None
        return unpack_head(self._board.read(HEAD))

    def workers(self) -> list[WorkerStatus]:
        """Return those that hold a slot, the first registered first."""
        found = [self.read(slot) for slot in range(self.head().used)]
        living = [one for one in found if one and one.state is not WorkerState.STOPPED]
        return sorted(living, key=lambda status: status.generation)

    def status(self) -> SupervisorStatus:
        return replace(self.head().status, workers=tuple(self.workers()))

    def port(self, slot: int, generation: int, *, watch: bool = True) -> RemotePort:
        """Return the way to a worker, which is watched from now on."""
        watched = self._watched.get((slot, generation))
        if watched is None:
            watched = Watched()
            self._watched[slot, generation] = watched
            finalize(watched, self._forgotten.append, (slot, generation)).atexit = False
            if watch:
                self._send(requests.pack(requests.Watch(slot, generation)))
        return RemotePort(self, watched, slot, generation)

    # The end.

    def lost(self, error: AiobgwError | None = None) -> None:
        """Note that nothing more will come, and tell everybody who waits."""
        if self.over is not None:
            return
        self.over = error or SupervisorDied("the supervisor is gone, and its workers with it")
        for answer in list(self._expected.values()):
            answer(self.ending())
        self._expected.clear()
        self.ended_in_order = error is None and self._has_closed()
        for stream in list(self._streams):
            if self.ended_in_order:
                stream.push(EventsLost(time.time(), 0))
                stream.push(Closed(time.time()))
            else:
                stream.fail(self.ending())
        for watched in list(self._watched.values()):
            watched.changes.tell()
        self.changes.tell()

    def _has_closed(self) -> bool:
        """Tell whether the supervisor has ended in order, but could not say so in time."""
        try:
            return self._board is not None and unpack_head(self._board.read(HEAD)).closed
        except (TornRecord, ValueError):
            return False

    def close(self) -> None:
        """Give everything back; what was asked for stays asked for."""
        self.lost(NotAttached("this client is closed"))
        self._close_all()

    def forked(self) -> None:
        self._close_all()

    def _close_all(self) -> None:
        self._channel.close()
        if self._board is not None:
            self._board.close()
            self._board = None
        fds = [self.pidfd, *(fd for _, held in self._outgoing for fd in held)]
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self._outgoing.clear()
        self.pidfd = -1
