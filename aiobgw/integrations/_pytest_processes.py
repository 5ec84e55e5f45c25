"""The processes below a test's, and how to end one that is known by its pid only."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import psutil

from .._process import exits

_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37
_HAS_CHILDREN = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


@contextmanager
def adopting() -> Iterator[None]:
    """Have processes below this one that lose their parent become its children.

    Whoever has detached itself, from a worker or from a test, is found then as any other.  It
    is not reaped, unless it was left behind: nobody can know whose business that is.
    """
    prctl = ctypes.CDLL(None).prctl
    before = ctypes.c_int(0)
    prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def descendants(pid: int | None = None) -> set[int]:
    """Return everything below a process (this one), zombies included."""
    pid = pid or os.getpid()
    if not _HAS_CHILDREN:  # a kernel without CONFIG_PROC_CHILDREN
        return _descendants_slowly(pid)
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        fresh = _children(ahead.pop()) - found
        found |= fresh
        ahead += fresh
    return found


def _descendants_slowly(pid: int) -> set[int]:
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found.update(map(int, file.read().split()))
    except OSError:
        pass  # it is gone, or was that task
    return found


def is_alive(pid: int) -> bool:
    """Tell whether it runs; a zombie, which somebody has yet to reap, does not."""
    fields = exits.stat_of(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def is_helper(pid: int) -> bool:
    """Tell whether it is one that multiprocessing keeps for as long as this process lives."""
    line = _command_line(pid)
    return any(helper in line for helper in _HELPERS)


def title(pid: int) -> str:
    """Return its command line, or the title that it gave itself."""
    line = _command_line(pid).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return line or "no command line"


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def wait_dead(pids: Iterable[int], seconds: float) -> set[int]:
    """Wait until all are over; return those that are not, in time."""
    give_up = time.monotonic() + seconds
    left = {pid for pid in pids if is_alive(pid)}
    for pid in left:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, give_up - time.monotonic()) * 1000)
        finally:
            os.close(pidfd)
    return {pid for pid in left if is_alive(pid)}


def kill(pids: Iterable[int]) -> set[int]:
    """End processes below this one; return those that were.

    Race: a pid may be another process's by now.  Looked at after its pidfd was opened, and
    signalled through that, it is below this process or it is not touched.

    Ordering: all are looked at before the first one dies, and leaves its children to others.
    """
    with ExitStack() as stack:
        pidfds = {}
        for pid in pids:
            try:
                pidfds[pid] = os.pidfd_open(pid)
            except OSError:
                continue  # it is gone
            stack.callback(os.close, pidfds[pid])
        below = descendants()
        return {
            pid
            for pid, pidfd in pidfds.items()
            if pid in below and exits.send(pidfd, signal.SIGKILL)
        }


def reap(pids: Iterable[int]) -> None:
    """Take leave of processes that were killed here, of those that are this one's children."""
    for pid in pids:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass
