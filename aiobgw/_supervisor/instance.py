"""The instance: one living supervisor for each runtime directory.

Ownership: the lock is held by an open file description, which the supervisor shares with its
zygotes.  So it is free only when the supervisor is gone *and* its zygote has seen the last
worker end: who gets it never runs beside workers of a predecessor.  The file stays: to unlink
a lock file that others may just have opened would make two locks of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time

from .._ipc import rundir
from .._process import exits
from ..errors import AccessDenied, AlreadyRunning

PATIENCE = 10.0
RETRY_DELAY = 0.02


class Instance:
    """A runtime directory that is ours.  Owns its descriptor and the lock's."""

    def __init__(self, path: str, directory: int, lock: int) -> None:
        self.path = path
        self.directory = directory
        self.lock = lock

    @classmethod
    async def take(cls, path: str, *, private: bool) -> Instance:
        """Take a runtime directory; raises AlreadyRunning if its supervisor lives.

        Waits up to 10 s for the last workers of one that is dead.
        """
        directory = rundir.make(path, 0o700 if private else 0o711)
        lock = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(rundir.LOCK, flags, 0o600, dir_fd=directory)
            await _acquire(lock, path)
            os.ftruncate(lock, 0)
            os.pwrite(lock, _identity(os.getpid()).encode(), 0)
        except BaseException as error:
            os.close(directory)
            if lock >= 0:
                os.close(lock)
            if isinstance(error, PermissionError):
                raise AccessDenied(f"{path}: {error.strerror}") from None
            raise
        return cls(path, directory, lock)

    def close(self) -> None:
        """Give it up.

        Race: a fork of this process, or the zygote, may hold the lock for a moment longer;
        whoever comes then waits for it, since nobody is named as the holder.
        """
        os.ftruncate(self.lock, 0)
        self.close_copy()

    def close_copy(self) -> None:
        for fd in (self.directory, self.lock):
            os.close(fd)


async def _acquire(lock: int, path: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        holder = os.pread(lock, 64, 0).decode("ascii", "replace")
        # Race: whoever has just taken it has not written its name yet; then wait, too.
        alive = bool(holder) and _identity_of(holder) == holder
        if alive or time.monotonic() > give_up:
            pid = holder.partition(" ")[0] or "unknown"
            raise AlreadyRunning(
                f"a supervisor runs at {path} (pid {pid})",
                hint="attach to it, or choose another name or runtime_dir",
            )
        await asyncio.sleep(RETRY_DELAY)


def _identity_of(holder: str) -> str:
    pid = holder.partition(" ")[0]
    return _identity(int(pid)) if pid.isdigit() else ""


def _identity(pid: int) -> str:
    """Return pid and start time of a process, which no later one shares; "" if it is gone."""
    fields = exits.stat_of(pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return ""
    return f"{pid} {int(fields[19])}"
