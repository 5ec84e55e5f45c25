"""What to index, where to keep it, and with how many hands."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass


def default_root() -> str:
    """Return where the standard library of this Python is."""
    return sysconfig.get_paths()["stdlib"]


def default_workers() -> int:
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one index; ``watch_every`` is in seconds."""

    root: str
    db: str
    workers: int
    watch_every: float = 1.0
