"""Entry: from a spec to a worker that holds a slot; refused with nothing used up, or registered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .._ipc.record import INLINE_BYTES, check_size, pack_arguments, payload_memfd, spec_fields
from .._names import is_of_main, main_module
from ..errors import InvalidSpec
from ..spec import Flags, WorkerSpec

if TYPE_CHECKING:
    from .core import Core
    from .registry import RegisteredWorker

DATABASE_CONNECTION = int(Flags.DATABASE_CONNECTION)


def admit(core: Core, spec: WorkerSpec) -> RegisteredWorker:
    """Give *spec* a slot; raises what refuses it, with nothing used up."""
    if not isinstance(spec, WorkerSpec):
        raise InvalidSpec(f"a WorkerSpec is wanted, not {spec!r}")
    _check(core, spec)
    payload = pack_arguments(spec, core.settings.max_payload)
    fds: tuple[int, ...] = ()
    if len(payload) > INLINE_BYTES:
        fds = (payload_memfd(payload),)
    try:
        fds += _duplicate([latch.fileno() for latch in spec.latches.values()])
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    inline = payload if len(payload) <= INLINE_BYTES else None
    return _enter(core, spec, spec_fields(spec, payload), inline, fds)


def admit_packed(
    core: Core, spec: WorkerSpec, payload: bytes | None, fds: tuple[int, ...]
) -> RegisteredWorker:
    """Give a client's spec a slot; owns *fds* (arguments in a memfd, latches) then."""
    _check(core, spec)
    check_size(spec)
    return _enter(core, spec, spec_fields(spec, b""), payload, fds)


def _check(core: Core, spec: WorkerSpec) -> None:
    if int(spec.flags) & DATABASE_CONNECTION and core.settings.connector is None:
        raise InvalidSpec(
            f"worker {spec.name!r}: flags: this supervisor has no connector",
            hint="Supervisor(connector='package.module:function')",
        )
    core.cgroups.check(spec)
    core.registry.check(spec)
    core.groups.check(spec)


def _enter(
    core: Core,
    spec: WorkerSpec,
    fields: dict[str, Any],
    payload: bytes | None,
    fds: tuple[int, ...],
) -> RegisteredWorker:
    connects = int(spec.flags) & DATABASE_CONNECTION
    if connects and fields["main"] is None and is_of_main(str(core.settings.connector)):
        fields["main"] = main_module(spec.name, "the connector")
    worker = core.registry.admit(spec, fields, payload, fds)
    core.groups.join(worker)
    core.outside.publish(worker)
    core.news.registered(worker)
    return worker


def _duplicate(fds: list[int]) -> tuple[int, ...]:
    """Copy descriptors of the registrant, which stay its own; all or none."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return tuple(copies)
