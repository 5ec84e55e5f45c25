"""Beats, from the worker's side: few, never waiting, and no obstacle for what else it says."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import aiobgw
from aiobgw._ipc import launch
from aiobgw._ipc.channel import Channel
from aiobgw._worker import beats as module
from aiobgw._worker.beats import AT_MOST, UNREAD, Beats

WATCHDOG = 10.0


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """The supervisor's end and the worker's."""
    pair = Channel.pair()
    yield pair
    for channel in pair:
        channel.close()


def frames(channel: Channel) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(channel.receive()[0])
        except BlockingIOError:
            return found


def test_a_beat_in_a_tight_loop_is_sent_ten_times_within_the_time_of_the_watchdog(
    clock: Clock, channels: tuple[Channel, Channel]
) -> None:
    here, there = channels
    beats = Beats(there, WATCHDOG)
    sent = 0
    for _ in range(10_000):
        beats.beat()
        sent += len(frames(here))
        clock.now += WATCHDOG / 10_000
    assert sent == round(1 / AT_MOST)


def test_a_supervisor_that_does_not_read_is_left_room_for_all_that_counts(
    clock: Clock, channels: tuple[Channel, Channel]
) -> None:
    here, there = channels
    beats = Beats(there, WATCHDOG)
    for _ in range(1_000):
        beats.beat()
        clock.now += WATCHDOG
    assert there.unread() < 2 * UNREAD
    there.send(launch.ready())  # would raise if it had to wait
    there.send(launch.farewell(0, "x" * launch.TEXT_BYTES))
    *unread, ready, farewell = frames(here)
    assert 1 < len(unread) < 50
    assert set(unread) == {launch.BEAT}
    assert (ready, farewell[:1]) == (launch.READY, launch.FAREWELL)

    assert there.unread() == 0
    beats.beat()  # it reads again
    assert frames(here) == [launch.BEAT]


def test_a_full_channel_or_none_at_all_is_not_a_beats_concern(
    clock: Clock, channels: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = channels
    monkeypatch.setattr(module, "UNREAD", 2**40)
    beats = Beats(there, WATCHDOG)
    for _ in range(10_000):
        beats.beat()
        clock.now += WATCHDOG
    with pytest.raises(BlockingIOError):
        there.send(launch.ready())
    here.close()
    beats.beat()


def test_a_fork_does_not_beat_for_its_parent(
    clock: Clock, channels: tuple[Channel, Channel]
) -> None:
    here, there = channels
    beats = Beats(there, WATCHDOG)
    child = os.fork()
    if child == 0:
        try:
            beats.beat()
        except aiobgw.WrongProcess:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert frames(here) == []
