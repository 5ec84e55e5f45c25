"""Who may do what: decided by the kernel's word on who connected, never by a message."""

from __future__ import annotations

import grp
import os
import pwd
from _socket import SOL_SOCKET
from _socket import socket as Socket
from collections.abc import Iterable
from typing import NamedTuple

from .._ipc import rundir
from .._ipc.verbs import Rights
from ..errors import InvalidSpec
from ..settings import Settings

_SO_PEERGROUPS = 59
_GROUPS = 256
"""What Python's getsockopt has room for; of a process in more groups only the first counts."""


class Who(NamedTuple):
    """A process that connected, as it was at that moment."""

    pid: int
    uid: int
    groups: frozenset[int]


def who_connected(socket: Socket) -> Who:
    """Return who made the connection."""
    pid, uid, gid = rundir.peer_of(socket)
    try:
        data = socket.getsockopt(SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS)
        others = memoryview(data).cast("I").tolist()
    except OSError:
        others = []  # too many, or an old kernel: the first group is known
    return Who(pid, uid, frozenset([gid, *others]))


class Access:
    """The lists of a supervisor, as numbers."""

    def __init__(self, settings: Settings) -> None:
        self._own = {0, os.geteuid()}
        self._lists = (
            (Rights.ADMINISTRATE, *_numbers(settings.administrators)),
            (Rights.OPERATE, *_numbers(settings.operators)),
            (Rights.VIEW, *_numbers(settings.viewers)),
        )

    @property
    def is_private(self) -> bool:
        """Tell whether nobody else may do anything."""
        return not any(uids or gids for _, uids, gids in self._lists)

    def is_own(self, who: Who) -> bool:
        return who.uid in self._own

    def rights(self, who: Who) -> Rights | None:
        """Return what a process may do; None: nothing."""
        if self.is_own(who):
            return Rights.ADMINISTRATE
        for rights, uids, gids in self._lists:
            if who.uid in uids or not gids.isdisjoint(who.groups):
                return rights
        return None


def _numbers(entries: Iterable[str | int]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the uids and gids that are meant: 1000, "alice", "@50", "@staff"."""
    uids, gids = set(), set()
    for entry in entries:
        text = str(entry)
        try:
            if text.startswith("@"):
                gids.add(int(text[1:]) if text[1:].isdigit() else grp.getgrnam(text[1:]).gr_gid)
            else:
                uids.add(int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid)
        except KeyError:
            raise InvalidSpec(f"there is no user or group {text!r}") from None
    return frozenset(uids), frozenset(gids)
