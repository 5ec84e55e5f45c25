"""How a supervisor is run.  Every option is written once, here; the constructor, and what
reads options from elsewhere, is derived from these fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidSpec
from .spec import Phase, check_name


def option(default: Any, text: str) -> Any:
    """Declare an option with its default and a line for people."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a supervisor."""

    name: str = option("aiobgw", "its name, in process titles, logs and the status")
    max_workers: int = option(64, "how many slots there are, 0 to 262143")
    max_parallel_workers: int = option(8, "how many CLASS_PARALLEL workers at once, 0 to 1024")
    preload: tuple[str, ...] = option((), "modules that workers find imported")
    preload_asyncio: bool = option(
        True, "preload asyncio; without it plain targets start faster, async ones much slower"
    )
    spares: int = option(2, "processes kept waiting for an order, 0 to 1024")
    start_phase: Phase = option(Phase.RUNNING, "the phase in which it starts")
    on_reset: Callable[[], object] | None = option(
        None, "rebuilds the application's shared memory in a crash cycle; plain or async"
    )
    restart_after_crash: bool = option(
        True, "go through a crash cycle after the crash of a shared worker; off: fail"
    )
    handle_signals: bool = option(
        False, "end on SIGTERM and SIGINT (FAST; again: IMMEDIATE) and SIGQUIT (IMMEDIATE)"
    )
    python: str | None = option(None, "the interpreter of the workers (default: this one)")
    max_payload: int = option(16 * 1024 * 1024, "bytes that pickled arguments may take")
    reaper: str = option(
        "auto", "who learns how a worker ended: 'kernel' (Linux 6.15), 'zygote', or 'auto'"
    )

    def __post_init__(self) -> None:
        check_name(self.name, "supervisor's name", self.name)
        for name, most in (
            ("max_workers", 262_143),
            ("max_parallel_workers", 1024),
            ("spares", 1024),
            ("max_payload", 2**30),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise self._refused(name, f"a whole number from 0 to {most}")

        if self.reaper not in ("auto", "kernel", "zygote"):
            raise self._refused("reaper", "'auto', 'kernel' or 'zygote'")
        if not isinstance(self.start_phase, Phase):
            raise self._refused("start_phase", "an aiobgw.Phase")
        if self.on_reset is not None and not callable(self.on_reset):
            raise self._refused("on_reset", "a function without parameters")
        object.__setattr__(self, "preload", self._modules())

    def _modules(self) -> tuple[str, ...]:
        if isinstance(self.preload, str) or not all(isinstance(m, str) for m in self.preload):
            raise self._refused("preload", "a sequence of module names")
        return tuple(self.preload)

    def _refused(self, name: str, allowed: str) -> InvalidSpec:
        given = getattr(self, name)
        return InvalidSpec(f"supervisor {self.name!r}: {name} must be {allowed}, not {given!r}")
