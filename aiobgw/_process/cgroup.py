"""Control groups (cgroup v2): make one for a launch, end all that is in it, remove it.

A process group is left by ``setsid``, a cgroup is not: only who may write in the directories
above it can leave.  So ``cgroup.kill`` (Linux 5.14) also ends what a worker has put into a
session of its own.

Race: what is being forked while the kill is written dies, too; what enters after it does not.
So each attempt to remove a cgroup writes the kill again.  Zombies do not count as being in it.

Imported by the zygote, too: nothing heavy.
"""

from __future__ import annotations

import errno
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KILL, PROCS, EVENTS = "cgroup.kill", "cgroup.procs", "cgroup.events"
CONTROLLERS, SUBTREE = "cgroup.controllers", "cgroup.subtree_control"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_OCCUPIED = (errno.EBUSY, errno.ENOTEMPTY)
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_LOOK_AGAIN = 0.02


class CannotLimit(Exception):
    """A cgroup cannot be had as it was asked for; the text says what is missing."""


class Cgroup:
    """The cgroup of one launch.

    Owns the descriptor that ends it, and until ``entered`` the one by which to enter it.
    """

    __slots__ = ("_kill_fd", "entrance", "name")

    def __init__(self, name: str, kill_fd: int, entrance: int) -> None:
        self.name = name
        self._kill_fd = kill_fd
        self.entrance = entrance

    @classmethod
    def make(cls, name: str, parent: int, limits: Mapping[str, str | int]) -> Cgroup:
        """Make one below *parent* (a descriptor), its limits written before anybody enters.

        Raises CannotLimit, and OSError if something is scarce that may be there later.
        """
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except OSError as error:
            raise _refusal("cgroup", error) from error
        opened: list[int] = []
        try:
            directory = open_directory(name, parent)
            opened.append(directory)
            for file, value in limits.items():
                set_limit(directory, parent, file, value)
            for file in (KILL, PROCS):
                opened.append(os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory))
        except BaseException as error:
            for fd in opened:
                os.close(fd)
            remove(name, parent)
            if isinstance(error, OSError):
                raise _refusal("cgroup", error) from error
            raise
        os.close(directory)
        return cls(name, opened[1], opened[2])

    def entered(self) -> None:
        """Close what was passed on, or will not be."""
        if self.entrance >= 0:
            os.close(self.entrance)
            self.entrance = -1

    def kill(self) -> None:
        """Have the kernel end everybody who is in it, and in cgroups below it."""
        try:
            os.write(self._kill_fd, b"1")
        except OSError:
            pass  # it is removed: nobody is in it

    def descriptors(self) -> tuple[int, ...]:
        return (self._kill_fd, self.entrance)

    def close(self) -> None:
        """Close what it holds, and touch nothing."""
        self.entered()
        if self._kill_fd >= 0:
            os.close(self._kill_fd)
            self._kill_fd = -1


def open_directory(name: str | os.PathLike[str], parent: int | None = None) -> int:
    return os.open(name, _DIRECTORY, dir_fd=parent)


def set_limit(directory: int, parent: int, file: str, value: str | int) -> None:
    """Write a limit; has the controller that it belongs to enabled, if it must."""
    what = f"cgroup {file} {value!r}"
    try:
        try:
            write(directory, file, str(value))
        except FileNotFoundError:
            _enable(file.partition(".")[0], parent, what)
            write(directory, file, str(value))
    except FileNotFoundError as error:
        raise CannotLimit(f"{what}: the kernel has no such file") from error
    except OSError as error:
        raise _refusal(what, error) from error


def _enable(controller: str, parent: int, what: str) -> None:
    """Have the cgroups in *parent* get a controller, from the top down."""
    for directory in ("..", "."):
        level = open_directory(directory, parent)
        try:
            has = read(level, CONTROLLERS).split()
            if controller not in has:
                there = ", ".join(has) or "none"
                raise CannotLimit(f"{what}: there is no controller {controller!r} (but {there})")
            write(level, SUBTREE, f"+{controller}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise CannotLimit(
                f"{what}: controller {controller!r} cannot be enabled while processes are in the"
                " delegated cgroup itself (systemd: DelegateSubgroup=)"
            ) from error
        finally:
            os.close(level)


def _refusal(what: str, error: OSError) -> Exception:
    return error if error.errno in _SCARCE else CannotLimit(f"{what}: {error.strerror}")


def read(directory: int, file: str) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def write(directory: int, file: str, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def remove(name: str, parent: int) -> bool:
    """Remove a cgroup and all below it; return False while somebody is in one of them."""
    for attempt in range(2):
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            if attempt or not _remove_below(name, parent):
                return False
        else:
            return True
    return False


def _remove_below(name: str, parent: int) -> bool:
    try:
        directory = open_directory(name, parent)
    except FileNotFoundError:
        return True
    try:
        with os.scandir(directory) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return all([remove(one, directory) for one in below])
    finally:
        os.close(directory)


def end(directory: int) -> None:
    """End everybody in a cgroup, and in those below it."""
    try:
        write(directory, KILL, "1")
    except OSError:
        pass  # it is removed: nobody is in it


def end_and_remove(path: str, timeout: float) -> None:
    """End everybody in a cgroup, and remove it; block until that is done, *timeout* at most."""
    folder, name = os.path.split(path)
    opened: list[int] = []
    try:
        opened.append(open_directory(folder))
        opened.append(open_directory(name, opened[0]))
        give_up = time.monotonic() + timeout
        end(opened[1])
        while not remove(name, opened[0]) and time.monotonic() < give_up:
            _wait_for_change(opened[1])
            end(opened[1])
    except OSError:
        pass  # it is gone, or not ours: the next supervisor sees to it
    finally:
        for fd in opened:
            os.close(fd)


def _wait_for_change(directory: int) -> None:
    """Wait until the last process has left it, or for a moment: somebody may be in between."""
    fd = os.open(EVENTS, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.read(fd, 4096)
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        poll.poll(_LOOK_AGAIN * 1000)
    finally:
        os.close(fd)
