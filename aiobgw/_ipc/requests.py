"""The requests of clients, and what a supervisor answers: typed, versioned, limited.

A client is a process that attached through the control socket, or a worker with SHMEM_ACCESS,
on a channel of its own.  Both speak this, one message per datagram:

client -> supervisor    Hello first; then Register, Withdraw, Ask, Watch, Unwatch, Follow,
                        Unfollow
supervisor -> client    Welcome, with the board and a pidfd of the supervisor, or Refused;
                        Accepted or Refused for each Register, by its number;
                        Changed, for workers that the client watches; Happened, for events

Register watches the worker, too.  To watch always wakes once, so that a change just before is
not lost.  A worker's last status comes with its last Changed: its slot may have another tenant
when the client looks.

No message holds a pickle that the supervisor would load, a pid, or a path that it would open.
Decoding is strict: msgspec checks every type and number of fields; what the fields mean, the
supervisor checks again.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from .. import errors, status
from ..errors import AiobgwError, ProtocolMismatch
from .verbs import Rights, Verb

WIRE = 2
TEXT_BYTES = 5_000
NOTES = 3

REGISTER_FDS = 17
"""Arguments in a memfd, and 16 latches."""

_Word = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag_field="what"):
    """A message; its first element says which."""


class Hello(Message, tag="hello"):
    wire: int
    version: str


class Spec(Message, tag="spec"):
    """The fields of a WorkerSpec but arguments and latches, which travel beside it.

    ``options``: those that differ from their defaults, of those that most workers leave alone.
    """

    name: str
    target: str | None
    command: bool
    type: str
    extra: bytes
    flags: int
    start_when: int
    restart: str
    restart_delay: float
    stop_timeout: float
    unique: bool
    loop: str
    user: str | int | None
    main: str | None
    crash_scope: str
    options: dict[str, Any]


class Register(Message, tag="register"):
    """``payload`` None: it is in a memfd, the first descriptor; the latches' come after it."""

    number: _Number
    spec: Spec
    payload: bytes | None
    latches: tuple[str, ...]


class Withdraw(Message, tag="withdraw"):
    """End the worker of a Register before: whoever asked was cancelled, and waits no more."""

    number: _Number


class Ask(Message, tag="ask"):
    verb: Verb
    slot: _Number
    generation: _Word
    argument: Annotated[int, msgspec.Meta(ge=0, le=64)]


class Watch(Message, tag="watch"):
    slot: _Number
    generation: _Word


class Unwatch(Message, tag="unwatch"):
    slot: _Number
    generation: _Word


class Follow(Message, tag="follow"):
    """Send events from now on."""


class Unfollow(Message, tag="unfollow"):
    """Send no more events."""


class Welcome(Message, tag="welcome"):
    """With two descriptors: the board, and a pidfd of the supervisor."""

    wire: int
    version: str
    epoch: _Word
    rights: Rights
    max_payload: int


class Accepted(Message, tag="accepted"):
    number: _Number
    slot: _Number
    generation: _Word


class Refused(Message, tag="refused"):
    """Number 0: what could not be read, or the whole connection."""

    number: _Number
    kind: str
    args: tuple[str | int, ...]
    state: dict[str, Any]


class Changed(Message, tag="changed"):
    """Workers to look at again; with the body of the last record of those that are over."""

    workers: tuple[tuple[_Number, _Word, bytes | None], ...]


class Happened(Message, tag="happened"):
    kind: str
    fields: dict[str, Any]


ToSupervisor = Hello | Register | Withdraw | Ask | Watch | Unwatch | Follow | Unfollow
ToClient = Welcome | Accepted | Refused | Changed | Happened

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor)
_answers: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)


class BadMessage(Exception):
    """A peer sent something that is no message of this protocol."""


def pack(message: Message) -> bytes:
    return _encoder.encode(message)


def read_request(data: bytes) -> ToSupervisor:
    """Return a client's message; raise BadMessage."""
    try:
        return _requests.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(str(error)) from None


def read_answer(data: bytes) -> ToClient:
    """Return a supervisor's message; raise ProtocolMismatch."""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolMismatch(f"the supervisor's answer makes no sense: {error}") from None


def refused(number: int, error: AiobgwError) -> Refused:
    """Return an error as a message."""
    state = {key: _cut(value) for key, value in vars(error).items() if _is_plain(value)}
    args = tuple(_cut(arg) for arg in error.args if isinstance(arg, (str, int)))
    return Refused(number, type(error).__name__, args, state)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return value is None or isinstance(value, (str, int, float))


def _cut(value: Any) -> Any:
    """Return what can be sent: no half surrogate pairs, the end of long texts, few items.

    An event has four texts, an error fewer, so that each message fits.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace")[-TEXT_BYTES:].decode("utf-8", "ignore")
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item) for item in value[-NOTES:]]
    return value


def error_of(message: Refused) -> AiobgwError:
    """Return the error in a refusal: one of ours, of the same type."""
    kind = getattr(errors, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, AiobgwError)):
        kind = AiobgwError
    error = kind.__new__(kind)
    error.args = message.args
    vars(error).update(message.state)
    return error


def happened(event: status.Event) -> bytes:
    """Return an event as a message; of long texts it has the end."""
    return pack(Happened(type(event).__name__, _cut(msgspec.to_builtins(event))))


def event_of(message: Happened) -> status.Event | None:
    """Return the event in a message; None if this version knows none of that kind."""
    kind = getattr(status, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, status.Event)):
        return None
    try:
        return msgspec.convert(message.fields, kind)
    except msgspec.ValidationError as error:
        raise ProtocolMismatch(f"the supervisor's event makes no sense: {error}") from None
