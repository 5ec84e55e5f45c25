"""A memory cgroup for one process, for as long as a fault takes.

It is made below the cgroup that the process is in, so that its other limits hold on, and nobody
else's are touched.  Version 1: any user who may make one there, which is root.  Version 2: a
cgroup that hands the memory controller down (``cgroup.subtree_control``) and may be written;
one with processes in it does not, so the one above is looked at, too, up to the root.

Ownership: the MemoryCgroup owns the directory it has made.  Leaving the block moves back who is
still in it, and removes it.  Its name has the pid of the process that made it: if that one
is killed, whoever makes the next one removes it.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ..errors import Unsupported

LIMIT = 16 << 20
PREFIX = "aiobgw-oom-"
REMOVE_TIMEOUT = 2.0
LOOK_AGAIN = 0.002

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Place(NamedTuple):
    """Where a process is in the hierarchy that has the memory controller."""

    mount: Path
    cgroup: Path
    version: int


def place_of(cgroups: str, mounts: str) -> Place | None:
    """Find it in the text of /proc/PID/cgroup and of /proc/self/mountinfo."""
    paths = {}
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths[1] = path
        elif not controllers:
            paths[2] = path
    for version, path in sorted(paths.items()):
        for mount, root in _mounts(mounts, version):
            if path == root or path.startswith(root.rstrip("/") + "/"):
                return Place(mount, mount / path[len(root.rstrip("/")) :].lstrip("/"), version)
    return None


def _mounts(text: str, version: int) -> list[tuple[Path, str]]:
    """Return where such a hierarchy is mounted, and what part of it."""
    found = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if (kind, version) == ("cgroup2", 2) or (
            (kind, version) == ("cgroup", 1) and "memory" in options.split(",")
        ):
            root, mount = (_ESCAPED.sub(_unescape, field) for field in head.split(" ")[3:5])
            found.append((Path(mount), root))
    return found


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


class MemoryCgroup:
    """A context manager: made when it is entered, and gone when it is left."""

    def __init__(self, pid: int, limit: int) -> None:
        self._limit = limit
        self._name = f"{PREFIX}{os.getpid()}-{pid}"
        self._place = place_of(_read(f"/proc/{pid}/cgroup"), _read("/proc/self/mountinfo"))
        self.path: Path | None = None

    def __enter__(self) -> Self:
        reason = "there is no memory controller"
        for parent in self._parents():
            try:
                self._make(parent)
            except OSError as error:
                reason = str(error)
                self._leave()
            else:
                return self
        raise _unsupported(reason)

    def _parents(self) -> list[Path]:
        """Return where it may be made, the nearest place first."""
        if self._place is None:
            return []
        mount, cgroup, version = self._place
        if version == 1:
            return [cgroup]
        above = [cgroup, *cgroup.parents]
        return [path for path in above if path.is_relative_to(mount) and _hands_down(path)]

    def _make(self, parent: Path) -> None:
        _sweep(parent)
        path = parent / self._name
        path.mkdir()
        self.path = path
        assert self._place is not None
        if self._place.version == 2:
            _write(path / "memory.max", self._limit)
            _write_if_there(path / "memory.swap.max", 0)
            return
        _write(path / "memory.limit_in_bytes", self._limit)
        _write_if_there(path / "memory.memsw.limit_in_bytes", self._limit)
        # Inherited: where it is off, the process would only be put to sleep.
        _write(path / "memory.oom_control", 0)

    def enter(self, pid: int) -> None:
        """Move a process into it, and make it one that the OOM killer may choose."""
        assert self.path is not None
        try:
            if int(_read(f"/proc/{pid}/oom_score_adj")) < 0:
                _write(Path(f"/proc/{pid}/oom_score_adj"), 0)
            _write(self.path / "cgroup.procs", pid)
        except PermissionError as error:
            raise _unsupported(str(error)) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Move back who is still in it, and remove it."""
        path, self.path = self.path, None
        if path is None or self._place is None:
            return
        give_up = time.monotonic() + REMOVE_TIMEOUT
        while True:
            for pid in _read(path / "cgroup.procs").split():
                _move(pid, self._place.cgroup)
            try:
                path.rmdir()
                return
            except OSError:  # EBUSY: a process in it has not quite ended
                if time.monotonic() > give_up:
                    raise
            time.sleep(LOOK_AGAIN)


def _move(pid: str, cgroup: Path) -> None:
    try:
        _write(cgroup / "cgroup.procs", int(pid))
    except ProcessLookupError:
        pass  # it has ended


def _hands_down(cgroup: Path) -> bool:
    try:
        return "memory" in _read(cgroup / "cgroup.subtree_control").split()
    except OSError:
        return False


def _sweep(parent: Path) -> None:
    """Remove what tests have left that were killed."""
    for path in parent.glob(f"{PREFIX}*-*"):
        maker = path.name.removeprefix(PREFIX).partition("-")[0]
        if not os.path.exists(f"/proc/{maker}"):
            try:
                path.rmdir()
            except OSError:
                pass  # a process lives in it


def _read(path: str | Path) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: Path, value: int) -> None:
    # Ordering: one write, here: a buffered one would be tried again when the file is closed.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % value)
    finally:
        os.close(fd)


def _write_if_there(path: Path, value: int) -> None:
    try:
        _write(path, value)
    except FileNotFoundError:
        pass  # a kernel that does not account for swap


def _unsupported(reason: str) -> Unsupported:
    return Unsupported(
        f"no memory cgroup can be had here: {reason}",
        hint="as root, or below a cgroup with Delegate=yes (systemd-run --user --scope)",
    )
