"""Where a worker writes its Python stacks when it dies, so that its exit status can show them.

A memfd for each incarnation of a Python target with a watchdog.  ``faulthandler`` writes to it
from a signal handler, by plain writes; it is never mapped here, only read, and has a fixed size:
what does not fit is lost to the worker (EPERM), and a worker that writes what it likes costs
64 KiB at most.  It is text of a worker, so it is believed no more than a farewell's.

Ownership: the descriptor is a Stacks', which is a RegisteredWorker's, from one launch to the
exit.  The worker has a copy; nobody else.
"""

from __future__ import annotations

import fcntl
import os

from .._ipc.launch import TEXT_BYTES

SIZE = 65_536

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CRASHED = "Fatal Python error: "
_ABORTED = "Fatal Python error: Aborted"
"""What follows on a dump that was asked for is the same again."""

_FIRST, _LAST = "(most recent call first):", "(most recent call last):"


class Stacks:
    """The memfd of one incarnation."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.memfd_create("aiobgw-stacks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, SIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def read(self) -> str:
        """Return what was written, if anything, the most important part last."""
        data = os.pread(self.fd, SIZE, 0).replace(b"\0", b"")
        text = data.decode("utf-8", "replace")
        text = in_order(text.partition(_ABORTED)[0] or text)
        return text.encode("utf-8", "replace")[-TEXT_BYTES:].decode("utf-8", "replace")

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def in_order(text: str) -> str:
    """Turn the stacks of ``faulthandler`` round, so that the last call comes last.

    So they read as every traceback does, and a text that loses its beginning keeps what counts.
    The main thread is the last one already; after a crash the one that crashed shall be.
    """
    sections = [_turned(section) for section in text.strip().split("\n\n")]
    if text.startswith(_CRASHED):
        sections.sort(key=lambda section: section.startswith("Current thread"))
    return "\n\n".join(sections)


def _turned(section: str) -> str:
    header, *calls = section.split("\n")
    if not header.endswith(_FIRST):
        return section
    return "\n".join([header.removesuffix(_FIRST) + _LAST, *reversed(calls)])
