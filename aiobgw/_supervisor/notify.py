"""sd_notify's socket: hears what commands say of themselves; the kernel says who they are.

One datagram socket for all workers, made when the first one needs it.  Its address is abstract:
no file to make, to protect and to leave behind, and workers of other users, or in another root,
reach it as well (those in another network namespace do not).  That would be wrong for
the control socket, where connecting is the way to ask for things.  Here nothing can be asked for,
and no datagram counts because it arrived: each one comes with the credentials of its sender,
which the kernel has checked (SCM_CREDENTIALS, and SCM_PIDFD since Linux 6.5), and counts for
the worker whose process sent it, or a process of that worker's group.  All others are refused,
with a line in the log.  The 128 random bits of the address keep others from taking the name
first; they are no secret (/proc/net/unix lists them).  A stranger who floods the socket costs a
bounded part of each turn, and can delay others' messages, as at systemd's socket, which
everybody may write to, too.  Who has CAP_SYS_ADMIN may claim to be anybody; it could as well
take the worker over.

Race: a sender that is gone when we look belongs to no group any more, so that a child of a
worker that sends and ends is refused (systemd has the same race).  ``systemd-notify`` waits
until the descriptor that it sends (BARRIER=1) is closed, which is done here when its message
has been looked at.

Race: a message may be read before the hello of its sender's launch, which came first, but on
another descriptor.  So a sender that nobody knows is looked up again in the next turn.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from struct import Struct
from typing import NamedTuple

from .._ipc.notify import DATAGRAM_BYTES, Notice, parse
from .._policy.rate import Bucket
from .._process import exits
from .._process.watcher import SKIPPED_AT_MOST, Watcher
from ..spec import Readiness
from .registry import RegisteredWorker, Registry

DATAGRAMS_PER_TURN = 16
MOST_DESCRIPTORS = 253
"""The kernel's SCM_MAX_FD; what had no room would cost us the sender's pidfd."""

LINES = 8
LINE_SECONDS = 10.0

_SO_PASSPIDFD = 76
_SCM_PIDFD = 4
_UCRED = Struct("=iII")
_PIDFD = Struct("=i")
_ROOM = sum(map(socket.CMSG_SPACE, (_UCRED.size, 4 * MOST_DESCRIPTORS, _PIDFD.size)))
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC

log = logging.getLogger("aiobgw")


class _Datagram(NamedTuple):
    """What came, and from whom.  Owns the descriptors that came with it."""

    data: bytes
    is_whole: bool
    pid: int
    uid: int
    group: int
    pidfd: int
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in (self.pidfd, *self.fds):
            if fd >= 0:
                os.close(fd)


class Audit:
    """Lines about what is refused: a few at once, then one in LINE_SECONDS."""

    def __init__(self) -> None:
        self._bucket = Bucket(LINES, 1 / LINE_SECONDS)
        self._left_out = 0

    def refused(self, pid: int, uid: int, why: str) -> None:
        """Say who was refused, and why."""
        now = time.monotonic()
        if self._bucket.free_at(now) > now:
            self._left_out += 1
            return
        self._bucket.take(now)
        more = f"; {self._left_out} more were" if self._left_out else ""
        self._left_out = 0
        log.warning("a message of pid %d, uid %d, is refused: %s%s", pid, uid, why, more)


class NotifySocket:
    """The socket; *hear* gets what a worker says.  Raises OSError."""

    def __init__(
        self,
        registry: Registry,
        watcher: Watcher,
        hear: Callable[[RegisteredWorker, Notice, int], None],
    ) -> None:
        self._registry = registry
        self._watcher = watcher
        self._tell = hear
        self._is_readable = False
        self._unknown: list[_Datagram] = []
        self._skipped = 0
        self.audit = Audit()
        self.address = f"@aiobgw-{secrets.token_hex(16)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._open()
        except OSError:
            self._socket.close()
            raise

    def _open(self) -> None:
        # Ordering: before the bind, so that no datagram comes without its sender.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)
        except OSError:
            pass  # before Linux 6.5
        self._socket.bind(f"\0{self.address[1:]}")
        self._watcher.watch(self.fileno(), self._note)

    def fileno(self) -> int:
        return self._socket.fileno()

    def _note(self) -> None:
        self._is_readable = True

    # Reading.

    def hear(self) -> None:
        """Take in a bounded part of what has come.

        Ordering: called after all that a turn has found out about processes was handled.
        """
        if self._unknown and not self._may_be_behind():
            unknown, self._unknown = self._unknown, []
            for datagram in unknown:
                self._judge(datagram, self._sender(datagram))
        if self._is_readable:
            self._is_readable = False
            self._read_some()
        if self._unknown:
            self._watcher.timer(self, time.monotonic(), lambda: None)  # have another turn

    def _may_be_behind(self) -> bool:
        """Tell whether the hello of a sender may still be waiting; never for ever."""
        behind = self._watcher.is_behind and self._skipped < SKIPPED_AT_MOST
        self._skipped = self._skipped + 1 if behind else 0
        return behind

    def _read_some(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                datagram = self._receive()
            except BlockingIOError:
                return
            worker = self._sender(datagram)
            if worker is None and len(self._unknown) < DATAGRAMS_PER_TURN:
                self._unknown.append(datagram)
            else:
                self._judge(datagram, worker)

    def _receive(self) -> _Datagram:
        data, ancillary, outcome, _ = self._socket.recvmsg(DATAGRAM_BYTES, _ROOM, _FLAGS)
        pid, uid, pidfd, fds = 0, -1, -1, b""
        for level, kind, value in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _UCRED.unpack_from(value)
            elif kind == _SCM_PIDFD:
                pidfd = _PIDFD.unpack_from(value)[0]  # below 0: it is gone
            elif kind == socket.SCM_RIGHTS:
                fds = value[: len(value) // 4 * 4]
        is_whole = not outcome & socket.MSG_TRUNC
        group = _group_of(pid, pidfd)
        received = tuple(fd for (fd,) in _PIDFD.iter_unpack(fds))
        return _Datagram(data, is_whole, pid, uid, group, pidfd, received)

    # Judging.

    def _sender(self, datagram: _Datagram) -> RegisteredWorker | None:
        worker = self._registry.by_pid(datagram.pid)
        if worker is not None and _is_process_of(worker, datagram.pidfd):
            return worker
        return self._registry.by_pid(datagram.group)

    def _judge(self, datagram: _Datagram, worker: RegisteredWorker | None) -> None:
        """Pass on what a worker says; refuse what nobody was asked to say."""
        try:
            why = _refusal(datagram, worker)
            if worker is None and self._is_late(datagram):
                log.debug("the last words of pid %d came after its end", datagram.pid)
            elif why:
                self.audit.refused(datagram.pid, datagram.uid, why)
            elif worker is not None:
                self._tell(worker, parse(datagram.data), datagram.pid)
        finally:
            datagram.close()

    def _is_late(self, datagram: _Datagram) -> bool:
        """Tell whether it is of a worker that has just ended, or of its group."""
        return any(map(self._registry.was_worker, (datagram.pid, datagram.group)))

    # The end.

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""
        yield self.fileno()
        for datagram in self._unknown:
            yield from (datagram.pidfd, *datagram.fds)

    def close(self) -> None:
        self._watcher.cancel(self)
        self._watcher.unwatch(self.fileno())
        self.close_copies()

    def close_copies(self) -> None:
        """Close every descriptor, and touch nothing that a fork of the host shares."""
        unknown, self._unknown = self._unknown, []
        for datagram in unknown:
            datagram.close()
        self._socket.close()


def speaks_notify(worker: RegisteredWorker) -> bool:
    """Tell whether a worker was asked to speak this protocol."""
    spec = worker.spec
    return spec.command is not None and (takes_ready(worker) or spec.watchdog is not None)


def takes_ready(worker: RegisteredWorker) -> bool:
    """Tell whether it is by this protocol that a worker says that it is ready."""
    spec = worker.spec
    return spec.ready is Readiness.NOTIFY and spec.notification_fd is None


def _refusal(datagram: _Datagram, worker: RegisteredWorker | None) -> str:
    if worker is None:
        return "it is no worker, or was gone before it could be looked up"
    if not speaks_notify(worker):
        return f"worker {worker.spec.name!r} was not asked to notify"
    if not datagram.is_whole:
        return f"worker {worker.spec.name!r} sent more than {DATAGRAM_BYTES} bytes"
    return ""


def _group_of(pid: int, pidfd: int) -> int:
    """Return the process group of a sender, 0 if it cannot be had.

    Race: the pid may be another process's by now.  It is the sender's as long as its pidfd can
    be signalled, so look at that afterwards; without pidfds nobody can tell.
    """
    try:
        group = os.getpgid(pid) if pid > 0 else 0
    except OSError:
        return 0
    return 0 if pidfd >= 0 and not exits.is_unreaped(pidfd) else group


def _is_process_of(worker: RegisteredWorker, pidfd: int) -> bool:
    """Tell whether a pidfd is of the worker's own process, and not of one before it.

    Each process has an inode of its own there since Linux 6.9; before, all look the same.
    """
    child = worker.launch.child if worker.launch is not None else None
    if child is None or child.pidfd < 0 or pidfd < 0:
        return True
    return os.path.samestat(os.fstat(child.pidfd), os.fstat(pidfd))
