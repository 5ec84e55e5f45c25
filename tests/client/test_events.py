"""Streams of events: in order, bounded, honest about what they lost, and with an end."""

from __future__ import annotations

import asyncio
import time

import pytest

from aiobgw import Closed, Event, EventsLost, Phase, PhaseChanged
from aiobgw._client.events import LIMIT, EventStream

pytestmark = pytest.mark.anyio

ENOUGH = 10.0


def event(number: int) -> Event:
    return PhaseChanged(float(number), Phase.RUNNING)


async def take(stream: EventStream, count: int) -> list[Event]:
    async with asyncio.timeout(ENOUGH):
        return [await anext(stream) for _ in range(count)]


async def rest(stream: EventStream) -> list[Event]:
    async with asyncio.timeout(ENOUGH):
        return [event async for event in stream]


async def reach() -> None:
    """Let every other task run until it waits."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_events_come_in_their_order_and_end_after_closed() -> None:
    stream = EventStream()
    pushed = [event(1), event(2), Closed(3.0)]
    for each in pushed:
        stream.push(each)
    assert await rest(stream) == pushed
    assert await rest(stream) == []


async def test_who_waits_is_woken_by_an_event() -> None:
    stream = EventStream()
    waiter = asyncio.ensure_future(anext(stream))
    await reach()
    assert not waiter.done()
    stream.push(event(1))
    assert await asyncio.wait_for(waiter, ENOUGH) == event(1)


async def test_who_waits_is_woken_by_the_end() -> None:
    stream = EventStream()
    waiter = asyncio.create_task(rest(stream))
    await reach()
    stream.push(Closed(1.0))
    assert await asyncio.wait_for(waiter, ENOUGH) == [Closed(1.0)]


async def test_as_many_events_as_the_limit_are_kept() -> None:
    stream = EventStream()
    for number in range(LIMIT):
        stream.push(event(number))
    assert await take(stream, LIMIT) == [event(number) for number in range(LIMIT)]


async def test_what_does_not_fit_is_counted_and_told_before_the_next_event() -> None:
    stream = EventStream()
    for number in range(LIMIT + 7):
        stream.push(event(number))
    assert (await take(stream, LIMIT))[-1] == event(LIMIT - 1)

    before = time.time()
    stream.push(event(9_000))
    lost, following = await take(stream, 2)
    assert isinstance(lost, EventsLost)
    assert lost.count == 7
    assert before <= lost.at <= time.time()
    assert following == event(9_000)


async def test_losses_are_told_once() -> None:
    stream = EventStream()
    for number in range(LIMIT + 1):
        stream.push(event(number))
    await take(stream, LIMIT)
    stream.push(event(1))
    stream.push(event(2))
    stream.push(Closed(3.0))
    kinds = [type(each) for each in await rest(stream)]
    assert kinds == [EventsLost, PhaseChanged, PhaseChanged, Closed]


async def test_the_end_is_never_lost_and_what_was_lost_before_it_is_told() -> None:
    stream = EventStream()
    for number in range(LIMIT + 5):
        stream.push(event(number))
    stream.push(Closed(1.0))
    *kept, lost, closed = await rest(stream)
    assert len(kept) == LIMIT
    assert isinstance(lost, EventsLost) and lost.count == 5
    assert closed == Closed(1.0)


async def test_a_stream_that_nobody_reads_takes_no_more_memory_than_its_limit() -> None:
    stream = EventStream()
    for number in range(10 * LIMIT):
        stream.push(event(number))
    stream.push(Closed(1.0))
    assert len(await rest(stream)) == LIMIT + 2  # EventsLost and Closed


async def test_a_slow_reader_is_told_of_every_event_or_that_it_was_lost() -> None:
    stream, seen, lost = EventStream(), 0, 0
    for _ in range(20):
        for number in range(300):
            stream.push(event(number))
        for each in await take(stream, 100):
            if isinstance(each, EventsLost):
                lost += each.count
            else:
                seen += 1
    stream.push(Closed(1.0))
    for each in await rest(stream):
        if isinstance(each, EventsLost):
            lost += each.count
        else:
            seen += 1
    assert lost > 0
    assert seen + lost == 20 * 300 + 1


async def test_a_cancelled_wait_loses_no_event() -> None:
    stream = EventStream()
    waiter = asyncio.ensure_future(anext(stream))
    await reach()
    waiter.cancel()
    await reach()
    stream.push(event(1))
    assert await take(stream, 1) == [event(1)]


async def test_a_wait_that_is_cancelled_while_it_is_woken_loses_no_event() -> None:
    stream = EventStream()
    waiter = asyncio.ensure_future(anext(stream))
    await reach()
    stream.push(event(1))
    waiter.cancel()
    await asyncio.wait([waiter], timeout=ENOUGH)
    assert waiter.cancelled()
    assert await take(stream, 1) == [event(1)]


async def test_two_tasks_cannot_read_one_stream() -> None:
    stream = EventStream()
    waiter = asyncio.ensure_future(anext(stream))
    await reach()
    with pytest.raises(RuntimeError, match="one task at a time"):
        await anext(stream)
    stream.push(event(1))
    assert await asyncio.wait_for(waiter, ENOUGH) == event(1)
