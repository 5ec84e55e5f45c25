"""The board: only its writer can change it, and nobody ever reads half a record."""

from __future__ import annotations

import fcntl
import inspect
import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from aiobgw._ipc.board import (
    BODY_BYTES,
    HEAD,
    LAYOUT,
    MAGIC,
    BadBoard,
    BoardReader,
    BoardWriter,
    TornRecord,
)

EPOCH = 0xFEDC_BA98_7654_3210
SLOTS = 3
FIRST = 64 + 16 + BODY_BYTES  # the record of slot 0: after the header and the supervisor's own


@pytest.fixture
def writer() -> Iterator[BoardWriter]:
    with closing(BoardWriter(SLOTS, EPOCH)) as board:
        yield board


@pytest.fixture
def reader(writer: BoardWriter) -> Iterator[BoardReader]:
    with closing(BoardReader(writer.fd)) as board:
        yield board


# Writing and reading.


def test_a_reader_finds_the_header(reader: BoardReader) -> None:
    assert (reader.slots, reader.epoch, reader.pid) == (SLOTS, EPOCH, os.getpid())


def test_a_slot_that_never_had_a_record_is_empty(reader: BoardReader) -> None:
    assert [reader.read(slot) for slot in range(SLOTS)] == [b""] * SLOTS


def test_every_slot_has_its_own_record(writer: BoardWriter, reader: BoardReader) -> None:
    for slot in range(SLOTS):
        writer.write(slot, bytes([slot + 1]) * BODY_BYTES)
    assert [reader.read(slot) for slot in range(SLOTS)] == [
        bytes([slot + 1]) * BODY_BYTES for slot in range(SLOTS)
    ]


def test_the_last_record_counts_and_leaves_nothing_of_a_longer_one(
    writer: BoardWriter, reader: BoardReader
) -> None:
    for body in (b"a long one", b"", b"x", b"short"):
        writer.write(1, body)
        assert reader.read(1) == body


def test_the_supervisors_own_record_is_beside_those_of_the_slots(
    writer: BoardWriter, reader: BoardReader
) -> None:
    writer.write(0, b"body")
    writer.write(HEAD, b"head")
    assert (reader.read(HEAD), reader.read(0)) == (b"head", b"body")
    assert (reader.slots, reader.epoch) == (SLOTS, EPOCH)


def test_a_board_survives_its_writer() -> None:
    writer = BoardWriter(1, EPOCH)
    fd = os.dup(writer.fd)
    writer.write(0, b"last words")
    writer.close()

    with closing(BoardReader(fd)) as reader:
        os.close(fd)  # the mapping holds it
        assert reader.read(0) == b"last words"


def test_a_board_without_slots_is_a_board() -> None:
    with closing(BoardWriter(0, EPOCH)) as writer, closing(BoardReader(writer.fd)) as reader:
        assert reader.slots == 0


@pytest.mark.parametrize("slot", [-2, SLOTS, 2**40])
def test_a_slot_that_is_not_there_is_refused(
    writer: BoardWriter, reader: BoardReader, slot: int
) -> None:
    with pytest.raises(ValueError, match="slot"):
        writer.write(slot, b"")
    with pytest.raises(IndexError):
        reader.read(slot)


def test_a_body_that_is_too_long_is_refused_and_harms_no_neighbour(
    writer: BoardWriter, reader: BoardReader
) -> None:
    writer.write(0, b"zero")
    writer.write(1, b"one")
    with pytest.raises(ValueError, match="2033 bytes"):
        writer.write(0, b"x" * (BODY_BYTES + 1))
    assert (reader.read(0), reader.read(1)) == (b"zero", b"one")


# Nobody else can change it.


def test_a_board_is_for_its_owner_only(writer: BoardWriter) -> None:
    assert stat.S_IMODE(os.fstat(writer.fd).st_mode) == 0o600


def test_a_board_is_not_inherited_by_programs(writer: BoardWriter) -> None:
    assert not os.get_inheritable(writer.fd)


def _map_writable(fd: int) -> None:
    mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def _make_a_readable_mapping_writable(fd: int) -> None:
    """Map it for reading, then change the protection: mprotect() must be refused, too."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    try:
        if libc.mprotect(at, 4096, mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
    finally:
        libc.munmap(at, 4096)


ATTACKS: dict[str, Callable[[int], object]] = {
    "map it writable": _map_writable,
    "make a mapping writable": _make_a_readable_mapping_writable,
    "write": lambda fd: os.pwrite(fd, b"x", 0),
    "cut it": lambda fd: os.ftruncate(fd, 0),
    "grow it": lambda fd: os.ftruncate(fd, 1 << 20),
    "allocate more": lambda fd: os.posix_fallocate(fd, 0, 1 << 20),
    "seal it more": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("way", ["its descriptor", "/proc/self/fd"])
def test_nobody_can_change_a_board(writer: BoardWriter, attack: str, way: str) -> None:
    writer.write(0, b"the truth")
    fd = os.dup(writer.fd) if way == "its descriptor" else _reopened(writer.fd)
    try:
        with pytest.raises(PermissionError):
            ATTACKS[attack](fd)
    finally:
        os.close(fd)
    with closing(BoardReader(writer.fd)) as reader:
        assert reader.read(0) == b"the truth"


def _reopened(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def test_a_child_can_change_nothing_either(writer: BoardWriter) -> None:
    """Another process, with the descriptor handed to it: each way is tried there."""
    fd = writer.fd
    source = f"""
import sys
from tests.ipc.test_board import ATTACKS, _reopened
for way in ({fd}, _reopened({fd})):
    for name, attack in ATTACKS.items():
        try:
            attack(way)
        except PermissionError:
            print("refused")
        else:
            print("CHANGED", name)
"""
    ran = subprocess.run(
        [sys.executable, "-c", source], pass_fds=[fd], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["refused"] * 2 * len(ATTACKS)


def test_a_reader_maps_it_for_reading_only(writer: BoardWriter, reader: BoardReader) -> None:
    with pytest.raises(TypeError):
        reader._memory[0:1] = b"x"


# Not every descriptor is a board.

SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextmanager
def forged(content: bytes, seals: int = SIZE_SEALS) -> Iterator[int]:
    fd = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def image(writer: BoardWriter) -> bytes:
    """The bytes of a good board."""
    writer.write(0, b"body")
    return os.pread(writer.fd, 1 << 20, 0)


def test_a_good_image_is_accepted(image: bytes) -> None:
    """Guard the tests below: what they forge is good but for one thing."""
    with forged(image) as fd, closing(BoardReader(fd)) as reader:
        assert reader.read(0) == b"body"


@pytest.mark.parametrize(
    "missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, SIZE_SEALS]
)
def test_a_board_that_is_not_sealed_is_refused(image: bytes, missing: int) -> None:
    """Whoever else holds it could cut it short, and kill its readers with SIGBUS."""
    with forged(image, SIZE_SEALS & ~missing) as fd, pytest.raises(BadBoard, match="seals"):
        BoardReader(fd)


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda image: b"postgres" + image[8:], f"this is {LAYOUT}"),
        (lambda image: image[:8] + b"\x02\0\0\0" + image[12:], f"layout 2, this is {LAYOUT}"),
        (lambda image: image[:12] + b"\xff\0\0\0" + image[16:], "layout"),
        (lambda image: image[:16] + b"\xff\0\0\0" + image[20:], "layout"),
        (lambda image: image[:20] + b"\xff\xff\0\0" + image[24:], "for 65535 slots"),
        (lambda image: image[:-1], "for 3 slots"),
        (lambda image: image + b"\0", "for 3 slots"),
        (lambda image: image[:63], "63 bytes"),
        (lambda image: b"", "0 bytes"),
    ],
    ids=["magic", "layout", "header size", "record size", "slots", "cut", "long", "short", "empty"],
)
def test_what_is_no_board_of_this_layout_is_refused(
    image: bytes, forge: Callable[[bytes], bytes], why: str
) -> None:
    assert image.startswith(MAGIC)
    with forged(forge(image)) as fd, pytest.raises(BadBoard, match=why):
        BoardReader(fd)


def test_a_descriptor_that_is_no_memfd_is_refused() -> None:
    with open(os.devnull, "rb") as file, pytest.raises(BadBoard):
        BoardReader(file.fileno())


# Half a record.


def test_a_record_that_does_not_fit_its_checksum_is_refused_within_the_bound(image: bytes) -> None:
    broken = image.replace(b"body", b"bodY")
    with forged(broken) as fd, closing(BoardReader(fd)) as reader:
        _assert_torn(reader, 0)


def test_a_length_beyond_the_record_is_refused(image: bytes) -> None:
    at = FIRST + 12
    assert image[at : at + 4] == (4).to_bytes(4, sys.byteorder)
    broken = image[:at] + b"\xff\xff\xff\xff" + image[at + 4 :]
    with forged(broken) as fd, closing(BoardReader(fd)) as reader:
        _assert_torn(reader, 0)


def _assert_torn(reader: BoardReader, slot: int) -> None:
    began = time.monotonic()
    with pytest.raises(TornRecord, match=f"slot {slot}"):
        reader.read(slot)
    assert 0.09 < time.monotonic() - began < 5.0, "it waits for a living writer, and not for ever"


OLD, NEW = b"o" * 1_500, b"n" * 2_000
WRITE_LINES = len(inspect.getsource(BoardWriter.write).splitlines())


def _die_at(line: int, write: Callable[[int, bytes], None]) -> None:
    """Write, and die by SIGKILL when the n-th line of write() is about to run."""
    count = 0

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal count
        if event == "line" and frame.f_code is BoardWriter.write.__code__:  # type: ignore[attr-defined]
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    write(1, NEW)
    os._exit(0)


def test_a_writer_killed_anywhere_leaves_the_old_record_the_new_one_or_a_torn_one() -> None:
    seen = []
    for line in range(1, WRITE_LINES + 1):
        with (
            closing(BoardWriter(SLOTS, EPOCH)) as writer,
            closing(BoardReader(writer.fd)) as reader,
        ):
            writer.write(0, b"neighbour")
            writer.write(1, OLD)
            pid = os.fork()
            if pid == 0:
                _die_at(line, writer.write)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            try:
                outcome = {OLD: "old", NEW: "new"}[reader.read(1)]
            except TornRecord:
                outcome = "torn"
            assert reader.read(0) == b"neighbour"
        seen.append(outcome)
        if not killed:
            break

    assert not killed, "some child must come to the end of write()"
    assert seen == sorted(seen, key=["old", "torn", "new"].index)
    assert set(seen) == {"old", "torn", "new"}, "it was killed before, in, and after the change"


def test_the_slots_beside_a_torn_record_are_still_read_at_once(
    writer: BoardWriter, reader: BoardReader
) -> None:
    writer.write(0, b"torn")
    writer.write(1, b"whole")
    writer._memory[FIRST : FIRST + 1] = bytes(
        [writer._memory[FIRST] | 1]
    )  # as its killed writer left it
    _assert_torn(reader, 0)
    began = time.monotonic()
    assert reader.read(1) == b"whole"
    assert time.monotonic() - began < 0.09


def test_a_writer_that_goes_on_mends_a_torn_record(
    writer: BoardWriter, reader: BoardReader
) -> None:
    writer.write(0, b"one")
    writer._memory[FIRST : FIRST + 1] = bytes([writer._memory[FIRST] | 1])
    writer.write(0, b"two")
    assert reader.read(0) == b"two"


def _write_for_ever(writer: BoardWriter) -> None:
    """Write records of many lengths, each of one repeated byte that tells its length."""
    while True:
        for number in range(1, 255):
            writer.write(0, bytes([number]) * (number * 7))


def test_a_reader_that_races_a_busy_writer_never_sees_a_mixed_record(
    writer: BoardWriter, reader: BoardReader
) -> None:
    writer.write(0, b"\x01" * 7)
    pid = os.fork()
    if pid == 0:
        _write_for_ever(writer)
    seen = set()
    try:
        reads, give_up = 0, time.monotonic() + 30.0
        while (reads < 20_000 or len(seen) < 100) and time.monotonic() < give_up:
            reads += 1
            try:
                body = reader.read(0)
            except TornRecord:
                continue  # the writer did not run for a while, as on a busy machine
            assert body == body[:1] * (body[0] * 7), f"mixed: {body!r}"
            seen.add(body[0])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(seen) >= 100, "the two did not run at the same time"
