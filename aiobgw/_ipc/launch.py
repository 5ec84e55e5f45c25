"""The launch protocol: what goes over the channel between the supervisor and a worker.

Before the fork     the supervisor puts the order, if there is one, into its own end
child -> supervisor HELLO (wire version, pid) with the child's own pidfd
supervisor -> child the order, to a spare, with its descriptors in the order's own order
child -> supervisor STARTED: the target is imported, its first line is next
child -> supervisor READY, if it says so
child -> supervisor BEAT, again and again, if its spec has a watchdog: it lives
child -> supervisor FAREWELL (exit code, error text), right before ``_exit``
zygote or child     FAILED (errno, text): the fork, or the exec of a command, failed

EOF before HELLO: this launch failed, whoever died.  EOF of a command's channel, without
FAILED: its exec succeeded (the channel is close-on-exec).  ECONNRESET: the child ended with
the order unread, so that it was no incarnation.  Otherwise EOF says nothing: a worker's
own child may hold the channel, a worker may close it.  Only its pidfd tells its exit.

What a child sends is never trusted: fixed structs, checked lengths, text that may be any
bytes.  The order travels from the supervisor to its own child, marshalled: values without
their keys, because each string that a fresh process reads is looked up in cold memory.
"""

from __future__ import annotations

import marshal
from _operator import itemgetter
from _signal import SIGRTMAX
from struct import Struct
from struct import error as StructError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WIRE = 5
TEXT_BYTES = 8_000

HELLO, FAILED, STARTED, READY, FAREWELL = b"H", b"X", b"S", b"R", b"F"
BEAT = b"B"

DUMP_SIGNALS = (SIGRTMAX - 6, SIGRTMAX - 5)
"""Have a Python target with a watchdog write its stacks: to its standard error, and to where the
supervisor reads them."""

ORDER = (
    "supervisor",
    "epoch",
    "slot",
    "generation",
    "incarnation",
    "payload",
    "client",
    "stacks",
    "latches",
    "connector",
    "cgroup",
    "environ",
    "spec",
)
SPEC = (
    "name",
    "target",
    "command",
    "type",
    "extra",
    "flags",
    "start_when",
    "restart",
    "restart_delay",
    "stop_timeout",
    "crash_scope",
    "unique",
    "loop",
    "user",
    "main",
    "options",
)
_of_order = itemgetter(*ORDER[:-1])
_of_spec = itemgetter(*SPEC)

_HELLO = Struct("=cHi")
_STARTED = Struct("=c?")
_CODED = Struct("=ci")


class BadFrame(Exception):
    """A worker sent something that is no frame of this protocol."""


def hello(pid: int) -> bytes:
    return _HELLO.pack(HELLO, WIRE, pid)


def started(is_async: bool) -> bytes:
    return _STARTED.pack(STARTED, is_async)


def ready() -> bytes:
    return READY


def beat() -> bytes:
    return BEAT


def farewell(code: int, text: str) -> bytes:
    return _CODED.pack(FAREWELL, code) + _tail(text)


def failed(number: int, text: str) -> bytes:
    return _CODED.pack(FAILED, number) + _tail(text)


def _tail(text: str) -> bytes:
    """Keep the end of a long text: the exception's own line comes last."""
    return text.encode("utf-8", "backslashreplace")[-TEXT_BYTES:]


def read_hello(frame: bytes) -> int:
    """Return the pid the child claims to have; raise BadFrame for another wire version."""
    try:
        verb, wire, pid = _HELLO.unpack(frame)
    except StructError as error:
        raise BadFrame(f"no hello: {error}") from None
    if verb != HELLO or wire != WIRE or pid <= 1:
        raise BadFrame(f"hello of wire version {wire}, this is {WIRE}")
    return int(pid)


def read_started(frame: bytes) -> bool:
    """Return whether the target is async."""
    try:
        return bool(_STARTED.unpack(frame)[1])
    except StructError as error:
        raise BadFrame(str(error)) from None


def read_coded(frame: bytes) -> tuple[int, str]:
    """Return number and text of a FAREWELL or FAILED."""
    try:
        code = _CODED.unpack_from(frame)[1]
    except StructError as error:
        raise BadFrame(str(error)) from None
    return code, frame[_CODED.size :][-TEXT_BYTES:].decode("utf-8", "replace")


def pack_order(order: dict[str, Any]) -> bytes:
    """Return an order: ORDER's fields, the last one SPEC's."""
    return marshal.dumps((*_of_order(order), _of_spec(order["spec"])))


def pack_exit(code: int) -> bytes:
    """Return an order to do nothing but exit."""
    return marshal.dumps((code,))


def unpack_order(data: bytes) -> dict[str, Any]:
    """Return the fields of an order, or ``exit``."""
    values: tuple[Any, ...] = marshal.loads(data)
    if len(values) == 1:
        return {"exit": values[0]}
    order = dict(zip(ORDER, values, strict=True))
    order["spec"] = dict(zip(SPEC, values[-1], strict=True))
    return order
