"""The board: the supervisor's record, and one per slot, in memory that only it can write.

Layout, in native byte order (readers run on the same machine):

    header   magic, layout number, header size, record size, slots, epoch, pid
    record   sequence | checksum and length | body (at most ``BODY_BYTES``); the supervisor's
             own first (HEAD), then one per slot

Ownership: one memfd, mode 0600, sealed SHRINK, GROW and SEAL, and FUTURE_WRITE once the
supervisor has mapped it: nobody else can resize it, unseal it or map it writable.  The truth
is in the supervisor's private memory; nothing is ever read back from here.

Ordering: the writer makes the sequence odd, writes, and makes it even, each time by one
aligned store of eight bytes (``struct.pack_into`` clears its target first: readers saw a
sequence of 0).  Python has no fence, so that order is a hint; the guarantee is the checksum,
over sequence, length and body.  A reader copies a record once, checks the copy and uses only
the copy.

Race: a writer that is killed in mid-write leaves the sequence odd for ever.  Readers give up
after a bound and raise TornRecord; it is for them to look whether the supervisor lives.  A
board survives its supervisor: the last states stay readable for all who hold it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import zlib
from contextlib import ExitStack
from struct import Struct

MAGIC = b"aiobgw\x00B"
LAYOUT = 4
HEAD = -1
BODY_BYTES = 2_032

_HEADER = Struct("=8sIIIIQi")
_HEADER_BYTES = 64
_PREFIX = Struct("=QQ")
_RECORD_BYTES = _PREFIX.size + BODY_BYTES

_F_SEAL_FUTURE_WRITE = 0x10
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ALL_SEALS = _SIZE_SEALS | _F_SEAL_FUTURE_WRITE
_MFD_NOEXEC_SEAL = 0x8

_PATIENCE = 0.1


class BadBoard(Exception):
    """A descriptor that is no board of ours: seals, size, magic or layout are wrong."""


class TornRecord(Exception):
    """A record stayed half-written for longer than a living writer would leave it."""


class BoardWriter:
    """The supervisor's side: the one and only writer."""

    __slots__ = ("_memory", "_sequences", "_words", "fd", "slots")

    def __init__(self, slots: int, epoch: int) -> None:
        size = _HEADER_BYTES + (1 + slots) * _RECORD_BYTES
        with ExitStack() as on_failure:
            self.fd = _memfd()
            on_failure.callback(os.close, self.fd)
            os.fchmod(self.fd, 0o600)
            os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size)
            on_failure.callback(self._memory.close)
            # Ordering: map first; FUTURE_WRITE refuses every writable mapping after it.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
            on_failure.pop_all()

        self.slots = slots
        self._sequences = [0] * (1 + slots)
        head = (MAGIC, LAYOUT, _HEADER_BYTES, _RECORD_BYTES, slots, epoch, os.getpid())
        _HEADER.pack_into(self._memory, 0, *head)
        self._words = memoryview(self._memory).cast("Q")

    def write(self, slot: int, body: bytes) -> None:
        """Publish *body* as the record of *slot*, or as the supervisor's own (HEAD)."""
        if len(body) > BODY_BYTES or not HEAD <= slot < self.slots:
            raise ValueError(f"{len(body)} bytes for slot {slot} of {self.slots}")

        at = _HEADER_BYTES + (1 + slot) * _RECORD_BYTES
        sequence = self._sequences[1 + slot]
        word = at // 8
        self._words[word] = sequence + 1
        start = at + _PREFIX.size
        self._memory[start : start + len(body)] = body
        sequence = self._sequences[1 + slot] = sequence + 2
        self._words[word + 1] = _checksum(sequence, body) | len(body) << 32
        self._words[word] = sequence

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)


class BoardReader:
    """Everybody else's side; owns neither the descriptor nor any slot."""

    __slots__ = ("_memory", "epoch", "pid", "slots")

    def __init__(self, fd: int) -> None:
        self._memory = _mapped(fd)
        magic, layout, header, record, slots, epoch, pid = _HEADER.unpack_from(self._memory)
        size = _HEADER_BYTES + (1 + slots) * _RECORD_BYTES
        if (magic, layout, header, record) != (MAGIC, LAYOUT, _HEADER_BYTES, _RECORD_BYTES):
            raise self._refused(f"layout {layout}, this is {LAYOUT}")
        if size != len(self._memory):
            raise self._refused(f"{len(self._memory)} bytes for {slots} slots")
        self.slots: int = slots
        self.epoch: int = epoch
        self.pid: int = pid

    def _refused(self, why: str) -> BadBoard:
        self._memory.close()
        return BadBoard(why)

    def read(self, slot: int) -> bytes:
        """Return the last record of *slot* (or HEAD), b"" if it never had one.

        Raises TornRecord after 0.1 s: the writer died in mid-write, or does not run.
        """
        if not HEAD <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")

        give_up = time.monotonic() + _PATIENCE
        while True:
            body = self._copy(slot)
            if body is not None:
                return body
            if time.monotonic() > give_up:
                raise TornRecord(f"slot {slot}")
            time.sleep(0)

    def _copy(self, slot: int) -> bytes | None:
        """Copy a record once; None if the copy is not whole."""
        at = _HEADER_BYTES + (1 + slot) * _RECORD_BYTES
        copy = self._memory[at : at + _RECORD_BYTES]
        sequence, check = _PREFIX.unpack_from(copy)
        if sequence == 0:
            return b""

        length = check >> 32
        body = copy[_PREFIX.size : _PREFIX.size + length]
        whole = sequence % 2 == 0 and length <= BODY_BYTES
        return body if whole and _checksum(sequence, body) == check & 0xFFFFFFFF else None

    def close(self) -> None:
        self._memory.close()


def _checksum(sequence: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_PREFIX.pack(sequence, len(body))))


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("aiobgw-board", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("aiobgw-board", flags)  # before Linux 6.3


def _mapped(fd: int) -> mmap.mmap:
    """Map a board for reading; raise BadBoard unless its size is sealed."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadBoard(f"no memfd: {error}") from None

    # An unsealed memfd lets its other holders kill us with SIGBUS, by cutting it short.
    size = os.fstat(fd).st_size
    if seals & _SIZE_SEALS != _SIZE_SEALS or size < _HEADER_BYTES:
        raise BadBoard(f"seals {seals:#x}, {size} bytes")
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
