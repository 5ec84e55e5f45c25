"""Guards cancel their block when what it relies on has failed, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aiobgw import SupervisorFailed
from aiobgw._client.changes import Changes
from aiobgw._client.guard import Guard

pytestmark = pytest.mark.anyio

ENOUGH = 10.0


class Subject:
    """Something that can fail, and tells when it did."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.failure: Exception | None = None

    def guard(self) -> Guard:
        return Guard(self.changes, lambda: self.failure)

    def fail(self) -> None:
        self.failure = SupervisorFailed("no zygote")
        self.changes.tell()

    def fail_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self.fail)


@pytest.fixture
def subject() -> Subject:
    return Subject()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def for_ever() -> None:
    await asyncio.wait_for(asyncio.get_running_loop().create_future(), ENOUGH)


async def still_works() -> bool:
    """Tell whether this task can wait: no cancellation is left over."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return cancelling() == 0


async def test_a_block_that_nothing_happens_to_just_runs(subject: Subject) -> None:
    async with subject.guard():
        subject.changes.tell()
        await asyncio.sleep(0)
    assert await still_works()


async def test_a_failure_cancels_the_block_and_is_raised_instead(subject: Subject) -> None:
    reached = False
    with pytest.raises(SupervisorFailed, match="no zygote") as raised:
        async with subject.guard():
            subject.fail_soon()
            await for_ever()
            reached = True
    assert not reached
    assert raised.value is subject.failure
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert await still_works()


async def test_the_block_may_clean_up_first(subject: Subject) -> None:
    cleaned = False
    with pytest.raises(SupervisorFailed):
        async with subject.guard():
            subject.fail_soon()
            try:
                await for_ever()
            finally:
                await asyncio.sleep(0)
                cleaned = True
    assert cleaned


async def test_a_failure_before_entering_raises_and_runs_nothing(subject: Subject) -> None:
    subject.fail()
    entered = False
    with pytest.raises(SupervisorFailed):
        async with subject.guard():
            entered = True
    assert not entered
    assert await still_works()


async def test_a_failure_after_the_block_is_nobodys_business(subject: Subject) -> None:
    async with subject.guard():
        pass
    subject.fail()
    assert await still_works()


async def test_a_change_that_is_no_failure_cancels_nothing(subject: Subject) -> None:
    async with subject.guard():
        asyncio.get_running_loop().call_soon(subject.changes.tell)
        assert await still_works()


async def test_many_changes_after_a_failure_cancel_once(subject: Subject) -> None:
    def fail_and_tell() -> None:
        subject.fail()
        subject.changes.tell()
        subject.changes.tell()

    with pytest.raises(SupervisorFailed):
        async with subject.guard():
            asyncio.get_running_loop().call_soon(fail_and_tell)
            await for_ever()
    assert await still_works()


async def test_a_block_that_swallows_the_cancellation_cannot_hide_the_failure(
    subject: Subject,
) -> None:
    with pytest.raises(SupervisorFailed):
        async with subject.guard():
            subject.fail_soon()
            try:
                await for_ever()
            except asyncio.CancelledError:
                pass
    assert await still_works()


async def test_an_exception_of_the_block_wins_over_the_failure(subject: Subject) -> None:
    with pytest.raises(ZeroDivisionError):
        async with subject.guard():
            subject.fail_soon()
            try:
                await for_ever()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None
    assert await still_works()


async def test_an_exception_without_a_failure_is_left_alone(subject: Subject) -> None:
    with pytest.raises(ZeroDivisionError):
        async with subject.guard():
            raise ZeroDivisionError
    subject.fail()
    assert await still_works()


# Other cancellations.


async def _outcome(body: Callable[[asyncio.Task[object]], None], subject: Subject) -> asyncio.Task:
    """Run a guarded block in a task, and let *body* interfere with it."""

    async def guarded() -> None:
        async with subject.guard():
            await for_ever()

    task: asyncio.Task[object] = asyncio.create_task(guarded())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    body(task)
    await asyncio.wait([task], timeout=ENOUGH)
    return task


async def test_a_cancellation_by_somebody_else_is_a_cancellation(subject: Subject) -> None:
    task = await _outcome(lambda task: task.cancel(), subject)
    assert task.cancelled()


async def test_a_cancellation_by_somebody_else_wins_over_a_failure_before_it(
    subject: Subject,
) -> None:
    def both(task: asyncio.Task[object]) -> None:
        subject.fail()
        task.cancel()

    assert (await _outcome(both, subject)).cancelled()


async def test_a_cancellation_by_somebody_else_wins_over_a_failure_after_it(
    subject: Subject,
) -> None:
    def both(task: asyncio.Task[object]) -> None:
        task.cancel()
        subject.fail()

    assert (await _outcome(both, subject)).cancelled()


async def test_a_failure_goes_through_a_timeout_around_it(subject: Subject) -> None:
    with pytest.raises(SupervisorFailed):
        async with asyncio.timeout(ENOUGH), subject.guard():
            subject.fail_soon()
            await for_ever()
    assert await still_works()


async def test_a_timeout_inside_stays_a_timeout(subject: Subject) -> None:
    async with subject.guard():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await for_ever()
    assert await still_works()


async def test_a_timeout_around_it_stays_a_timeout(subject: Subject) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), subject.guard():
            await for_ever()
    assert await still_works()


async def test_of_two_guards_the_one_that_failed_raises() -> None:
    outer, inner = Subject(), Subject()
    for failing in (outer, inner):
        outer.failure = inner.failure = None
        with pytest.raises(SupervisorFailed) as raised:
            async with outer.guard(), inner.guard():
                failing.fail_soon()
                await for_ever()
        assert raised.value is failing.failure
        assert await still_works()


async def test_a_guard_of_a_task_that_is_being_cancelled_already_counts_from_there(
    subject: Subject,
) -> None:
    """Cleanup code may use a guard, too (asyncio.timeout's rule)."""
    seen: list[str] = []

    async def work() -> None:
        try:
            await for_ever()
        finally:
            try:
                async with subject.guard():
                    subject.fail_soon()
                    await for_ever()
            except SupervisorFailed:
                seen.append("failed")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=ENOUGH)
    assert seen == ["failed"]
    assert task.cancelled()


async def test_a_guard_is_entered_once(subject: Subject) -> None:
    guard = subject.guard()
    async with guard:
        with pytest.raises(RuntimeError, match="entered once"):
            await guard.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await guard.__aenter__()


async def test_a_failure_told_by_the_block_itself_leaves_no_cancellation(subject: Subject) -> None:
    with pytest.raises(SupervisorFailed):
        async with subject.guard():
            subject.fail()
    assert await still_works()


async def test_an_observer_that_fails_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes, told = Changes(), []

    def fail() -> None:
        raise ValueError

    changes.call(fail)
    changes.call(lambda: told.append(1))
    changes.tell()
    assert told == [1]
    assert "an observer failed" in caplog.text
