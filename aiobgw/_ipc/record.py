"""Records: a worker's spec on its way to the worker, its status on the board.

The spec's arguments are pickled by whoever registers, and unpickled in the worker only; in
between they are bytes.  A status is read back with every range checked: a reader trusts
the board's writer, but not that the bytes are whole.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import pickle
from struct import Struct
from typing import Any, NamedTuple

from .._names import main_module
from .._spec_options import plain_options, read_options
from ..errors import InvalidSpec, PayloadTooLarge
from ..spec import CrashScope, Flags, Phase, Restart, ShutdownMode, WorkerSpec
from ..status import ExitKind, ExitStatus, SupervisorStatus, WorkerState, WorkerStatus
from .board import BODY_BYTES
from .notify import SAYS_BYTES

INLINE_BYTES = 8_192
"""Larger arguments go to the worker in a sealed memfd of their own."""

OPTIONS_BYTES = 20_480
"""With inline arguments and all else they must fit into one message, the order of a launch."""

_STATES = tuple(WorkerState)
_KINDS = tuple(ExitKind)
_ABSENT = -(2**31)
_STATUS = Struct("=QQQQdd B?BBiii HHHHHH")
_HEAD = Struct("=QiiBBIIIIIBQ")
_CLOSED = 0x80
_REAPERS = ("auto", "kernel", "zygote")
_REASON_BYTES = 240
_ERROR_BYTES = BODY_BYTES - _STATUS.size - 2 * 95 - 2 * _REASON_BYTES - SAYS_BYTES


def pack_arguments(spec: WorkerSpec, limit: int) -> bytes:
    """Return args and kwargs pickled, in the registrant; or the words of a command.

    Raises PayloadTooLarge with both numbers, InvalidSpec if they cannot be pickled.
    """
    check_size(spec)
    if spec.command is not None:
        payload = os.fsencode("\0".join(spec.command))
    elif spec.args or spec.kwargs:
        payload = _pickled(spec)
    else:
        return b""
    if len(payload) > limit:
        raise PayloadTooLarge(len(payload), limit)
    return payload


def check_size(spec: WorkerSpec) -> None:
    """Raise InvalidSpec if its options are too many to travel together."""
    options = plain_options(spec)
    size = len(marshal.dumps(options)) if options else 0
    if size > OPTIONS_BYTES:
        largest = max(options, key=lambda name: len(marshal.dumps(options[name])))
        raise InvalidSpec(
            f"worker {spec.name!r}: {largest}: its options have {size} bytes together,"
            f" {OPTIONS_BYTES} are possible"
        )


def _pickled(spec: WorkerSpec) -> bytes:
    try:
        return pickle.dumps((spec.args, dict(spec.kwargs)), protocol=5)
    except Exception as error:
        raise InvalidSpec(f"worker {spec.name!r}: args cannot be pickled: {error}") from error


def spec_fields(spec: WorkerSpec, payload: bytes) -> dict[str, Any]:
    """Return what a worker needs of its spec, as values that marshal can write."""
    return {
        "name": spec.name,
        "target": spec.target,
        "command": spec.command is not None,
        "type": spec.type,
        "extra": spec.extra,
        "flags": int(spec.flags),
        "start_when": int(spec.start_when),
        "restart": spec.restart.value,
        "restart_delay": float(spec.restart_delay),
        "stop_timeout": float(spec.stop_timeout),
        "crash_scope": spec.crash_scope.value,
        "unique": bool(spec.unique),
        "loop": spec.loop,
        "user": spec.user,
        "main": spec.main or _main_of_arguments(spec, payload),
        "options": plain_options(spec),
    }


def _main_of_arguments(spec: WorkerSpec, payload: bytes) -> str | None:
    """Name the main script, if arguments may be of its classes: the worker must load it."""
    if spec.command is not None or b"__main__" not in payload:
        return None
    try:
        return main_module(spec.name)
    except InvalidSpec:
        return None  # perhaps it is only text; if not, the worker will say so


def spec_of_fields(fields: dict[str, Any]) -> WorkerSpec:
    """Return the spec of a worker, in that worker: its arguments are in the target's hands."""
    values = dict(fields, flags=Flags(fields["flags"]), restart=Restart(fields["restart"]))
    values["start_when"] = Phase(fields["start_when"])
    values["crash_scope"] = CrashScope(fields["crash_scope"])
    values["command"] = None
    options = read_options(values.pop("options"))
    return WorkerSpec(**values, **options)


def payload_memfd(payload: bytes) -> int:
    """Return a sealed memfd that holds *payload*; the caller owns it."""
    fd = os.memfd_create("aiobgw-args", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(payload)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def pack_status(status: WorkerStatus) -> bytes:
    """Return a status as the body of a board record; long texts lose their beginning."""
    exit = status.exit
    texts = (
        _cut(status.name, 95),
        _cut(status.type, 95),
        _cut(status.reason, _REASON_BYTES),
        _cut(exit.reason if exit else "", _REASON_BYTES),
        _cut((exit.error if exit else None) or "", _ERROR_BYTES),
        _cut(status.says, SAYS_BYTES),
    )
    fixed = _STATUS.pack(
        status.generation,
        status.incarnation,
        status.restarts,
        exit.incarnation if exit else 0,
        status.started_at or 0.0,
        status.next_start_at or 0.0,
        _STATES.index(status.state),
        status.ready,
        exit is not None,
        _KINDS.index(exit.kind) if exit else 0,
        status.pid or 0,
        _ABSENT if exit is None or exit.code is None else exit.code,
        _ABSENT if exit is None or exit.signal is None else exit.signal,
        *map(len, texts),
    )
    return b"".join((fixed, *texts))


def _cut(text: str, size: int) -> bytes:
    return text.encode("utf-8", "backslashreplace")[-size:]


def unpack_status(slot: int, body: bytes) -> WorkerStatus:
    """Return the status in a record; raise ValueError if it is none."""
    if len(body) < _STATUS.size:
        raise ValueError(f"{len(body)} bytes are no status")

    fields = _STATUS.unpack_from(body)
    generation, incarnation, restarts, exited, started_at, next_start_at = fields[:6]
    state, ready, has_exit, kind, pid, code, signal = fields[6:13]
    name, kind_name, reason, exit_reason, error, says = _texts(body, fields[13:])
    if state >= len(_STATES) or kind >= len(_KINDS):
        raise ValueError(f"state {state}, exit kind {kind}")

    exit = ExitStatus(
        incarnation=exited,
        kind=_KINDS[kind],
        code=None if code == _ABSENT else code,
        signal=None if signal == _ABSENT else signal,
        reason=exit_reason,
        error=error or None,
        name=name,
    )
    return WorkerStatus(
        name=name,
        type=kind_name,
        state=_STATES[state],
        slot=slot,
        generation=generation,
        incarnation=incarnation,
        restarts=restarts,
        pid=pid or None,
        ready=ready,
        started_at=started_at or None,
        next_start_at=next_start_at or None,
        exit=exit if has_exit else None,
        reason=reason,
        says=says,
    )


class Head(NamedTuple):
    """What the supervisor's own record says."""

    status: SupervisorStatus
    """Without the workers."""

    used: int
    """How many slots were ever used."""

    closed: bool
    """It has ended in order: whoever loses it now has not lost it to a death."""


def pack_head(status: SupervisorStatus, used: int, *, closed: bool = False) -> bytes:
    """Return the supervisor's own record."""
    fixed = _HEAD.pack(
        status.epoch,
        status.pid,
        status.zygote_pid or 0,
        int(status.phase),
        int(status.stopping or 0) | _CLOSED * closed,
        status.max_workers,
        status.parallel_workers,
        status.max_parallel_workers,
        status.spares,
        used,
        _REAPERS.index(status.reaper),
        status.cycle,
    )
    return fixed + _cut(status.name, 95)


def unpack_head(body: bytes) -> Head:
    """Return what a supervisor's own record says."""
    fields = _HEAD.unpack_from(body)
    epoch, pid, zygote_pid, phase, stopping, workers, parallel, most, spares, used = fields[:10]
    reaper, cycle = fields[10:]
    status = SupervisorStatus(
        name=body[_HEAD.size :].decode("utf-8", "replace"),
        pid=pid,
        epoch=epoch,
        phase=Phase(phase),
        stopping=ShutdownMode(mode) if (mode := stopping & ~_CLOSED) else None,
        max_workers=workers,
        parallel_workers=parallel,
        max_parallel_workers=most,
        spares=spares,
        zygote_pid=zygote_pid or None,
        reaper=_REAPERS[reaper],
        cycle=cycle,
        workers=(),
    )
    return Head(status, used, bool(stopping & _CLOSED))


def _texts(body: bytes, lengths: tuple[int, ...]) -> list[str]:
    at = _STATUS.size
    if at + sum(lengths) != len(body):
        raise ValueError(f"texts of {lengths} in {len(body)} bytes")

    texts = []
    for length in lengths:
        texts.append(body[at : at + length].decode("utf-8", "replace"))
        at += length
    return texts
