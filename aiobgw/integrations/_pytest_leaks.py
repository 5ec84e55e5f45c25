"""The look at what a test has left behind: supervisors, workers, processes, descriptors, shared
memory.

Taken before the test and again after it; what fixtures of a higher scope own was there before.
Everything is named, and all that is ours to end is ended: descriptors are their owners', and
shared memory that another process may have made is left alone.  Each step has a bound.
"""

from __future__ import annotations

import fcntl
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import TypeVar

import pytest

from .._supervisor import census
from .._supervisor.core import Core
from .._supervisor.registry import RegisteredWorker
from ..status import WorkerState
from . import _pytest_processes as processes
from ._pytest_processes import descendants

SETTLE = 2.0
SETTLE_DESCRIPTORS = 0.5
SHARED_MEMORY = "/dev/shm"

T = TypeVar("T")
_directory: int | None = None


def make_ready() -> None:
    """Open what stays open for as long as this process lives, before it looks like a leak.

    libuv makes a pipe once in a process.  And the directory of shared memory is locked, with all
    others who look for leaks in it: who is alone there knows whose a file is that nobody holds.
    """
    global _directory
    if _directory is not None:
        return
    if find_spec("uvloop") is not None:
        import uvloop

        uvloop.new_event_loop().close()
    try:
        _directory = os.open(SHARED_MEMORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        _directory = -1  # there is no shared memory here
    else:
        fcntl.flock(_directory, fcntl.LOCK_SH)


def _is_alone() -> bool:
    """Tell whether no other test process looks for leaks; tests of one suite always may."""
    if os.environ.get("PYTEST_XDIST_WORKER") or _directory is None:
        return False
    try:
        fcntl.flock(_directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        # A failed conversion has lost the shared lock, too.  Race: who takes the other kind in
        # between lets it go at once, so that this does not wait for long.
        fcntl.flock(_directory, fcntl.LOCK_SH)


class Watch:
    """What there was when it was made; ``left`` tells, and ends, what there is besides."""

    def __init__(self) -> None:
        self._workers = {core.epoch: _generations(core) for core in census.open_cores()}
        self._processes = descendants()
        self._files = _shared_memory()
        self._descriptors = open_descriptors()
        self.unknown: list[str] = []

    def left(
        self,
        *,
        look_at_descriptors: bool = True,
        stay: Mapping[int, set[int]] = MappingProxyType({}),
    ) -> list[str]:
        """Return a line for each thing that was left behind; for what cannot be attributed, in
        ``unknown``.

        *stay*: supervisors that go on, by epoch, with the generations of their workers that do.
        A failed test's descriptors are better not looked at: its traceback holds its variables.
        """
        for epoch, generations in stay.items():
            self._workers.setdefault(epoch, generations)
        lines = [*self._end_supervisors(), *self._end_workers(), *self._end_processes()]
        if look_at_descriptors:
            lines += self._name_descriptors()
        return lines + self._remove_shared_memory()

    # Supervisors and workers.

    def _end_supervisors(self) -> list[str]:
        lines = []
        for core in census.open_cores():
            if core.epoch not in self._workers:
                workers = ", ".join(_describe(worker) for worker in core.registry.all())
                ended = "ended" if census.end(core) else "still there"
                name = core.settings.name
                lines.append(f"supervisor {name!r} ({workers or 'no workers'}): {ended}")
        return lines

    def _end_workers(self) -> list[str]:
        """Kill what was registered with a supervisor that goes on; name who was not over."""
        lines = []
        for core in census.open_cores():
            for worker in core.registry.all():
                if worker.generation in self._workers.get(core.epoch, ()):
                    continue
                text = _describe(worker)
                if not (_is_ending(worker) and census.wait_over(core, worker, SETTLE)):
                    census.kill(core, worker)
                    ended = "killed" if census.wait_over(core, worker, SETTLE) else "still there"
                    lines.append(f"worker {text} of supervisor {core.settings.name!r}: {ended}")
        return lines

    # Processes.

    def _end_processes(self) -> list[str]:
        left = self._new_processes()
        if left:
            processes.wait_dead(left, SETTLE)
            left = self._new_processes()
        titles = {pid: processes.title(pid) for pid in sorted(left)}
        killed = processes.kill(titles)
        survivors = processes.wait_dead(killed, SETTLE)
        processes.reap(killed - survivors)
        return [
            f"process {pid} ({title}): "
            + ("killed" if pid in killed - survivors else "could not be ended")
            for pid, title in titles.items()
            if pid in killed or processes.is_alive(pid)
        ]

    def _new_processes(self) -> set[int]:
        new = descendants() - self._processes
        if not new:
            return new
        for core in census.open_cores():
            zygote = census.zygote_pid(core)
            if zygote is not None:
                new -= {zygote, *descendants(zygote)}
        return {pid for pid in new if processes.is_alive(pid) and not processes.is_helper(pid)}

    # Descriptors.

    def _name_descriptors(self) -> list[str]:
        if not self._new_descriptors():
            return []
        gc.collect()
        left = _settled(self._new_descriptors, SETTLE_DESCRIPTORS)
        return [f"descriptor {fd} ({what}): left open" for fd, what in sorted(left.items())]

    def _new_descriptors(self) -> dict[int, str]:
        before = self._descriptors
        new = {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
        if not new:
            return new
        owned = {fd for core in census.open_cores() for fd in census.descriptors(core)}
        shared = _shared_with_helpers()
        return {fd: what for fd, what in new.items() if fd not in owned and what not in shared}

    # Shared memory.

    def _remove_shared_memory(self) -> list[str]:
        new = _ours(_shared_memory() - self._files)
        if not new:
            return []
        gc.collect()
        ours, kept = _by_holder(_ours(new))
        if kept:
            self.unknown += [f"shared memory {SHARED_MEMORY}/{name}" for name in sorted(kept)]
        return [line for name in sorted(ours) if (line := _unlink(name))]


def warn_of_unknown(node: pytest.Item, unknown: list[str]) -> None:
    """Warn, whatever the filters say: nobody knows whether it is this test's fault."""
    if unknown:
        told = f"left behind by this test or by others: {', '.join(unknown)}"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            node.warn(pytest.PytestWarning(told))


def _generations(core: Core) -> set[int]:
    return {worker.generation for worker in core.registry.all()}


def _is_ending(worker: RegisteredWorker) -> bool:
    """Tell whether it was told to end, or has ended, and its loop has had no turn since."""
    if worker.life.state is WorkerState.STOPPING:
        return True
    return worker.pid is not None and not processes.is_alive(worker.pid)


def _describe(worker: RegisteredWorker) -> str:
    pid = f", pid {worker.pid}" if worker.pid else ""
    return f"{worker.spec.name!r} {worker.life.state.value}{pid}"


def open_descriptors() -> dict[int, str]:
    """Return the open descriptors, and what each one is."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # the descriptor that listdir() itself was using
    return found


def _shared_with_helpers() -> set[str]:
    """Return the pipes that lead to multiprocessing's own helpers."""
    found: set[str] = set()
    for pid in filter(processes.is_helper, descendants()):
        found.update(what for what in _links(pid) if what.startswith(("pipe:", "socket:")))
    return found


def _links(pid: int) -> Iterable[str]:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for fd in fds:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            pass  # closed since it was listed


def _settled(look: Callable[[], T], seconds: float) -> T:
    """Look until nothing is found; return what was found last.  Nothing tells of a close."""
    give_up = time.monotonic() + seconds
    while True:
        found = look()
        if not found or time.monotonic() > give_up:
            return found
        time.sleep(0.02)


def _shared_memory() -> set[str]:
    try:
        return set(os.listdir(SHARED_MEMORY))
    except OSError:
        return set()


def _ours(names: set[str]) -> set[str]:
    """Return those of this user that are still there."""
    found = set()
    for name in names:
        try:
            if os.lstat(f"{SHARED_MEMORY}/{name}").st_uid == os.geteuid():
                found.add(name)
        except OSError:
            pass  # removed meanwhile
    return found


def _by_holder(names: set[str]) -> tuple[set[str], set[str]]:
    """Return what this test left behind, and what it may have left behind.

    What a stranger has open or mapped is the stranger's, and what a worker that goes on has is
    that worker's.  What nobody has may be of another test process, if there is one.
    """
    if not names:
        return set(), set()
    ours = {os.getpid(), *descendants()}
    for core in census.open_cores():
        zygote = census.zygote_pid(core)
        ours -= descendants(zygote) if zygote is not None else set()
    mine: set[str] = set()
    others: set[str] = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        held = _held(pid, names)
        (mine if pid in ours else others).update(held)
    if _is_alone():
        return names - others, set()
    return mine - others, names - mine - others


def _held(pid: int, names: set[str]) -> set[str]:
    """Return which of the files a process has open or mapped."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            maps = file.read()
    except OSError:
        return set()  # it is gone, or another user's, which has no business with our files
    mapped = (line.split(None, 5) for line in maps.splitlines())
    paths = {fields[5].decode("utf-8", "replace") for fields in mapped if len(fields) == 6}
    paths.update(_links(pid))
    return {name for name in names if f"{SHARED_MEMORY}/{name}" in paths}


def _unlink(name: str) -> str:
    path = f"{SHARED_MEMORY}/{name}"
    try:
        os.unlink(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"shared memory {path}: {error.strerror}"
    return f"shared memory {path}: unlinked"
