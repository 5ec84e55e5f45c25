"""The supervisor's side of the zygote: start it, ask it for forks, learn of its end.

It is started by ``posix_spawn``, never by a fork of the host (which has threads, sockets and
hundreds of megabytes): same executable, same flags, the host's ``sys.path``, working
directory and environment of that moment.  It is a direct child of the host, so its pidfd can
be waited on; if somebody else in the host takes its status away, nothing is lost.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .. import __version__
from .._ipc import launch
from .._ipc.channel import Channel
from ..errors import ProtocolMismatch
from . import exits, wire
from .lifeline import Lifeline
from .zygote_main import BLOCKED

_BOOTSTRAP = f"""\
import marshal, os, sys
fd = {wire.BOOT_FD}
boot = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
sys.path[:] = boot["path"]
from aiobgw._process.zygote_main import main
main(boot)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a zygote is started with."""

    name: str
    python: str
    preload: tuple[str, ...]
    entry: str
    rehearse: str
    titled: str
    reaper: str
    nofile: int | None
    lock: int = -1
    """A descriptor that it shall hold until its last child is gone, for nothing else."""
    cgroup: str = ""
    """The path of what it shall end and remove when the supervisor is gone."""

    def pack(self) -> bytes:
        return marshal.dumps(
            {
                "name": self.name,
                "path": [entry or os.getcwd() for entry in sys.path],
                "argv": list(sys.argv),
                "preload": list(self.preload),
                "entry": self.entry,
                "rehearse": self.rehearse,
                "titled": self.titled,
                "reaper": self.reaper,
                "nofile": self.nofile,
                "lock": self.lock >= 0,
                "cgroup": self.cgroup,
                "bind_now": os.environ.get("LD_BIND_NOW"),
                "inject": os.environ.get("AIOBGW_INJECT", ""),
            }
        )


class Zygote:
    """A running zygote.  Owns its control channel and its pidfd."""

    __slots__ = ("control", "pid", "pidfd", "ready")

    def __init__(self, pid: int, pidfd: int, control: Channel) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self.ready = False

    @classmethod
    def spawn(cls, boot: Boot, lifeline: Lifeline, supervisor: int) -> Zygote:
        """Start one; ``supervisor`` is a pidfd of this process."""
        with ExitStack() as ours, ExitStack() as theirs:
            control, end = Channel.pair()
            ours.callback(control.close)
            theirs.callback(end.close)
            boot_fd = _boot_memfd(boot.pack())
            theirs.callback(os.close, boot_fd)
            inherited = [end.fd, boot_fd, lifeline.read_end, supervisor]
            inherited += [boot.lock] * (boot.lock >= 0)
            pid = _spawn(boot.python, [_raised(fd, theirs) for fd in inherited])
            pidfd = os.pidfd_open(pid)  # our own unreaped child: it cannot be another
            ours.pop_all()
        return cls(pid, pidfd, control)

    def greeted(self, data: bytes) -> None:
        """Check the versions in its first message; raise ProtocolMismatch."""
        _, version, _ = wire.GREETING.unpack_from(data)
        theirs = data[wire.GREETING.size :].decode("utf-8", "replace")
        ours = f"{__version__} {sys.version_info[:2]}"
        if version != launch.WIRE or theirs != ours:
            error = ProtocolMismatch(f"the zygote runs aiobgw {theirs}, this process {ours}")
            error.add_note("hint: was aiobgw upgraded under a running service? Restart it")
            raise error

    def fork(self, number: int, flags: int, end: Channel) -> None:
        """Ask for a child that gets *end*; raises OSError if the zygote cannot be asked."""
        self.control.send(wire.REQUEST.pack(wire.FORK, number, flags), (end.fd,))

    def drop(self, number: int) -> None:
        self._tell(wire.DROP, number)

    def acknowledge(self, number: int) -> None:
        self._tell(wire.ACK, number)

    def _tell(self, verb: bytes, number: int) -> None:
        try:
            self.control.send(wire.REQUEST.pack(verb, number, 0))
        except OSError:
            pass  # it is dying; what it held goes with it

    def reap(self) -> int | None:
        return exits.reap(self.pidfd)

    def close(self) -> None:
        self.control.close()
        os.close(self.pidfd)


def _boot_memfd(data: bytes) -> int:
    fd = os.memfd_create("aiobgw-boot", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


def _raised(fd: int, theirs: ExitStack) -> int:
    """Copy a descriptor out of the range that the copies in the child will overwrite."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    theirs.callback(os.close, high)
    return high


def _spawn(python: str, fds: list[int]) -> int:
    targets = wire.INHERITED[: len(fds)]
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    actions += [_output(fd) for fd in (1, 2) if not _is_open(fd)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in zip(fds, targets, strict=True)]
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # LD_BIND_NOW: without it each child binds its symbols again, a page fault each.
    return os.posix_spawn(
        python,
        [python, *flags, "-c", _BOOTSTRAP],
        {**os.environ, "LD_BIND_NOW": "1"},
        file_actions=actions,
        setsid=True,
        setsigmask=BLOCKED,
        setsigdef=_ordinary_signals(),
    )


def _output(fd: int) -> tuple[int, int, str, int, int]:
    return (os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_WRONLY, 0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _ordinary_signals() -> list[int]:
    """All signals whose action can be reset; glibc refuses its own two."""
    fixed = {signal.SIGKILL, signal.SIGSTOP, 32, 33}
    return [number for number in signal.valid_signals() if number not in fixed]
