"""The stacks of this worker: written by C code, whatever its Python code is stuck in.

On DUMP_SIGNALS all threads' stacks go to the worker's own standard error, and to where the
supervisor finds them for the exit status; there on SIGABRT, too, and on the signals of a crash.
That needs neither the event loop nor Python's lock.  A system call goes on afterwards, but for
those that no handler lets go on (a sleep in C): a worker may even end by itself then.

A target that sets up ``faulthandler`` itself for crashes gets its own way there.
"""

from __future__ import annotations

from _signal import SIG_UNBLOCK, SIGABRT, pthread_sigmask

from .._ipc.launch import DUMP_SIGNALS

STDERR = 2


def show_stacks(fd: int) -> None:
    """Write to *fd* from now on, which belongs to this module."""
    import faulthandler

    faulthandler.enable(file=fd, all_threads=True)
    for signum, file in zip(DUMP_SIGNALS, (STDERR, fd), strict=True):
        faulthandler.register(signum, file=file, all_threads=True)
    # The host may have blocked them in the thread that started the zygote.
    pthread_sigmask(SIG_UNBLOCK, (*DUMP_SIGNALS, SIGABRT))
