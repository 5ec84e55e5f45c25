"""Forks of a process: what a supervisor or a client owns must not live on in them.

A child of ``os.fork`` or multiprocessing's "fork" inherits the write end of the lifeline, and
would hide the supervisor's death from the kernel; it inherits every channel, and would hide
EOF.  So each owner is told in the child, and closes its copies there, with ``os.close`` only:
the host's event loop shares its epoll with the parent, and must not be touched.

``os.register_at_fork`` cannot be undone: one hook, over a set of weak references.  A raw
fork inside C code runs no hook: there the lifeline holds on until that child ends.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Owner(Protocol):
    """Somebody who owns descriptors that no fork may keep."""

    def forked(self) -> None:
        """Close every copy: this process is a fork of the owner's."""


_owners: WeakSet[Owner] = WeakSet()


def close_in_forks(owner: Owner) -> None:
    """Have ``owner.forked()`` called in every fork of this process."""
    _owners.add(owner)


def owners() -> list[Owner]:
    """Return the owners of this process that are still there."""
    return list(_owners)


def _after_fork() -> None:
    for owner in list(_owners):
        try:
            owner.forked()
        except OSError:
            pass  # go on with the others: each copy that stays hides a death
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)
