"""Frames of the launch protocol: they come back as they went, and garbage is only BadFrame."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobgw import WorkerSpec
from aiobgw._ipc import launch
from aiobgw._ipc.channel import MESSAGE_BYTES
from aiobgw._ipc.record import spec_fields


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: frames hold none."""


CODES = st.integers(-(2**31), 2**31 - 1)
READERS: list[Callable[[bytes], object]] = [
    launch.read_hello,
    launch.read_started,
    launch.read_coded,
]


@given(st.integers(2, 2**31 - 1))
def test_a_hello_tells_the_pid(pid: int) -> None:
    assert launch.read_hello(launch.hello(pid)) == pid


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_a_hello_of_nobody_is_refused(pid: int) -> None:
    """0, 1 and -1 mean others to kill(2)."""
    with pytest.raises(launch.BadFrame):
        launch.read_hello(launch.hello(pid))


def test_a_hello_of_another_wire_version_is_refused_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "WIRE", 7)
    frame = launch.hello(4711)
    monkeypatch.undo()
    with pytest.raises(launch.BadFrame, match=f"wire version 7, this is {launch.WIRE}"):
        launch.read_hello(frame)


def test_a_frame_of_another_verb_is_no_hello() -> None:
    with pytest.raises(launch.BadFrame):
        launch.read_hello(b"R" + launch.hello(4711)[1:])


@pytest.mark.parametrize("is_async", [False, True])
def test_started_tells_whether_the_target_is_async(is_async: bool) -> None:
    assert launch.read_started(launch.started(is_async)) is is_async


@given(CODES, st.text(max_size=200))
def test_a_farewell_and_a_failure_tell_number_and_text(code: int, text: str) -> None:
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert launch.read_coded(launch.farewell(code, text)) == (code, shown)
    assert launch.read_coded(launch.failed(code, text)) == (code, shown)


@given(st.sampled_from(["x", "ä", "日", "🐘"]), st.integers(0, 10_000))
def test_a_long_text_loses_its_beginning_and_fits_a_message(letter: str, times: int) -> None:
    frame = launch.farewell(1, letter * times + "ValueError: here")
    assert len(frame) <= launch.TEXT_BYTES + 5 < MESSAGE_BYTES
    text = launch.read_coded(frame)[1]
    assert text.endswith("ValueError: here")
    assert set(text[: -len("ValueError: here")]) <= {letter, "\ufffd"}


def test_the_verbs_are_told_apart_by_their_first_byte() -> None:
    frames = {
        launch.HELLO: launch.hello(2),
        launch.FAILED: launch.failed(1, ""),
        launch.STARTED: launch.started(True),
        launch.READY: launch.ready(),
        launch.FAREWELL: launch.farewell(0, ""),
    }
    assert len(frames) == 5
    assert all(frame[:1] == verb for verb, frame in frames.items())


@pytest.mark.parametrize("read", READERS)
@given(garbage=st.binary(max_size=100))
def test_garbage_is_a_bad_frame_and_nothing_worse(
    read: Callable[[bytes], object], garbage: bytes
) -> None:
    try:
        read(garbage)
    except launch.BadFrame:
        pass


@pytest.mark.parametrize("read", READERS)
@given(data=st.data())
def test_a_frame_that_was_cut_or_changed_is_a_bad_frame_and_nothing_worse(
    read: Callable[[bytes], object], data: st.DataObject
) -> None:
    frames = [launch.hello(4711), launch.started(True), launch.farewell(3, "ä" * 50)]
    frame = bytearray(data.draw(st.sampled_from(frames)))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    except launch.BadFrame:
        pass


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("size", [0, 1])
def test_a_frame_without_its_fields_is_a_bad_frame(
    read: Callable[[bytes], object], size: int
) -> None:
    with pytest.raises(launch.BadFrame):
        read(b"H"[:size])


def test_a_text_of_any_bytes_is_shown_as_far_as_it_can_be() -> None:
    assert launch.read_coded(b"F\1\0\0\0\xff\xfeok")[1] == "\ufffd\ufffdok"


def test_an_endless_text_is_cut_by_its_reader_too() -> None:
    frame = launch.farewell(1, "")
    assert len(launch.read_coded(frame + b"x" * 50_000)[1]) == launch.TEXT_BYTES


def test_an_order_comes_back_as_it_went() -> None:
    spec = dict.fromkeys(launch.SPEC) | {"name": "ä", "restart_delay": 1.5}
    order = dict.fromkeys(launch.ORDER) | {"slot": 3, "payload": b"\0\xff", "spec": spec}
    assert launch.unpack_order(launch.pack_order(order)) == order
    assert launch.unpack_order(launch.pack_exit(7)) == {"exit": 7}


def test_an_order_has_every_field_of_a_spec() -> None:
    assert set(spec_fields(WorkerSpec(name="a", command=["true"]), b"")) == set(launch.SPEC)
