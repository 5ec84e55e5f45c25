"""Closing: in which order the processes of a supervisor go, and how long each may take.

Workers, then spares, then the zygote, which outlives its children so that none of them
becomes a stranger's zombie; then the lifeline.  Each step is looked at after every turn, and
has a bound: a stop always ends.
"""

from __future__ import annotations

import time

from .._inject import _inject
from .._process.seam import LauncherSeam

STEP_TIMEOUT = 2.0


class Closing:
    """The steps from "the last worker is gone" to "nothing is left"."""

    def __init__(self, launcher: LauncherSeam) -> None:
        self._launcher = launcher
        self._spares_dismissed = False
        self._zygote_dismissed = False
        self._late_at = 0.0

    def step(self, *, workers: int) -> bool:
        """Go as far as can be gone now; return whether nothing is left."""
        launcher = self._launcher
        _inject("in_stop")
        if workers:
            return False
        if not self._spares_dismissed:
            self._spares_dismissed = True
            launcher.dismiss_spares()
            self._set_bound()
        if not self._zygote_dismissed and (launcher.childless or self._is_late):
            self._zygote_dismissed = True
            launcher.dismiss_zygote()
            self._set_bound()
        return self._zygote_dismissed and (launcher.zygote_pid is None or self._is_late)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._late_at

    def _set_bound(self) -> None:
        """Be called again at the bound, even if nothing happens until then."""
        self._late_at = time.monotonic() + STEP_TIMEOUT
        self._launcher.watcher.timer("closing", self._late_at, lambda: None)
