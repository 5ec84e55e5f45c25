"""What tests know about processes and descriptors: read from /proc, never guessed."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
ROOT = Path(__file__).resolve().parent.parent


def become_subreaper() -> None:
    """Have every orphan below this process become its child, so that none is missed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def open_fds() -> dict[int, str]:
    """Return the open descriptors, and what each one is."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the descriptor that listdir() itself was using
    return found


def children(pid: int | None = None) -> set[int]:
    """Return the children of a process, zombies included."""
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
            found |= {int(child) for child in (task / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        pass  # the thread, or the process, is gone meanwhile
    return found


def descendants(pid: int) -> set[int]:
    """Return everything below a process."""
    found = children(pid)
    return found.union(*(descendants(child) for child in found))


def state(pid: int) -> str | None:
    """Return the state letter of a process, None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie, which somebody has yet to reap, does not."""
    return state(pid) not in (None, "Z", "X")


def kill(pid: int | None, signum: int = signal.SIGKILL) -> None:
    """Send a signal to one process: no pid, and 0, would mean the group of the tests."""
    assert pid is not None and pid > 1, pid
    os.kill(pid, signum)


def stop(pid: int | None) -> None:
    """Stop a process, and return when it has stopped."""
    assert pid is not None
    kill(pid, signal.SIGSTOP)
    while state(pid) not in ("T", None):
        time.sleep(0.001)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_dead(pids: set[int], timeout: float = 5.0) -> set[int]:
    """Wait until all are over, by their pidfds; return those that are not, in time."""
    give_up = time.monotonic() + timeout
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0, give_up - time.monotonic()) * 1000)
        os.close(pidfd)
    return {pid for pid in pids if is_alive(pid)}


def wait_readable(fd: int, timeout: float = 5.0) -> bool:
    """Block until a descriptor has something to read; return whether it has."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def reap(pids: set[int]) -> None:
    """Reap zombies that became ours."""
    for pid in pids:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a host's main coroutine in the loop that its test asks for."""
    if os.environ.get("AIOBGW_TEST_LOOP") == "uvloop":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


def start_script(source: str, *args: str, **options: object) -> subprocess.Popen[str]:
    """Run *source* as the main script of another interpreter, its output in pipes."""
    source = source.replace("asyncio.run(main())", "import tests.procs as p; p.run(main())")
    return subprocess.Popen(
        [sys.executable, "-c", source, *args],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
