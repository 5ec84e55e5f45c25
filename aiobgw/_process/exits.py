"""How a process ended, and signals that cannot hit another one: all through its pidfd.

A pidfd is readable when the process is over; that does not mean that its status is
there.  PIDFD_GET_INFO (Linux 6.15) has it once somebody has reaped the zombie, for any holder
of the pidfd.  Before that, /proc/PID/stat has it in field 52, for processes of the same user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from struct import Struct

_GET_INFO = 0xC040FF0B
_INFO = Struct("=Q52xi")
_INFO_EXIT = 0x8
_SIGNAL_PROCESS_GROUP = 4


def reaped_status(pidfd: int) -> int | None:
    """Return the wait status the kernel keeps; None if there is none (yet, or ever)."""
    buffer = bytearray(64)
    _INFO.pack_into(buffer, 0, _INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
    except OSError:
        return None  # a kernel before 6.13, or a process that is gone without a trace
    mask, status = _INFO.unpack(buffer)
    return int(status) if mask & _INFO_EXIT else None


def zombie_status(pid: int, pidfd: int) -> int | None:
    """Return the wait status of a zombie that nobody has reaped; None if it cannot be had.

    Race: the pid may be another process by now.  It is ours as long as its pidfd can be
    signalled, so look at the pidfd before *and* after reading.
    """
    if not is_unreaped(pidfd):
        return None
    fields = stat_of(pid)
    if len(fields) < 50 or fields[0] not in (b"Z", b"X") or not is_unreaped(pidfd):
        return None
    return int(fields[49])


def stat_of(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the state on (field 3); none if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def is_unreaped(pidfd: int) -> bool:
    """Tell whether the process runs, or is a zombie."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's, so it exists
    return True


def send(pidfd: int, signum: int) -> bool:
    """Send a signal to the process; return False if it is gone, or not ours to signal."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_group(pidfd: int) -> bool:
    """Send SIGKILL to what is left of the group that the process leads, or led.

    Works after the leader's death, since the pidfd keeps the group's identity.  Returns
    False if there is no such group any more, or none of it is ours to signal.  Before
    Linux 6.9 only the process itself can be signalled in this way: the zygote, which holds
    the zombie, ends its group there.
    """
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, _SIGNAL_PROCESS_GROUP)
    except (ProcessLookupError, PermissionError):
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return send(pidfd, signal.SIGKILL)
    return True


def group_signals_work(pidfd: int) -> bool:
    """Tell whether this kernel can signal a group by pidfd (Linux 6.9)."""
    try:
        signal.pidfd_send_signal(pidfd, 0, None, _SIGNAL_PROCESS_GROUP)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def reap(pidfd: int) -> int | None:
    """Reap a direct child if it is over; return its wait status.

    None: not over, or somebody else in this process took the status (a ``waitpid(-1)``).
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    return None if result is None else wait_status(result)


def wait_status(result: os.waitid_result) -> int:
    """Return what waitid found as a wait status, the one form used everywhere here."""
    if result.si_code == os.CLD_EXITED:
        return result.si_status << 8
    return result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)


def meaning(status: int) -> tuple[int | None, int | None]:
    """Return (exit code, None) or (None, signal) of a wait status."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def wait_for(pidfd: int, timeout: float) -> bool:
    """Block until the process is over, *timeout* seconds at most."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
