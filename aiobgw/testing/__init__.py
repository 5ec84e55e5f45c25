"""For tests of what uses aiobgw, ours and our users': clocks, fakes, faults, and a worker that
does what a test tells it.

``clock`` and ``launcher`` replace time and processes: restart rules are tested without
waiting.  ``faults`` does to a real process what happens to processes; what has to happen
inside of it is done by ``inside``, which is preloaded.  With ``script`` a test talks to workers
that run ``scripted``.  Nothing of this is imported by a supervisor or a worker that was not
asked for it.

A package, not the one module of the design: what runs in workers (``inside``, ``scripted``,
``wire``) must not bring along what runs in tests.  A stop of a supervisor goes on also while its
clock stands still: it always ends.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .clock import ManualClock as ManualClock
    from .faults import exit_with as exit_with
    from .faults import freeze as freeze
    from .faults import frozen as frozen
    from .faults import kill as kill
    from .faults import kill_supervisor as kill_supervisor
    from .faults import kill_zygote as kill_zygote
    from .faults import oom as oom
    from .faults import raise_in as raise_in
    from .faults import thaw as thaw
    from .launcher import FakeLauncher as FakeLauncher
    from .launcher import FakeProcess as FakeProcess
    from .script import Incarnation as Incarnation
    from .script import Script as Script

_NAMES_OF = {
    "clock": "ManualClock",
    "faults": "exit_with freeze frozen kill kill_supervisor kill_zygote oom raise_in thaw",
    "launcher": "FakeLauncher FakeProcess",
    "script": "Incarnation Script",
}
_HOME = {name: home for home, names in _NAMES_OF.items() for name in names.split()}

__all__ = tuple(sorted(_HOME))


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
