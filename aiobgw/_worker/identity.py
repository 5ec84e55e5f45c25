"""Become another user, and fail closed: nothing of a worker runs with more than it asked for.

Order (rule: groups before gid before uid, then look): the other way round the right to do the
next step is already gone.
"""

from __future__ import annotations

import fcntl
import os


def become_user(user: str | int, lifeline: int) -> None:
    """Drop to *user* with its groups; raises OSError, KeyError or PermissionError."""
    import pwd

    entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    if entry.pw_uid == os.getuid() == os.geteuid():
        return
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if os.getresuid() != (entry.pw_uid,) * 3 or os.getresgid() != (entry.pw_gid,) * 3:
        raise PermissionError(f"still uid {os.getresuid()}, gid {os.getresgid()}")

    # The lifeline was armed before; in a user namespace that owner has no right any more.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
