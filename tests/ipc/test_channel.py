"""Channels: whole messages, descriptors that belong to somebody, and ends that can be told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aiobgw._ipc.channel import MESSAGE_BYTES, BrokenMessage, Channel

from .. import procs


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


Pair = tuple[Channel, Channel]


# Messages.


def test_messages_arrive_whole_and_in_order_both_ways(pair: Pair) -> None:
    one, other = pair
    messages = [b"a", b"bb" * 1_000, b"\0", b"x" * MESSAGE_BYTES]
    for message in messages:
        one.send(message)
        other.send(message)
        assert other.receive() == (message, [])
    assert [one.receive()[0] for _ in messages] == messages


def test_two_messages_are_not_joined(pair: Pair) -> None:
    one, other = pair
    one.send(b"a")
    one.send(b"b")
    assert (other.receive(), other.receive()) == ((b"a", []), (b"b", []))


def test_who_has_nothing_to_read_does_not_wait(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair[0].receive()


def test_who_sends_to_a_peer_that_does_not_keep_up_does_not_wait_and_loses_nothing(
    pair: Pair,
) -> None:
    one, other = pair
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            one.send(sent.to_bytes(4, "big") * 1_000)
            sent += 1
    assert sent > 1
    received = [int.from_bytes(other.receive()[0][:4], "big") for _ in range(sent)]
    assert received == list(range(sent))


def send_raw(channel: Channel, data: bytes, *fds: int) -> None:
    """Send what a Channel would not."""
    with socket.socket(fileno=os.dup(channel.fd)) as raw:
        socket.send_fds(raw, [data], fds)


def test_a_message_that_is_too_long_is_told_from_a_whole_one(pair: Pair) -> None:
    one, other = pair
    with pytest.raises(ValueError, match="32768 are possible"):
        one.send(b"x" * (MESSAGE_BYTES + 1))
    send_raw(one, b"x" * (MESSAGE_BYTES + 1))
    one.send(b"next")
    with pytest.raises(BrokenMessage):
        other.receive()
    assert other.receive() == (b"next", [])


# Ends.


def test_the_peers_end_is_an_empty_message_for_ever(pair: Pair) -> None:
    one, other = pair
    other.close()
    assert one.receive() == (b"", [])
    assert one.receive(2) == (b"", [])


def test_what_was_sent_before_the_end_is_still_read(pair: Pair) -> None:
    one, other = pair
    one.send(b"last words")
    one.close()
    assert other.receive() == (b"last words", [])
    assert other.receive() == (b"", [])


def test_a_peer_that_ended_with_our_message_unread_is_told_by_an_error(pair: Pair) -> None:
    one, other = pair
    one.send(b"an order")
    other.close()
    with pytest.raises(ConnectionResetError):
        one.receive()


def test_a_peer_that_ended_with_our_message_read_is_just_gone(pair: Pair) -> None:
    one, other = pair
    one.send(b"an order")
    other.receive()
    other.close()
    assert one.receive() == (b"", [])


def test_sending_to_who_is_gone_is_an_error_and_no_signal(pair: Pair) -> None:
    one, other = pair
    other.close()
    with pytest.raises(BrokenPipeError):
        one.send(b"x")


def test_a_channel_that_was_shut_down_ends_for_both_and_once_more_does_no_harm(pair: Pair) -> None:
    one, other = pair
    one.send(b"before")
    one.shut_down()
    assert other.receive() == (b"before", [])
    assert other.receive() == (b"", [])
    assert one.receive() == (b"", [])
    one.shut_down()
    other.close()
    one.shut_down()


def test_the_end_is_seen_when_the_other_process_ends() -> None:
    one, other = Channel.pair()
    source = (
        "import sys; from aiobgw._ipc.channel import Channel\n"
        "channel = Channel.adopt(int(sys.argv[1]))\n"
        "print(channel.receive(block=True)[0])\n"
        "channel.send(b'hello', block=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", source, str(other.fd)],
        pass_fds=[other.fd],
        stdout=subprocess.PIPE,
        cwd=procs.ROOT,
    )
    other.close()
    one.send(b"order")
    assert one.receive(block=True)[0] == b"hello"
    assert one.receive(block=True)[0] == b""
    assert child.communicate()[0] == b"b'order'\n"
    assert child.returncode == 0
    one.close()


# Descriptors.


def opened(path: str = os.devnull) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def new_since(before: dict[int, str]) -> dict[int, str]:
    return {fd: what for fd, what in procs.open_fds().items() if fd not in before}


def test_channels_are_closed_on_exec(pair: Pair) -> None:
    assert not os.get_inheritable(pair[0].fd)
    assert not os.get_inheritable(pair[1].fd)


def test_descriptors_arrive_in_their_order_are_copies_and_closed_on_exec(pair: Pair) -> None:
    one, other = pair
    sent = [opened(), opened("/dev/zero")]
    one.send(b"two", sent)
    data, received = other.receive(2)
    try:
        assert data == b"two"
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in received] == ["/dev/null", "/dev/zero"]
        assert not set(sent) & set(received)
        assert not any(os.get_inheritable(fd) for fd in received)
    finally:
        for fd in (*sent, *received):
            os.close(fd)


def test_fewer_descriptors_than_allowed_are_fine(pair: Pair) -> None:
    one, other = pair
    fd = opened()
    one.send(b"one", [fd])
    one.send(b"none")
    _, received = other.receive(8)
    assert len(received) == 1
    assert other.receive(8) == (b"none", [])
    os.close(fd)
    os.close(received[0])


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [1, 2, 10])
def test_unasked_descriptors_are_closed_and_break_the_message(
    pair: Pair, asked: int, more: int
) -> None:
    one, other = pair
    fd = opened()
    before = procs.open_fds()
    one.send(b"surprise", [fd] * (asked + more))
    one.send(b"next")

    with pytest.raises(BrokenMessage):
        other.receive(asked)
    assert not new_since(before)
    assert other.receive() == (b"next", [])
    os.close(fd)


def test_descriptors_of_a_message_that_is_too_long_are_closed(pair: Pair) -> None:
    one, other = pair
    fd = opened()
    before = procs.open_fds()
    send_raw(one, b"x" * (MESSAGE_BYTES + 1), fd)
    with pytest.raises(BrokenMessage):
        other.receive(1)
    assert not new_since(before)
    os.close(fd)


def test_a_channel_owns_its_descriptor_until_it_is_given_away() -> None:
    one, other = Channel.pair()
    fd = one.detach()
    one.close()
    again = Channel.adopt(fd)
    again.send(b"still open")
    assert other.receive() == (b"still open", [])

    again.close()
    other.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
