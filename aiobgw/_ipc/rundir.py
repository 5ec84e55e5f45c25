"""The runtime directory of a supervisor: where it is, who may own it, what is in it.

    control   the socket that clients connect to
    lock      held (flock) by the supervisor, and by its zygote until its last worker is gone

Ownership: the directory is opened first, and checked by its descriptor; everything in it is
then reached through that descriptor, so that nobody can exchange the directory, or a part of
its path, between the check and the use.  A socket's path may have 107 bytes: through
``/proc/self/fd`` every one is short.
"""

from __future__ import annotations

import os
import stat
from _socket import SO_PEERCRED, SOL_SOCKET
from _socket import socket as Socket
from struct import Struct

from ..errors import AccessDenied, InvalidSpec, NotAttached

CONTROL = "control"
LOCK = "lock"

_PEERCRED = Struct("iII")
_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def place(name_or_path: str | os.PathLike[str]) -> str:
    """Return the directory that is meant: a path has a slash, a name has none."""
    text = os.fspath(name_or_path)
    if "/" in text:
        return os.path.abspath(text)
    if not text or text in (".", "..") or "\0" in text:
        raise InvalidSpec(f"{text!r} is neither the name of a supervisor nor a path")
    return os.path.join(_base(), text)


def _base() -> str:
    """Return where names are: tests set AIOBGW_RUNTIME_DIR, to meet nobody else's."""
    base = os.environ.get("AIOBGW_RUNTIME_DIR")
    if base:
        return os.path.abspath(base)
    if os.geteuid() == 0:
        return "/run/aiobgw"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return os.path.join(runtime, "aiobgw")


def make(path: str, mode: int) -> int:
    """Make the directory if it is missing; return its descriptor, checked, with *mode*.

    Raises AccessDenied if it is another user's, a symbolic link, or cannot be made.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        fd = _open(path, os.O_RDONLY)
    except OSError as error:
        raise AccessDenied(
            f"the runtime directory {path} cannot be had: {error.strerror}",
            hint="pass runtime_dir='/a/path' that this user can make, or set XDG_RUNTIME_DIR",
        ) from None
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise AccessDenied(f"{path} belongs to uid {status.st_uid}, not to us")
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def find(path: str) -> int:
    """Return the descriptor of a supervisor's directory, for a client.

    Raises NotAttached if there is none, AccessDenied if somebody else may have made it: a
    client sends its arguments there.
    """
    try:
        fd = _open(path, os.O_PATH)  # others may walk through it, and not read it
    except FileNotFoundError:
        raise NotAttached(
            f"there is no supervisor at {path}",
            hint="was it started with runtime_dir=..., by this user?",
        ) from None
    except PermissionError as error:
        raise AccessDenied(f"{path}: {error.strerror}") from None
    status = os.fstat(fd)
    foreign = status.st_uid not in (os.geteuid(), 0)
    if stat.S_IMODE(status.st_mode) & 0o022 or (foreign and os.geteuid() == 0):
        os.close(fd)
        raise AccessDenied(f"{path} can be written by others, or is another user's")
    return fd


def _open(path: str, how: int) -> int:
    try:
        return os.open(path, how | _FLAGS)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise AccessDenied(f"{path} is no directory of ours: {error.strerror}") from None


def peer_of(socket: Socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of who is at the other end, as they were when it connected."""
    data = socket.getsockopt(SOL_SOCKET, SO_PEERCRED, _PEERCRED.size)
    pid, uid, gid = _PEERCRED.unpack(data)
    return pid, uid, gid


def within(fd: int, name: str) -> str:
    """Return a path of a file in an open directory, for calls that take no ``dir_fd``."""
    return f"/proc/self/fd/{fd}/{name}"
