"""How a supervisor is run.  Every option is written once, here; the constructor, and what
reads options from elsewhere, is derived from these fields."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._names import IMPORTABLE, check_name, importable_name, is_target_name
from .errors import InvalidSpec
from .spec import Phase, Strategy

if TYPE_CHECKING:
    from ._policy.clock import Clock
    from ._process.seam import LauncherMaker


def option(default: Any, text: str) -> Any:
    """Declare an option with its default and a line for people."""
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata={"help": text})
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
    runtime_dir: str | os.PathLike[str] | bool | None = option(
        None, "where clients attach: a path, True for the default place; None: nowhere, no files"
    )
    viewers: tuple[str | int, ...] = option(
        (), 'users and groups ("alice", 1000, "@staff", "@50") that may attach and look'
    )
    operators: tuple[str | int, ...] = option((), "those that may also end and restart workers")
    administrators: tuple[str | int, ...] = option((), "those that may also register workers")
    max_clients: int = option(128, "how many processes may be attached at once, 0 to 4096")
    start_phase: Phase = option(Phase.RUNNING, "the phase in which it starts")
    groups: Mapping[str, Strategy] = option(
        {}, "the strategies of groups, by name (others: ONE_FOR_ONE)"
    )
    cgroup: str | os.PathLike[str] | bool | None = option(
        None,
        "where workers with a cgroup get theirs: a delegated directory of cgroup v2, True for the"
        " supervisor's own",
    )
    connector: str | Callable[..., object] | None = option(
        None,
        "what connects workers with DATABASE_CONNECTION: 'package.module:function', or a"
        " module-level function (stored by name)",
    )
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
    clock: Clock | None = option(
        None, "the clock of restart delays and stop timeouts (tests: aiobgw.testing.ManualClock)"
    )
    launcher: LauncherMaker | None = option(
        None, "what launches instead of processes (tests: aiobgw.testing.FakeLauncher)"
    )

    def __post_init__(self) -> None:
        check_name(self.name, "supervisor's name", self.name)
        for name, most in (
            ("max_workers", 262_143),
            ("max_parallel_workers", 1024),
            ("spares", 1024),
            ("max_payload", 2**30),
            ("max_clients", 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise self._refused(name, f"a whole number from 0 to {most}")

        if self.reaper not in ("auto", "kernel", "zygote"):
            raise self._refused("reaper", "'auto', 'kernel' or 'zygote'")
        if not isinstance(self.start_phase, Phase):
            raise self._refused("start_phase", "an aiobgw.Phase")
        if not isinstance(self.runtime_dir, (str, os.PathLike, bool, type(None))):
            raise self._refused("runtime_dir", "a path, True or None")
        if not isinstance(self.cgroup, (str, os.PathLike, bool, type(None))):
            raise self._refused("cgroup", "a path, True or None")
        object.__setattr__(self, "groups", self._strategies())
        for name in ("viewers", "operators", "administrators"):
            object.__setattr__(self, name, self._people(name))
        if self.clock is not None and not callable(getattr(self.clock, "call_at", None)):
            raise self._refused("clock", "an aiobgw.testing.ManualClock")
        if self.launcher is not None and not callable(getattr(self.launcher, "make", None)):
            raise self._refused("launcher", "an aiobgw.testing.FakeLauncher")
        if self.on_reset is not None and not callable(self.on_reset):
            raise self._refused("on_reset", "a function without parameters")
        object.__setattr__(self, "preload", self._modules())
        object.__setattr__(self, "connector", self._connector_name())

    def _modules(self) -> tuple[str, ...]:
        if isinstance(self.preload, str) or not all(isinstance(m, str) for m in self.preload):
            raise self._refused("preload", "a sequence of module names")
        return tuple(self.preload)

    def _strategies(self) -> dict[str, Strategy]:
        groups = self.groups
        if not isinstance(groups, Mapping) or not all(
            isinstance(strategy, Strategy) for strategy in groups.values()
        ):
            raise self._refused("groups", "a mapping from names to aiobgw.Strategy")
        for name in groups:
            check_name(self.name, "groups", name)
        return dict(groups)

    def _people(self, name: str) -> tuple[str | int, ...]:
        entries = getattr(self, name)
        good = not isinstance(entries, str) and all(isinstance(one, (str, int)) for one in entries)
        if not good:
            raise self._refused(name, "a sequence of users and groups")
        return tuple(entries)

    def _connector_name(self) -> str | None:
        """Return the connector by the name under which a worker will find it."""
        connector = self.connector
        if isinstance(connector, str) and not is_target_name(connector):
            raise self._refused("connector", "like 'package.module:function'")
        if connector is None or isinstance(connector, str):
            return connector

        name = importable_name(connector)
        if name is None:
            raise self._refused("connector", IMPORTABLE)
        return name

    def _refused(self, name: str, allowed: str) -> InvalidSpec:
        given = getattr(self, name)
        return InvalidSpec(f"supervisor {self.name!r}: {name} must be {allowed}, not {given!r}")
