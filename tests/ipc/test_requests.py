"""Requests: whatever is sent comes back as it went; whatever is none is refused as one kind."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiobgw import (
    AiobgwError,
    ExitKind,
    ExitStatus,
    ShutdownMode,
    WorkerState,
    WorkerStatus,
    errors,
    status,
)
from aiobgw._ipc import launch, requests
from aiobgw._ipc.channel import MESSAGE_BYTES
from aiobgw._ipc.record import spec_fields
from aiobgw._ipc.verbs import Rights, Verb
from aiobgw.errors import ProtocolMismatch
from aiobgw.spec import Phase, WorkerSpec

from .. import targets


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBER = st.integers(0, 2**32 - 1)
WORD = st.integers(0, 2**63 - 1)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bytes": st.binary(max_size=40),
    "dict": st.dictionaries(TEXT, TEXT, max_size=3),
    "float": st.floats(allow_nan=False),
    "int": st.integers(-(2**63), 2**64 - 1),
    "str": TEXT,
}


def specs() -> st.SearchStrategy[requests.Spec]:
    """Return any spec at all: what its fields mean is not checked here."""
    kinds = {
        field.name: re.sub(r"\[.*\]", "", str(field.type))
        for field in msgspec.structs.fields(requests.Spec)
    }

    def strategy(kind: str) -> st.SearchStrategy[Any]:
        names = re.findall(r"\w+", kind.replace("<class", ""))
        parts = [st.none() if name in ("None", "NoneType") else FIELDS[name] for name in names]
        return st.one_of(parts)

    return st.builds(requests.Spec, **{name: strategy(kind) for name, kind in kinds.items()})


TO_SUPERVISOR: dict[type[requests.Message], st.SearchStrategy[Any]] = {
    requests.Hello: st.builds(requests.Hello, FIELDS["int"], TEXT),
    requests.Register: st.builds(
        requests.Register,
        NUMBER,
        specs(),
        st.none() | st.binary(max_size=200),
        st.lists(TEXT, max_size=20).map(tuple),
    ),
    requests.Withdraw: st.builds(requests.Withdraw, NUMBER),
    requests.Ask: st.builds(requests.Ask, st.sampled_from(Verb), NUMBER, WORD, st.integers(0, 64)),
    requests.Watch: st.builds(requests.Watch, NUMBER, WORD),
    requests.Unwatch: st.builds(requests.Unwatch, NUMBER, WORD),
    requests.Follow: st.builds(requests.Follow),
    requests.Unfollow: st.builds(requests.Unfollow),
}
TO_CLIENT: dict[type[requests.Message], st.SearchStrategy[Any]] = {
    requests.Welcome: st.builds(
        requests.Welcome, FIELDS["int"], TEXT, WORD, st.sampled_from(Rights), FIELDS["int"]
    ),
    requests.Accepted: st.builds(requests.Accepted, NUMBER, NUMBER, WORD),
    requests.Refused: st.builds(
        requests.Refused,
        NUMBER,
        TEXT,
        st.lists(TEXT | FIELDS["int"], max_size=4).map(tuple),
        st.dictionaries(TEXT, st.none() | TEXT | FIELDS["int"] | st.lists(TEXT), max_size=4),
    ),
    requests.Changed: st.builds(
        requests.Changed,
        st.lists(st.tuples(NUMBER, WORD, st.none() | st.binary(max_size=60)), max_size=12).map(
            tuple
        ),
    ),
    requests.Happened: st.builds(
        requests.Happened, TEXT, st.dictionaries(TEXT, TEXT | st.floats(0, 1e9), max_size=4)
    ),
}


def test_every_message_of_the_protocol_is_tried() -> None:
    assert set(TO_SUPERVISOR) == set(get_args(requests.ToSupervisor))
    assert set(TO_CLIENT) == set(get_args(requests.ToClient))


@given(st.one_of(TO_SUPERVISOR.values()))
def test_a_request_comes_back_as_it_went(message: requests.Message) -> None:
    assert requests.read_request(requests.pack(message)) == message


@given(st.one_of(TO_CLIENT.values()))
def test_an_answer_comes_back_as_it_went(message: requests.Message) -> None:
    assert requests.read_answer(requests.pack(message)) == message


@given(st.one_of(TO_CLIENT.values()))
def test_an_answer_is_no_request(message: requests.Message) -> None:
    with pytest.raises(requests.BadMessage):
        requests.read_request(requests.pack(message))


@given(st.one_of(TO_SUPERVISOR.values()))
def test_a_request_is_no_answer(message: requests.Message) -> None:
    with pytest.raises(ProtocolMismatch):
        requests.read_answer(requests.pack(message))


def test_the_spec_of_a_worker_fits_into_a_request() -> None:
    spec = WorkerSpec(name="w", target=targets.sleep, user=12)
    fields = requests.Spec(**spec_fields(spec, b""))
    message = requests.Register(1, fields, b"", ())
    assert requests.read_request(requests.pack(message)) == message


# What is none.


def read_either(data: bytes) -> None:
    """Read as both sides would; what escapes fails the test."""
    try:
        requests.read_request(data)
    except requests.BadMessage:
        pass
    try:
        requests.read_answer(data)
    except ProtocolMismatch:
        pass


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x93\xa5hello\x01\xa1\xff")  # text that is no UTF-8
@example(b"\x93\xa8happened\xa1X\x81\xa1a\xa1\xff")
@example(b"\x93\xa8happened\xa1X\x81\xa1a\x81\x80\x01")  # a map as the key of a map
@example(b"\x93\xa8happened\xa1X\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12)  # no moment
def test_random_bytes_are_no_message_and_raise_nothing_else(data: bytes) -> None:
    read_either(data)


@given(st.one_of(*TO_SUPERVISOR.values(), *TO_CLIENT.values()), st.data())
def test_a_damaged_message_is_another_one_or_none_and_raises_nothing_else(
    message: requests.Message, data: st.DataObject
) -> None:
    damaged = bytearray(requests.pack(message))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read_either(bytes(damaged))


@given(st.one_of(TO_SUPERVISOR.values()))
def test_a_request_that_was_cut_short_or_is_too_long_is_none(message: requests.Message) -> None:
    whole = requests.pack(message)
    for wrong in (*(whole[:size] for size in range(len(whole))), whole + b"\xc0"):
        with pytest.raises(requests.BadMessage):
            requests.read_request(wrong)


@pytest.mark.parametrize("deep", [b"\x91", b"\x81\x01", b"\x81\xa1a", b"\xdd\0\0\0\x01"])
@pytest.mark.parametrize("around", [b"", b"\x93\xa5hello\x01", b"\x93\xa8happened\xa1X\x81\xa1a"])
def test_deep_nesting_is_no_message_and_overflows_nothing(deep: bytes, around: bytes) -> None:
    data = around + deep * ((MESSAGE_BYTES - len(around)) // len(deep))
    with pytest.raises(requests.BadMessage):
        requests.read_request(data)
    with pytest.raises(ProtocolMismatch):
        requests.read_answer(data)


@pytest.mark.parametrize(
    "message",
    [
        ["ask", 6, 0, 1, 0],
        ["ask", 1, -1, 1, 0],
        ["ask", 1, 2**32, 1, 0],
        ["ask", 1, 0, 2**63, 0],
        ["ask", 1, 0, 1, 65],
        ["ask", 1, 0, 1, -1],
        ["ask", 1, 0, 1],
        ["ask", 1, 0, 1, 0, 0],
        ["ask", "kill", 0, 1, 0],
        ["ask", True, 0, 1, 0],
        ["ask", 1.5, 0, 1, 0],
        ["watch", 0, None],
        ["watch", [0], 1],
        ["follow", 1],
        ["shutdown"],
        [],
        {"what": "follow"},
        "follow",
        None,
    ],
)
def test_fields_out_of_range_or_of_another_type_are_refused(message: object) -> None:
    with pytest.raises(requests.BadMessage):
        requests.read_request(msgspec.msgpack.encode(message))


# Errors.

EXIT = ExitStatus(incarnation=1, kind=ExitKind.FAILED, code=1, error="E", name="w")
MADE: dict[type[AiobgwError], AiobgwError] = {
    errors.NoFreeSlot: errors.NoFreeSlot(7),
    errors.TooManyParallelWorkers: errors.TooManyParallelWorkers(3),
    errors.PayloadTooLarge: errors.PayloadTooLarge(9_000, 8_192),
    errors.NeverStarted: errors.NeverStarted("w", "why", error="E\n", next_start_at=1.5),
    errors.WorkerFailed: errors.WorkerFailed("w", EXIT),
    errors.WrongProcess: errors.WrongProcess("a handle"),
    errors.Interrupted: errors.Interrupted(),
    errors.InvalidSpec: errors.InvalidSpec.of("w", "type", "\0", "must not be so"),
}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AiobgwError)
]


def through(error: AiobgwError, number: int = 5) -> AiobgwError:
    """Send an error to the other side."""
    message = requests.read_answer(requests.pack(requests.refused(number, error)))
    assert isinstance(message, requests.Refused)
    assert message.number == number
    return requests.error_of(message)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_back_as_its_own_type_with_what_it_says(
    kind: type[AiobgwError],
) -> None:
    error = MADE.get(kind) or kind("so it is", hint="do this")
    again = through(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.args == error.args
    assert getattr(again, "__notes__", []) == getattr(error, "__notes__", [])
    plain = {key: value for key, value in vars(error).items() if value is not EXIT}
    assert vars(again) == plain


@pytest.mark.parametrize(
    "kind", ["", "Error", "Any", "annotations", "TYPE_CHECKING", "Terminated", "_rebuild", "x.y"]
)
def test_a_refusal_of_an_unknown_kind_is_an_error_of_aiobgw_and_nothing_else(kind: str) -> None:
    error = requests.error_of(requests.Refused(1, kind, ("why",), {}))
    assert type(error) is AiobgwError
    assert str(error) == "why"


@pytest.mark.parametrize("text", ["x" * 100_000, "\0" * 40_000, "日本" * 20_000])
def test_an_error_with_a_huge_text_fits_into_a_message(text: str) -> None:
    """What a stranger wrote is quoted to him: his name, or his message's."""
    for error in (
        errors.InvalidSpec.of(text, "name", text, "must be shorter"),
        errors.NeverStarted("w", text, error=text),
        AiobgwError("short", hint=text),
    ):
        data = requests.pack(requests.refused(1, error))
        assert len(data) <= MESSAGE_BYTES
        again = requests.read_answer(data)
        assert isinstance(again, requests.Refused)
        assert type(requests.error_of(again)) is type(error)


# Events.


def worker(**fields: Any) -> WorkerStatus:
    values: dict[str, Any] = {
        "name": "w",
        "type": "t",
        "state": WorkerState.BACKOFF,
        "slot": 3,
        "generation": 2**63 - 1,
        "incarnation": 2,
        "pid": 77,
        "started_at": 1.5,
        "exit": EXIT,
        "reason": "it waits",
    }
    return WorkerStatus(**(values | fields))


EVENTS = [
    kind
    for kind in vars(status).values()
    if isinstance(kind, type) and issubclass(kind, status.Event)
]
FIELDS_OF_EVENTS: dict[str, Any] = {
    "at": 12.25,
    "status": worker(),
    "phase": Phase.CONSISTENT_STATE,
    "pid": 8,
    "mode": ShutdownMode.FAST,
    "count": 9,
    "cycle": 2,
    "name": "w",
    "exit": EXIT,
}


def made(kind: type[status.Event], **fields: Any) -> status.Event:
    """Make an event of a kind, with a value for each of its fields."""
    names = [name for cls in reversed(kind.__mro__) for name in getattr(cls, "__slots__", ())]
    return kind(**{name: (FIELDS_OF_EVENTS | fields)[name] for name in names})


def arrived(data: bytes) -> status.Event | None:
    assert len(data) <= MESSAGE_BYTES
    message = requests.read_answer(data)
    assert isinstance(message, requests.Happened)
    return requests.event_of(message)


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_comes_back_as_it_went(kind: type[status.Event]) -> None:
    event = made(kind)
    again = arrived(requests.happened(event))
    assert again == event
    assert type(again) is kind


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("kind", ExitKind)
def test_every_state_and_kind_of_exit_comes_back(state: WorkerState, kind: ExitKind) -> None:
    exit = ExitStatus(incarnation=4, kind=kind, signal=9, name="w")
    event = status.Exited(1.0, worker(state=state, exit=exit))
    assert arrived(requests.happened(event)) == event


@pytest.mark.parametrize("size", [1_000, MESSAGE_BYTES, 10 * MESSAGE_BYTES])
def test_an_event_with_a_huge_error_fits_into_a_message(size: int) -> None:
    exit = ExitStatus(incarnation=1, kind=ExitKind.FAILED, code=1, error="e" * size, name="w")
    event = arrived(requests.happened(status.Exited(1.0, worker(exit=exit))))
    assert isinstance(event, status.Exited)
    assert event.status.exit is not None
    assert event.status.exit.code == 1
    assert event.status.exit.error
    assert (exit.error or "").endswith(event.status.exit.error)
    assert event.status.exit.error == exit.error or size >= MESSAGE_BYTES


def test_an_event_with_the_longest_text_of_a_worker_twice_fits_into_a_message() -> None:
    """A failed exec is both the reason and the error of an exit, and names the program."""
    text = launch.read_coded(launch.failed(2, "")[:5] + b"\xff" * 2 * launch.TEXT_BYTES)[1]
    assert len(text.encode()) > MESSAGE_BYTES / 2
    exit = ExitStatus(
        incarnation=1, kind=ExitKind.FAILED, code=1, reason=text, error=text, name="w"
    )
    event = arrived(requests.happened(status.Retired(1.0, worker(exit=exit))))
    assert isinstance(event, status.Retired)
    assert event.status.exit is not None
    assert event.status.exit.code == 1
    assert text.endswith(event.status.exit.reason)


@pytest.mark.parametrize("kind", ["", "Flying", "WorkerStatus", "enum", "Phase", "__name__"])
def test_an_event_of_an_unknown_kind_is_passed_over(kind: str) -> None:
    assert requests.event_of(requests.Happened(kind, {"at": 1.0})) is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"at": "now"}, {"at": 1.0}, {"at": 1.0, "status": None}, {"at": 1.0, "status": {}}],
)
def test_an_event_that_makes_no_sense_is_a_mismatch(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolMismatch):
        requests.event_of(requests.Happened("Started", fields))
