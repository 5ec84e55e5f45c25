"""Variables of the host that are meant for the host alone.

The zygote takes them out of its own environment before it imports anything, so that neither
preloaded modules nor workers speak for the host; a spec that names one gets it all the same.

Kept in the environment: INVOCATION_ID and SYSTEMD_EXEC_PID (they say in which service, and below
which process, somebody runs, which is true of workers, too), JOURNAL_STREAM (who uses it compares
it with its own standard error first), and the directories that the service was given.
"""

from __future__ import annotations

import os

HOSTS_OWN = (
    "NOTIFY_SOCKET",  # what a worker says there would be taken for the host's own word
    "WATCHDOG_USEC",  # the host's signs of life: a worker's would hide that the host hangs
    "WATCHDOG_PID",
    "LISTEN_PID",  # sockets that workers do not have
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)

taken: dict[str, str] = {}
"""What was taken out, in the zygote and in every child of it."""


def leave_to_the_host() -> None:
    """Take the host's own variables out of the environment of this process."""
    for name in HOSTS_OWN:
        value = os.environ.pop(name, None)
        if value is not None:
            taken[name] = value
