"""What can be asked of a worker, and who may ask what."""

from __future__ import annotations

import enum


class Verb(enum.IntEnum):
    """What can be asked of a worker."""

    TERMINATE = 1
    KILL = 2
    SIGNAL = 3
    RESTART = 4
    WAKE = 5


class Rights(enum.IntEnum):
    """What a client may do; each includes those before it."""

    VIEW = 1
    OPERATE = 2
    ADMINISTRATE = 3
