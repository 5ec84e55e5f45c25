"""At-fork hooks of ``threading`` and ``logging``, held back while the zygote has one thread.

They renew locks that another thread could have held at the fork.  There is none, and what
they touch costs each child 0.2 ms of page faults.  Forks of a child run them as ever: it may
have threads to care about.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

_MODULES = ("threading", "logging")
_register = os.register_at_fork
_holding = False
_main_thread: threading.Thread | None = None


def hold() -> None:
    """Have hooks that these modules register from now on depend on whose fork it is."""
    os.register_at_fork = _register_held  # type: ignore[assignment]


def _register_held(**hooks: Callable[[], object]) -> None:
    if sys._getframe(1).f_globals.get("__name__") in _MODULES:
        hooks = {when: _unless_holding(hook) for when, hook in hooks.items()}
    _register(**hooks)


def _unless_holding(hook: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        if not _holding:
            hook()

    return run


def begin(*, threads: int) -> None:
    """Register as ever from now on; hold back what was registered, unless forks need it."""
    global _holding, _main_thread
    os.register_at_fork = _register
    _holding = threads == 1
    if "threading" in sys.modules:
        _main_thread = sys.modules["threading"].main_thread()


def end(pid: int) -> None:
    """Do in a child what is left to do for its only thread, and hold back nothing more.

    Python 3.11's own hook leaves the thread the parent's native id.
    """
    global _holding
    _holding = False
    if _main_thread is not None:
        _main_thread._native_id = pid  # type: ignore[attr-defined]
