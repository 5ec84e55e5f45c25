"""Admission: from a client's message to a worker, checked as if nobody had checked it before."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from .._ipc import requests
from .._ipc.record import INLINE_BYTES
from .._spec_options import read_options
from ..errors import AccessDenied, InvalidSpec, PayloadTooLarge
from ..spec import CrashScope, Flags, Phase, Restart, WorkerSpec
from .entry import admit_packed

if TYPE_CHECKING:
    from .core import Core
    from .registry import RegisteredWorker

MAIN_BYTES = 4_096 + len("module:")
"""A path of the system's length."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _ReceivedLatch:
    """A latch that came with a message: only its descriptor matters here, and not for long."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


def admit(core: Core, message: requests.Register, fds: list[int], *, own: bool) -> RegisteredWorker:
    """Give a client's worker a slot; raises what refuses it, with nothing used up.

    Takes the descriptors that it keeps out of *fds*.
    """
    in_memfd = message.payload is None
    if len(fds) != in_memfd + len(message.latches):
        raise InvalidSpec(f"{len(fds)} descriptors for {len(message.latches)} latches")
    core.check_open()
    spec = _spec(message, fds[in_memfd:])
    if spec.latches and not own:
        raise AccessDenied("latches are shared among processes of one user only")
    _check_payload(message.payload, fds, core.settings.max_payload)
    worker = admit_packed(core, spec, message.payload, tuple(fds))
    fds.clear()
    return worker


def _spec(message: requests.Register, latches: list[int]) -> WorkerSpec:
    """Make the spec again, which checks every field of it."""
    given = message.spec
    for fd in latches:
        if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
            raise InvalidSpec(f"worker {given.name!r}: latches must be eventfds")
    if given.main is not None and not _is_main(given.main):
        raise InvalidSpec.of(given.name, "main", given.main, "must be a path or a module")
    if len(set(message.latches)) != len(message.latches):
        raise InvalidSpec.of(given.name, "latches", message.latches, "must have different names")
    try:
        return WorkerSpec(
            name=given.name,
            target=given.target,
            command=_words(message) if given.command else None,
            type=given.type,
            extra=given.extra,
            flags=Flags(given.flags),
            start_when=Phase(given.start_when),
            restart=Restart(given.restart),
            restart_delay=given.restart_delay,
            stop_timeout=given.stop_timeout,
            unique=given.unique,
            latches=dict(zip(message.latches, map(_ReceivedLatch, latches), strict=True)),  # type: ignore[arg-type]
            loop=given.loop,
            user=given.user,
            main=given.main,
            crash_scope=CrashScope(given.crash_scope),
            **read_options(given.options),
        )
    except InvalidSpec:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidSpec(f"worker {given.name!r}: {error}") from None


def _is_main(main: str) -> bool:
    """Tell whether it names a main script, and leaves room in an order for all the rest."""
    return main.startswith(("path:", "module:")) and len(main.encode()) <= MAIN_BYTES


def _words(message: requests.Register) -> list[str]:
    if message.payload is None:
        raise InvalidSpec(f"worker {message.spec.name!r}: command is too long")
    return os.fsdecode(message.payload).split("\0")


def _check_payload(payload: bytes | None, fds: list[int], limit: int) -> None:
    """Raise unless the arguments are inline and short, or in a memfd nobody can change."""
    if payload is not None:
        if len(payload) > min(INLINE_BYTES, limit):
            raise PayloadTooLarge(len(payload), min(INLINE_BYTES, limit))
        return
    try:
        seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise InvalidSpec("arguments must be in a sealed memfd")
    size = os.fstat(fds[0]).st_size
    if size > limit:
        raise PayloadTooLarge(size, limit)
