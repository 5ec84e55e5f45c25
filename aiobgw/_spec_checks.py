"""What a spec must not be: every rule, in the order in which the first one broken is reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ._choices import CrashScope, Flags, Phase, Restart
from ._names import (
    IMPORTABLE,
    check_name,
    importable_name,
    is_target_name,
)
from ._spec_options import DAY, check_options, is_name
from .errors import InvalidSpec

if TYPE_CHECKING:
    from typing import Any, TypeGuard

    from .spec import WorkerSpec

EXTRA_BYTES = 128
LATCHES = 16

SHMEM_ACCESS = int(Flags.SHMEM_ACCESS)
DATABASE_CONNECTION = int(Flags.DATABASE_CONNECTION)
CLASS_PARALLEL = int(Flags.CLASS_PARALLEL)
_KNOWN_FLAGS = SHMEM_ACCESS | DATABASE_CONNECTION | CLASS_PARALLEL


def default_restart(flags: Flags) -> Restart:
    parallel = isinstance(flags, int) and int(flags) & CLASS_PARALLEL
    return Restart.NEVER if parallel else Restart.ON_FAILURE


def _check_flags(spec: WorkerSpec) -> None:
    if not isinstance(spec.flags, int):
        raise InvalidSpec.of(spec.name, "flags", spec.flags, "must be made of aiobgw.Flags")
    flags = int(spec.flags)  # as plain numbers: an IntFlag's & runs much code
    if flags & DATABASE_CONNECTION:
        if not flags & SHMEM_ACCESS:
            allowed = "with DATABASE_CONNECTION must have SHMEM_ACCESS too"
            raise InvalidSpec.of(spec.name, "flags", spec.flags, allowed)
        if spec.start_when == Phase.SUPERVISOR_START:
            allowed = "of a worker with DATABASE_CONNECTION must be a later phase"
            raise InvalidSpec.of(spec.name, "start_when", spec.start_when, allowed)


def _check_times(spec: WorkerSpec) -> None:
    for name in ("restart_delay", "stop_timeout"):
        value = getattr(spec, name)
        good = isinstance(value, (int, float)) and 0 <= value <= DAY  # NaN is neither
        if not good or isinstance(value, bool):
            raise InvalidSpec.of(spec.name, name, value, "must be 0 to 86400 seconds")


def _check_class(spec: WorkerSpec) -> None:
    if int(spec.flags) & CLASS_PARALLEL and spec.restart is not Restart.NEVER:
        # PostgreSQL: the accounting of the class could not survive a crash cycle otherwise.
        raise InvalidSpec.of(
            spec.name, "restart", spec.restart, "of a CLASS_PARALLEL worker must be Restart.NEVER"
        )


def _check_names(spec: WorkerSpec) -> None:
    for name in ("name", "type"):
        check_name(spec.name, name, getattr(spec, name))


def _check_what_runs(spec: WorkerSpec) -> None:
    if (spec.target is None) == (spec.command is None):
        both = (spec.target, spec.command)
        raise InvalidSpec.of(spec.name, "target, command", both, "must be one of the two")
    if spec.command is not None:
        _check_command(spec, spec.command)
        if int(spec.flags) & DATABASE_CONNECTION:
            allowed = "of a command must not have DATABASE_CONNECTION: nobody would connect"
            raise InvalidSpec.of(spec.name, "flags", spec.flags, allowed)


def _check_command(spec: WorkerSpec, command: Sequence[str]) -> None:
    good = isinstance(command, Sequence) and not isinstance(command, (str, bytes)) and command
    if not good or not all(_is_word(word) for word in command) or not command[0]:
        allowed = "must be a list of words: the program, then its arguments"
        raise InvalidSpec.of(spec.name, "command", command, allowed)
    if spec.args or spec.kwargs or spec.latches:
        given = [name for name in ("args", "kwargs", "latches") if getattr(spec, name)]
        raise InvalidSpec.of(spec.name, "command", given, "takes its arguments as words")


def _is_word(word: object) -> bool:
    """Tell whether something can be an argument of a program."""
    if not isinstance(word, str) or "\0" in word:
        return False
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def _check_values(spec: WorkerSpec) -> None:
    for name, kind in (
        ("start_when", Phase),
        ("restart", Restart),
        ("crash_scope", CrashScope),
    ):
        if not isinstance(getattr(spec, name), kind):
            allowed = f"must be an aiobgw.{kind.__name__}"
            raise InvalidSpec.of(spec.name, name, getattr(spec, name), allowed)
    if spec.loop not in ("asyncio", "uvloop"):
        raise InvalidSpec.of(spec.name, "loop", spec.loop, "must be 'asyncio' or 'uvloop'")


def _check_unknown_flags(spec: WorkerSpec) -> None:
    unknown = int(spec.flags) & ~_KNOWN_FLAGS
    if unknown:
        raise InvalidSpec.of(spec.name, "flags", hex(unknown), "must be made of aiobgw.Flags")


def _check_extra(spec: WorkerSpec) -> None:
    if not isinstance(spec.extra, bytes) or len(spec.extra) > EXTRA_BYTES:
        raise InvalidSpec.of(spec.name, "extra", spec.extra, f"must be up to {EXTRA_BYTES} bytes")


def _check_arguments(spec: WorkerSpec) -> None:
    if not _is_mapping(spec.kwargs) or not all(isinstance(key, str) for key in spec.kwargs):
        raise InvalidSpec.of(spec.name, "kwargs", spec.kwargs, "must be a mapping of names")
    if not isinstance(spec.args, (tuple, list)):
        raise InvalidSpec.of(spec.name, "args", spec.args, "must be a tuple")
    for name in spec.latches if _is_mapping(spec.latches) else ():
        check_name(spec.name, "latches", name)
    if not _are_latches(spec.latches):
        raise InvalidSpec.of(
            spec.name, "latches", spec.latches, f"must be up to {LATCHES} latches by name"
        )


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return type(value) is dict or isinstance(value, Mapping)  # the second is slow to ask


def _are_latches(latches: object) -> bool:
    return (
        _is_mapping(latches)
        and len(latches) <= LATCHES
        and all(isinstance(name, str) for name in latches)
        and all(callable(getattr(latch, "fileno", None)) for latch in latches.values())
    )


def _check_target(spec: WorkerSpec) -> None:
    if isinstance(spec.target, str):
        if not is_target_name(spec.target):
            raise InvalidSpec.of(
                spec.name, "target", spec.target, "must look like 'package.module:function'"
            )
    elif spec.target is not None:
        stored_by_name(spec)


def stored_by_name(spec: WorkerSpec) -> str:
    if isinstance(spec.target, str):
        return spec.target
    name = importable_name(spec.target)
    if name is None:
        raise InvalidSpec.of(spec.name, "target", spec.target, f"must be {IMPORTABLE}")
    return name


def _check_user(spec: WorkerSpec) -> None:
    if spec.user is None:
        return
    if not is_name(spec.user):  # the highest number is none: to the kernel it means "as it is"
        raise InvalidSpec.of(spec.name, "user", spec.user, "must be a user's name or number")
    if int(spec.flags) & SHMEM_ACCESS:
        # The board and the latches are shared among processes of one user only.
        raise InvalidSpec.of(spec.name, "user", spec.user, "must not be set with SHMEM_ACCESS")


def _check_crash_scope(spec: WorkerSpec) -> None:
    if spec.crash_scope is CrashScope.WORKER:
        return
    if not int(spec.flags) & SHMEM_ACCESS:
        allowed = "of a worker without SHMEM_ACCESS must be CrashScope.WORKER"
        raise InvalidSpec.of(spec.name, "crash_scope", spec.crash_scope, allowed)
    if spec.command is not None:
        # It says no farewell: each of its exits would count as a crash.
        allowed = "of a command must be CrashScope.WORKER"
        raise InvalidSpec.of(spec.name, "crash_scope", spec.crash_scope, allowed)


# PostgreSQL's order first (SanityCheckBackgroundWorker), then ours.
CHECKS: tuple[Callable[[WorkerSpec], None], ...] = (
    _check_flags,
    _check_times,
    _check_class,
    _check_names,
    _check_what_runs,
    _check_unknown_flags,
    _check_values,
    _check_extra,
    _check_arguments,
    _check_target,
    _check_user,
    _check_crash_scope,
    check_options,
)
