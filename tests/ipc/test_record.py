"""Records: a status comes back as it went, or not at all; arguments have a limit."""

from __future__ import annotations

import fcntl
import os
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobgw import (
    CrashScope,
    ExitKind,
    ExitStatus,
    Flags,
    InvalidSpec,
    PayloadTooLarge,
    Phase,
    Readiness,
    Restart,
    ShutdownMode,
    SupervisorStatus,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from aiobgw._ipc.board import BODY_BYTES
from aiobgw._ipc.record import (
    OPTIONS_BYTES,
    Head,
    pack_arguments,
    pack_head,
    pack_status,
    payload_memfd,
    spec_fields,
    spec_of_fields,
    unpack_head,
    unpack_status,
)

from .. import targets

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**64 - 1)
NUMBER = st.none() | st.integers(-(2**31) + 1, 2**31 - 1)
MOMENT = st.none() | st.floats(1e-9, 1e12)


SIZE = st.integers(0, 2**32 - 1)
PID = st.integers(1, 2**31 - 1)

HEADS = st.builds(
    Head,
    st.builds(
        SupervisorStatus,
        name=TEXT,
        pid=PID,
        epoch=COUNT,
        phase=st.sampled_from(Phase),
        stopping=st.none() | st.sampled_from(ShutdownMode),
        max_workers=SIZE,
        parallel_workers=SIZE,
        max_parallel_workers=SIZE,
        spares=SIZE,
        zygote_pid=st.none() | PID,
        reaper=st.sampled_from(["auto", "kernel", "zygote"]),
        cycle=COUNT,
        workers=st.just(()),
    ),
    used=SIZE,
    closed=st.booleans(),
)


@given(HEADS)
def test_a_supervisors_status_comes_back_as_it_went(head: Head) -> None:
    assert unpack_head(pack_head(head.status, head.used, closed=head.closed)) == head


@st.composite
def statuses(draw: st.DrawFn) -> WorkerStatus:
    name = draw(TEXT)
    exits = st.builds(
        ExitStatus,
        incarnation=COUNT,
        kind=st.sampled_from(ExitKind),
        code=NUMBER,
        signal=NUMBER,
        reason=TEXT,
        error=st.none()
        | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90),
        name=st.just(name),
    )
    return draw(
        st.builds(
            WorkerStatus,
            name=st.just(name),
            type=TEXT,
            state=st.sampled_from(WorkerState),
            slot=st.integers(0, 262_142),
            generation=COUNT,
            incarnation=COUNT,
            restarts=COUNT,
            pid=st.none() | st.integers(2, 2**22),
            ready=st.booleans(),
            started_at=MOMENT,
            next_start_at=MOMENT,
            exit=st.none() | exits,
            reason=TEXT,
            says=TEXT,
        )
    )


@given(statuses())
def test_a_status_comes_back_as_it_went(status: WorkerStatus) -> None:
    body = pack_status(status)
    assert len(body) <= BODY_BYTES
    assert unpack_status(status.slot, body) == status


EXIT = ExitStatus(incarnation=1, kind=ExitKind.FAILED, code=1, error="E", name="w")
STATUS = WorkerStatus(
    name="w", type="t", state=WorkerState.STOPPED, slot=3, generation=7, exit=EXIT, reason="r"
)


def test_long_texts_lose_their_beginning_and_always_fit() -> None:
    """The end of a traceback is what matters."""
    long = "".join(f"line {number}\n" for number in range(10_000)) + "ValueError: here"
    exit = replace(EXIT, error=long, reason=long)
    body = pack_status(replace(STATUS, name="n" * 95, type="t" * 95, exit=exit, reason=long))
    assert len(body) <= BODY_BYTES

    again = unpack_status(3, body)
    assert (again.name, again.type) == ("n" * 95, "t" * 95)
    assert again.exit is not None and again.exit.error is not None
    for text in (again.exit.error, again.exit.reason, again.reason):
        assert long.endswith(text)
        assert text.endswith("ValueError: here")
    assert len(again.exit.error) > 1_000
    assert len(again.reason) == 240


@given(st.text(max_size=3_000))
def test_any_text_at_all_can_be_packed_and_is_cut_between_bytes_without_harm(text: str) -> None:
    long = text + "日本" * 700
    status = replace(STATUS, exit=replace(EXIT, error=long, reason=long), reason=text)
    body = pack_status(status)
    assert len(body) <= BODY_BYTES
    again = unpack_status(3, body)
    assert again.exit is not None and again.exit.error is not None
    assert again.exit.error.endswith("日本" * 100)


@given(st.binary(max_size=BODY_BYTES))
def test_garbage_is_no_status_and_raises_nothing_else(garbage: bytes) -> None:
    try:
        unpack_status(0, garbage)
    except ValueError:
        pass


def test_a_status_with_any_one_byte_changed_is_another_one_or_none() -> None:
    body = pack_status(STATUS)
    outcomes = set()
    for at in range(len(body)):
        for value in range(256):
            try:
                unpack_status(0, body[:at] + bytes([value]) + body[at + 1 :])
                outcomes.add("another one")
            except ValueError as error:
                outcomes.add(str(error).split()[0])
    assert outcomes == {"another one", "state", "texts"}


@given(st.data())
def test_a_damaged_status_is_another_one_or_none_and_raises_nothing_else(
    data: st.DataObject,
) -> None:
    body = bytearray(pack_status(STATUS))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    try:
        assert isinstance(unpack_status(0, bytes(body[:cut])), WorkerStatus)
    except ValueError:
        pass


def test_a_status_that_was_cut_short_or_is_too_long_is_none() -> None:
    body = pack_status(STATUS)
    for wrong in (*(body[:size] for size in range(len(body))), body + b"x"):
        with pytest.raises(ValueError, match="bytes"):
            unpack_status(3, wrong)


# Arguments.


def spec(**fields: Any) -> WorkerSpec:
    if "command" not in fields:
        fields.setdefault("target", "shop:resize")
    return WorkerSpec(name="w", **fields)


def test_no_arguments_are_no_bytes() -> None:
    assert pack_arguments(spec(), 0) == b""


def test_arguments_are_pickled_by_whoever_registers() -> None:
    payload = pack_arguments(spec(args=(1, "a"), kwargs={"b": [2]}), 1_000)
    assert pickle.loads(payload) == ((1, "a"), {"b": [2]})


def test_the_words_of_a_command_are_separated_by_zeros() -> None:
    payload = pack_arguments(spec(command=["printf", "", "ä\udcff"]), 1_000)
    assert payload.split(b"\0") == [b"printf", b"", b"\xc3\xa4\xff"]


@pytest.mark.parametrize("fields", [{"args": ("x" * 500,)}, {"command": ["echo", "x" * 500]}])
def test_arguments_may_be_as_large_as_the_limit_and_not_larger(fields: dict[str, Any]) -> None:
    size = len(pack_arguments(spec(**fields), 1_000))
    assert len(pack_arguments(spec(**fields), size)) == size
    with pytest.raises(PayloadTooLarge) as raised:
        pack_arguments(spec(**fields), size - 1)
    assert (raised.value.size, raised.value.limit) == (size, size - 1)


class _Unfriendly:
    def __reduce__(self) -> Any:
        raise OverflowError("not me")


@pytest.mark.parametrize("value", [lambda: None, open, _Unfriendly(), (n for n in ())])
def test_arguments_that_cannot_be_pickled_are_refused_with_the_reason(value: object) -> None:
    if value is open:
        value = memoryview(b"x")
    with pytest.raises(InvalidSpec, match="worker 'w': args cannot be pickled: ") as raised:
        pack_arguments(spec(args=(value,)), 1_000)
    assert raised.value.__cause__ is not None


def test_what_a_worker_knows_of_its_spec_survives_the_way() -> None:
    given_spec = spec(
        target=targets.sleep,
        type="t",
        extra=b"\0x",
        flags=Flags.SHMEM_ACCESS | Flags.CLASS_PARALLEL,
        start_when=Phase.CONSISTENT_STATE,
        restart=Restart.NEVER,
        restart_delay=2,
        stop_timeout=3,
        crash_scope=CrashScope.ALL,
        unique=True,
        loop="uvloop",
    )
    assert spec_of_fields(spec_fields(given_spec, b"")) == given_spec


def test_large_arguments_go_into_memory_that_nobody_can_change() -> None:
    fd = payload_memfd(b"x" * 100_000)
    try:
        assert os.pread(fd, 200_000, 0) == b"x" * 100_000
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"y", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(fd)


def test_options_that_would_not_fit_into_an_order_are_refused_with_their_size() -> None:
    """Whatever they are: texts have more bytes than characters, numbers more than digits."""
    full = [
        {"env": {"A": "x" * 16_000}, "cpus": range(1_500)},
        {"env": {"A": "ä" * 6_000, "B": "ä" * 6_000}},
        {"cpus": range(4_096), "probe": ["y" * 1_000] * 4, "ready": Readiness.PROBE},
    ]
    for options in full:
        spec = WorkerSpec(name="w", command=["true"], **options)
        with pytest.raises(InvalidSpec, match=f"{OPTIONS_BYTES} are possible"):
            pack_arguments(spec, 10**6)
    pack_arguments(WorkerSpec(name="w", command=["true"], env={"A": "x" * 16_000}), 10**6)
