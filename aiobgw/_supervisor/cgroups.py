"""The cgroups of a supervisor: one directory in the delegated one, and one in it per launch.

    DELEGATED/aiobgw-NAME-EPOCH/worker-SLOT-GENERATION-NUMBER

Several supervisors may share a delegated directory.  Each holds a lock (``flock``) on its own
directory as long as it lives; one whose lock is free is what a dead supervisor has left
behind: the next one that starts takes the lock, ends what is in there, and removes it.  Before
that, the zygote of the dead one does the same, unless it died as well.

Ownership: every Cgroup, and the descriptors in it; a worker only refers to its own.  The
zygote gets the path, and holds no lock: to end and to remove twice does no harm.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from .._process import cgroup
from .._process.cgroup import Cgroup
from ..errors import InvalidSpec, Unsupported

if TYPE_CHECKING:
    from .._process.watcher import Watcher
    from ..settings import Settings
    from ..spec import WorkerSpec
    from .registry import RegisteredWorker

REMOVE_TIMEOUT = 5.0
ATTEMPTS = 16
LOOK_AGAIN = 0.005
LOOK_AGAIN_AT_MOST = 0.1
MOUNTS, OWN = "/proc/self/mountinfo", "/proc/self/cgroup"

_OURS = re.compile(r"aiobgw-.*-[0-9a-f]{16}(\.\d+)?")
_UNFIT = re.compile(r"[^A-Za-z0-9_.@-]")

log = logging.getLogger("aiobgw")


class Cgroups:
    """The directory of one supervisor; none, and nothing to do, unless it was asked for one."""

    def __init__(self, settings: Settings, epoch: int) -> None:
        self.path = ""
        self._settings = settings
        self._epoch = epoch
        self._parent = self._directory = -1
        self._number = 0
        self._used: set[Cgroup] = set()
        self._leaving: dict[Cgroup, float] = {}
        self._stale: dict[str, _Stale] = {}
        self._pause = LOOK_AGAIN
        self._watcher: Watcher | None = None

    @property
    def _is_wanted(self) -> bool:
        return self._settings.cgroup is not None and self._settings.cgroup is not False

    def check(self, spec: WorkerSpec) -> None:
        """Raise InvalidSpec for a worker that wants a cgroup where nobody gets one."""
        if spec.cgroup is not None and not self._is_wanted:
            raise InvalidSpec(
                f"worker {spec.name!r}: cgroup: this supervisor has no place for any",
                hint="Supervisor(cgroup='/sys/fs/cgroup/...')",
            )

    def descriptors_for(self, workers: int) -> int:
        """Return how many descriptors it takes for so many workers."""
        return 2 * workers if self._is_wanted else 0

    def open(self) -> None:
        """Make the directory, if there shall be one; raises Unsupported.

        What dead supervisors have left behind is ended at once, and removed by and by.
        """
        if not self._is_wanted or self._settings.launcher is not None:
            return  # a fake launcher has no processes to put anywhere
        wanted = self._settings.cgroup
        where = delegated() if wanted is True else os.path.realpath(str(wanted))
        try:
            with ExitStack() as on_failure:
                self._take(where, on_failure)
                on_failure.pop_all()
        except OSError as error:
            raise Unsupported(
                f"cgroup: {where}: {error.strerror}",
                hint="give a directory of cgroup v2 that is delegated to this user"
                " (systemd: Delegate=yes)",
            ) from error

    def _take(self, where: str, on_failure: ExitStack) -> None:
        name = f"aiobgw-{_UNFIT.sub('_', self._settings.name)}-{self._epoch:016x}"
        parent = cgroup.open_directory(where)
        on_failure.callback(os.close, parent)
        name, directory = _make_own(name, parent, on_failure)
        self._parent, self._directory = parent, directory
        on_failure.callback(self._forget)
        self._find_stale()
        self.path = os.path.join(where, name)

    def _forget(self) -> None:
        self._parent = self._directory = -1

    def _find_stale(self) -> None:
        """Take what dead supervisors have left behind, to end and to remove it."""
        with os.scandir(self._parent) as entries:
            names = [entry.name for entry in entries if _OURS.fullmatch(entry.name)]
        for name in names:
            directory = _lock(name, self._parent)
            if directory >= 0:
                self._stale[name] = _Stale(directory, time.monotonic() + REMOVE_TIMEOUT)
        self._remove()

    def connect(self, watcher: Watcher) -> None:
        """Use *watcher* to look again later at what cannot be removed at once."""
        self._watcher = watcher
        self._remove()

    # One for each launch.

    def make(self, worker: RegisteredWorker) -> str | None:
        """Make the cgroup of a launch: "" if there is one to enter, else why there is none.

        None: it wants none.  Raises OSError if something is scarce that may be there later.
        """
        self.leave(worker)
        if worker.spec.cgroup is None or not self.path:
            return None
        self._number += 1
        name = f"worker-{worker.slot}-{worker.generation}-{self._number}"
        try:
            worker.cgroup = Cgroup.make(name, self._directory, worker.spec.cgroup)
        except cgroup.CannotLimit as error:
            return str(error)
        self._used.add(worker.cgroup)
        return ""

    def leave(self, worker: RegisteredWorker) -> None:
        """End whatever is left in a worker's cgroup, and remove it as soon as it is empty."""
        if worker.cgroup is None:
            return
        left, worker.cgroup = worker.cgroup, None
        left.entered()
        self._used.discard(left)
        self._leaving[left] = time.monotonic() + REMOVE_TIMEOUT
        self._pause = LOOK_AGAIN
        self._remove()

    @property
    def pending(self) -> int:
        """How many are being removed; none of them takes longer than REMOVE_TIMEOUT."""
        return len(self._leaving)

    def _remove(self) -> None:
        """Try to remove all that should go; a killed process may take a moment to end."""
        now = time.monotonic()
        for left, give_up in list(self._leaving.items()):
            left.kill()
            if self._is_removed(left.name, self._directory, now > give_up):
                del self._leaving[left]
                left.close()
        for name, stale in list(self._stale.items()):
            cgroup.end(stale.directory)
            if self._is_removed(name, self._parent, now > stale.give_up):
                del self._stale[name]
                os.close(stale.directory)
        if self._watcher is not None and (self._leaving or self._stale):
            self._pause = min(2 * self._pause, LOOK_AGAIN_AT_MOST)
            self._watcher.timer("cgroups", now + self._pause, self._remove)

    def _is_removed(self, name: str, parent: int, is_late: bool) -> bool:
        """Try to remove one; true if there is nothing more to be done."""
        try:
            if cgroup.remove(name, parent):
                return True
            why = "SIGKILL does not end what is in it"
        except OSError as error:
            why = error.strerror or str(error)
        if is_late:
            log.error("cgroup %s cannot be removed: %s", name, why)
        return is_late

    # The end.

    def close(self) -> None:
        """End whatever is left, remove what is empty, and give everything back."""
        self._watcher = None
        if self.path:
            cgroup.end(self._directory)
            self._is_removed(os.path.basename(self.path), self._parent, is_late=True)
        self.close_copies()

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""
        yield from (self._parent, self._directory)
        yield from (stale.directory for stale in self._stale.values())
        for one in (*self._used, *self._leaving):
            yield from one.descriptors()

    def close_copies(self) -> None:
        """Close every descriptor, and touch nothing: in a fork of the host, or at the end."""
        for one in (*self._used, *self._leaving):
            one.close()
        for stale in self._stale.values():
            os.close(stale.directory)
        if self._directory >= 0:
            os.close(self._parent)
            os.close(self._directory)
        self._used.clear()
        self._leaving.clear()
        self._stale.clear()
        self._forget()
        self.path = ""


class _Stale(NamedTuple):
    """A directory that a dead supervisor has left behind.

    Invariant: we hold its lock.  Somebody who has just made one, and has not locked it yet, would
    otherwise have his workers ended.
    """

    directory: int
    give_up: float


def _make_own(name: str, parent: int, on_failure: ExitStack) -> tuple[str, int]:
    """Make and lock a supervisor's directory; return its name and its descriptor.

    Race: who starts at the same time may take it for a stale one, until it is locked.  Then
    the next name is taken.  Mode 0711: workers of other users can read their limits, but open
    no directory, and so hold no lock.
    """
    for attempt in range(ATTEMPTS):
        numbered = f"{name}.{attempt}" if attempt else name
        os.mkdir(numbered, 0o711, dir_fd=parent)
        directory = _lock(numbered, parent)
        if directory >= 0:
            on_failure.callback(os.close, directory)
            on_failure.callback(cgroup.remove, numbered, parent)
            _check(directory)
            return numbered, directory
    raise Unsupported(f"cgroup: others remove {name} as soon as it is made")


def _check(directory: int) -> None:
    if cgroup.KILL not in os.listdir(directory):
        raise Unsupported("cgroup: there is no cgroup.kill", hint="needs Linux 5.14, and cgroup v2")


def _lock(name: str, parent: int) -> int:
    """Open and lock a directory; return -1 if that is another's, or if it is gone."""
    try:
        directory = cgroup.open_directory(name, parent)
    except OSError:
        return -1
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if os.path.samestat(there, os.fstat(directory)):
            return directory
    except OSError:
        pass  # locked by another, or removed
    os.close(directory)
    return -1


def delegated() -> str:
    """Return the cgroup of this process, or the nearest above it that systemd has delegated.

    With DelegateSubgroup= a service is in a cgroup below the one that it may use.
    """
    mounted, root = _mount()
    own = _own()
    if os.path.commonpath((own, root)) != root:
        raise Unsupported(f"cgroup: {own} cannot be reached at {mounted}")
    path = inside = os.path.join("/", os.path.relpath(own, root)).rstrip(".")
    while path != "/":
        if _is_delegated(mounted + path):
            return mounted + path
        path = os.path.dirname(path)
    return mounted + inside


def _own() -> str:
    with open(OWN) as file:
        for line in file:
            if line.startswith("0::/") and not line.startswith("0::/.."):
                return line[3:].rstrip("\n")
    raise Unsupported("cgroup: this process is in no cgroup v2", hint="give the path of one")


def _mount() -> tuple[str, str]:
    """Return where cgroup v2 is mounted, and which part of it."""
    with open(MOUNTS) as file:
        for line in file:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return fields[4], fields[3]
    raise Unsupported("cgroup: cgroup v2 is not mounted here")


def _is_delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError:
            pass  # not marked, or not ours to see
    return False
