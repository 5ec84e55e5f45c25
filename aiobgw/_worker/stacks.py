"""The stacks of this worker: written by C code, whatever its Python code is stuck in.

On SIGABRT, and on the signals of a crash, all threads' stacks go to where the supervisor finds
them for the exit status; on DUMP_SIGNAL to the worker's own standard error.  Neither needs the
event loop, nor Python's lock.  A target that has set up ``faulthandler`` itself gets its own way.
"""

from __future__ import annotations

from _signal import SIG_UNBLOCK, SIGABRT, pthread_sigmask

from .._ipc.launch import DUMP_SIGNAL

STDERR = 2


def show_stacks(fd: int) -> None:
    """Write to *fd* from now on, which belongs to this module."""
    import faulthandler

    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=STDERR, all_threads=True)
    # The host may have blocked them in the thread that started the zygote.
    pthread_sigmask(SIG_UNBLOCK, (DUMP_SIGNAL, SIGABRT))
