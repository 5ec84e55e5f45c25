"""A supervisor that several processes share: one of them owns it, whoever dies, and however."""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import Phase, WorkerSpec
from aiobgw.integrations import election
from aiobgw.integrations.election import Patience
from aiobgw.integrations.once import SharedSupervisor

from .. import procs, targets
from ..client_targets import close_script, first_step, in_a_fork, until
from ..conftest import NewLatch
from . import asgi_targets
from .ear import BOUND, Ear, listening
from .members import Members, shared

pytestmark = pytest.mark.anyio

SHORT, LONG = 3, 50


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process take over at once from an owner that leaves."""
    monkeypatch.setattr(election, "LEAVING_PAUSE", 0.0)


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with listening(tmp_path) as ear:
        yield ear


@pytest.fixture
def members(loop_of_the_host: None, tmp_path: Path, ear: Ear) -> Iterator[Members]:
    members = Members(tmp_path, ear)
    yield members
    members.close()


@asynccontextmanager
async def two(directory: Path, *specs: WorkerSpec) -> AsyncIterator[tuple[Any, Any]]:
    """Enter the owner, and one that is attached, in this very process."""
    async with shared(directory, *specs) as owner, shared(directory, *specs) as other:
        assert owner.is_owner and not other.is_owner
        yield owner, other


def nap(name: str = "nap", **options: Any) -> WorkerSpec:
    return WorkerSpec(name=name, target=targets.sleep, **options)


def first_step_of(function: Any) -> object:
    return first_step(function())


# What processes see that share one.


async def test_all_see_the_same_supervisor_and_any_of_them_registers(tmp_path: Path) -> None:
    async with two(tmp_path, nap("static")) as (owner, other):
        events = other.events()
        assert other.epoch == owner.epoch
        assert [handle.name for handle in other.handles()] == ["static"]
        handle = await other.register(nap())
        status = await handle.wait_for_startup()
        assert owner.get("nap") == handle == other.get(handle.token)
        assert status.pid in {one.pid for one in owner.status().workers}
        assert other.status().pid == os.getpid()
        assert (await other.wait_for_supervisor()).epoch == owner.epoch

        async with aiobgw.WorkerGroup(other, nap("member"), 2) as group:
            assert await group.ready() == 2
        handle.terminate()
        assert (await handle).kind is aiobgw.ExitKind.TERMINATED
        async for event in events:
            if isinstance(event, aiobgw.Retired) and event.status.name == "nap":
                break


async def test_elsewhere_and_before_and_after_it_cannot_be_used(tmp_path: Path) -> None:
    owner = shared(tmp_path)
    for ask in (owner.status, owner.handles, owner.events, lambda: owner.get("x")):
        with pytest.raises(aiobgw.NotAttached, match="has not been entered"):
            ask()
    async with owner, shared(tmp_path) as other:
        for one in (owner, other):
            leave = partial(one.__aexit__, None, None, None)
            calls = [
                one.status,
                partial(first_step_of, leave),
                partial(first_step_of, one.wait_for_supervisor),
            ]
            assert in_a_fork(*calls) == ["WrongProcess"] * 3
            with pytest.raises(RuntimeError, match="another thread"):
                await asyncio.get_running_loop().run_in_executor(None, one.status)
            with pytest.raises(RuntimeError, match="make a new one"):
                await one.__aenter__()
            assert repr(one).endswith("owner>" if one is owner else "attached>")
    for one in (owner, other):
        with pytest.raises(aiobgw.NotAttached, match="has been left"):
            await one.register(nap())
        with pytest.raises(aiobgw.NotAttached, match="has been left"):
            await one.wait_for_supervisor()
        await one.__aexit__(None, None, None)  # and again


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "needs a name"),
        ({"name": "x", "runtime_dir": None}, "needs a runtime_dir"),
        ({"name": "x", "runtime_dir": False}, "needs a runtime_dir"),
        ({"name": "x", "handle_signals": True}, "cannot handle signals"),
        ({"name": "x", "spares": -1}, "spares must be"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_birth(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match=complaint) as caught:
        SharedSupervisor(**options)
    assert "spares" in complaint or "hint" in caught.value.__notes__[0]
    with pytest.raises(aiobgw.InvalidSpec, match="a WorkerSpec is wanted"):
        SharedSupervisor("worker", name="x")  # type: ignore[arg-type]


# Who starts it, and who cannot.


async def test_a_start_that_fails_is_raised_in_every_process_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    async def enter() -> None:
        async with shared(tmp_path, nap(), preload=("no_such_module",)):
            raise AssertionError("it cannot start")

    for result in await asyncio.gather(enter(), enter(), return_exceptions=True):
        assert isinstance(result, aiobgw.SupervisorFailed | aiobgw.Unsupported)
        assert "no_such_module" in "".join([str(result), *result.__notes__])


async def test_specs_that_are_refused_leave_nothing_even_while_the_error_is_held(
    tmp_path: Path, new_latch: NewLatch
) -> None:
    specs = [nap(name, latches={"go": new_latch()}) for name in ("first", "one too many")]
    before = procs.open_fds()
    with pytest.raises(aiobgw.NoFreeSlot) as caught:
        await shared(tmp_path, *specs, max_workers=1).__aenter__()
    assert caught.value.__traceback__ is not None
    assert procs.open_fds() == before


async def test_entering_can_be_cancelled_and_leaves_nothing(tmp_path: Path) -> None:
    one = shared(tmp_path, nap())
    entering = asyncio.ensure_future(one.__aenter__())
    waiting = asyncio.ensure_future(until(procs.children))
    await waiting  # the zygote is there, and not ready
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(aiobgw.NotAttached, match="has been left"):
        await one.register(nap())
    async with shared(tmp_path) as another:
        assert another.is_owner


def test_a_place_that_cannot_be_had_is_refused_with_what_to_do() -> None:
    """As in a container, for a user without /run/user/UID."""
    source = """
import asyncio, os
from aiobgw.integrations.once import SharedSupervisor

async def main():
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
    try:
        await SharedSupervisor(name="shop", python="/bin/sh").__aenter__()
    except Exception as error:
        print(type(error).__name__, error, *error.__notes__)

asyncio.run(main())
"""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user that has no such directory")
    environment = {name: value for name, value in os.environ.items() if "XDG" not in name}
    process = procs.start_script(source, env=environment)
    out, _ = process.communicate(timeout=BOUND)
    assert out.startswith("AccessDenied the runtime directory /run/user/54321/aiobgw/shop cannot")
    assert "hint: pass runtime_dir=" in out and "XDG_RUNTIME_DIR" in out


# The owner goes.


@pytest.mark.parametrize(
    "kills", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_after_the_owners_kill_9_another_one_runs_all_workers_exactly_once(
    anyio_backend: Any, ear: Ear, members: Members, kills: int
) -> None:
    members.start(3)
    workers = ear.starts("a", "b")
    owner = members.owner()
    took = []
    for _ in range(kills):
        before, epoch = workers, members.epoch
        began = time.monotonic()
        members.kill(owner)
        workers = ear.starts("a", "b")  # fails if one of them meets its predecessor
        took.append(time.monotonic() - began)
        assert not any(map(procs.is_alive, before.values()))
        members.start()
        owner = members.owner(other_than=epoch)
    print(f"{kills} take-overs: median {statistics.median(took):.3f} s, worst {max(took):.3f} s")
    assert max(took) < 2
    assert len(ear.all("start")) == 2 * (kills + 1)


def test_a_killed_follower_matters_to_nobody_and_a_leaving_owner_hands_over(
    anyio_backend: Any, ear: Ear, members: Members
) -> None:
    members.start(3)
    workers = ear.starts("a", "b")
    owner = members.owner()
    epoch = members.epoch
    members.kill(next(pid for pid in members.living if pid != owner))
    members.start()
    assert members.owner() == owner and members.epoch == epoch

    members.leave(owner)
    assert not any(map(procs.is_alive, workers.values()))
    workers = ear.starts("a", "b")
    assert members.owner(other_than=epoch) != owner

    # All at once: some may take over on their way, and end that, too.
    members.leave(*members.living)
    assert not any(map(procs.is_alive, workers.values()))


async def test_what_is_registered_while_the_owner_leaves_goes_to_the_next_one(
    no_pause: None, tmp_path: Path, ear: Ear
) -> None:
    stubborn = WorkerSpec(
        name="stubborn",
        target=asgi_targets.alone_and_stubborn,
        args=(str(tmp_path),),
        stop_timeout=0.5,
    )
    owner, other = shared(tmp_path, stubborn), shared(tmp_path, stubborn)
    await owner.__aenter__()
    async with other:
        old = (await other.wait_for_supervisor()).epoch
        await asyncio.to_thread(ear.starts, "stubborn")
        leaving = asyncio.ensure_future(owner.__aexit__(None, None, None))
        await until(lambda: other.status().stopping)
        handle = await other.register(nap())  # refused by one, taken by the other
        assert other.is_owner and other.epoch == handle.epoch != old
        await handle.wait_for_startup()
        await asyncio.to_thread(ear.starts, "stubborn")
        await leaving


async def test_a_request_on_its_way_to_a_dying_owner_is_not_made_again(
    tmp_path: Path, ear: Ear, members: Members
) -> None:
    """A frozen owner stays the owner, and keeps requests waiting; then it is killed."""
    members.start()
    await asyncio.to_thread(ear.starts, "a", "b")
    async with shared(tmp_path, nap("c")) as other:
        owner = other.status().pid
        before = other.handles()
        procs.stop(owner)
        asking = asyncio.ensure_future(other.register(nap()))
        entering = asyncio.ensure_future(shared(tmp_path, nap("c")).__aenter__())
        await asyncio.sleep(0)
        assert not asking.done() and not entering.done()
        members.kill(owner)

        with pytest.raises(aiobgw.SupervisorDied) as caught:
            await asking
        assert any("register it again" in note for note in caught.value.__notes__)
        with pytest.raises(aiobgw.SupervisorDied):
            await before[0]
        with pytest.raises(aiobgw.SupervisorDied):
            other.status()
        status = await other.wait_for_supervisor()
        assert status.pid == os.getpid() and other.epoch == status.epoch != before[0].epoch
        assert [handle.name for handle in other.handles()] == ["c"]
        third = await entering
        assert third.epoch == status.epoch
        await third.__aexit__(None, None, None)


async def test_a_failed_supervisor_has_a_successor_after_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = nap("shared", flags=aiobgw.Flags.SHMEM_ACCESS, crash_scope=aiobgw.CrashScope.ALL)
    options = {"restart_after_crash": False}
    async with (
        shared(tmp_path, member, **options) as one,
        shared(tmp_path, member, **options) as another,
    ):
        epochs = {one.epoch}
        for _ in range(2):
            handle = (await another.wait_for_supervisor()) and another.get("shared")
            await handle.wait_for_startup()
            handle.kill()
            await until(lambda: _epoch(one) not in {None, *epochs})
            await until(lambda: _epoch(another) == _epoch(one))
            epochs.add(one.epoch)
        assert one.is_owner != another.is_owner
        assert (await one.register(nap())).epoch == one.epoch
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len([one for one in failures if "restart_after_crash" in one.getMessage()]) == 2


def _epoch(supervisor: SharedSupervisor) -> int | None:
    try:
        return supervisor.epoch
    except aiobgw.SupervisorDied:
        return None


async def test_a_successor_that_cannot_start_is_tried_again(
    no_pause: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the one process that is left, until what is missing is there."""
    owner = shared(tmp_path)
    await owner.__aenter__()
    module = tmp_path / "comes_later.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        async with shared(tmp_path, preload=("comes_later",)) as other:
            await owner.__aexit__(None, None, None)
            await until(lambda: "no successor yet" in caplog.text)
            assert repr(other).endswith("without supervisor>")
            asking = asyncio.ensure_future(other.register(nap()))
            module.write_text("")
            await (await asking).wait_for_startup()
            assert other.is_owner


def test_pauses_grow_with_failures_and_not_with_deaths() -> None:
    patience = Patience()
    assert patience.after_death(1.0) == 0
    pauses = [patience.after_failure(1.0), *(patience.after_failure() for _ in range(7))]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert patience.after_leaving(1.0) == 5.0, "whoever left had a reason, perhaps a failure"
    assert patience.after_death(1.0) == 0
    assert patience.after_death(0.01) == 5.0, "who dies at once has failed"
    assert patience.after_failure(60.0) == 0.1, "and who lived for long has not"
    assert patience.after_leaving(60.0) == 1.0, "the others may be about to leave, too"
    assert {patience.after_failure() for _ in range(2000)} <= {0.2, 0.4, 0.8, 1.6, 3.2, 5.0}


# How far a process is.


async def test_only_the_owners_phase_counts_and_a_later_owner_brings_its_own(
    no_pause: None,
    tmp_path: Path,
) -> None:
    gated = nap("gated")
    options = {"start_phase": Phase.SUPERVISOR_START}
    owner, other = shared(tmp_path, gated, **options), shared(tmp_path, gated, **options)
    await owner.__aenter__()
    async with other:
        await other.advance(Phase.RUNNING)
        assert other.status().phase is Phase.SUPERVISOR_START
        await owner.advance(Phase.CONSISTENT_STATE)
        assert owner.status().phase is Phase.CONSISTENT_STATE
        assert owner.get("gated").status().pid is None

        await owner.__aexit__(None, None, None)
        await until(lambda: other.is_owner)
        assert other.status().phase is Phase.RUNNING
        await other.get("gated").wait_for_startup()


async def test_a_phase_reached_during_a_take_over_is_not_forgotten(
    no_pause: None, tmp_path: Path
) -> None:
    options = {"start_phase": Phase.SUPERVISOR_START}
    owner = shared(tmp_path, **options)
    await owner.__aenter__()
    async with shared(tmp_path, nap("gated"), **options) as other:
        before = procs.children()
        await owner.__aexit__(None, None, None)
        await until(lambda: procs.children() - before)  # its zygote
        assert not other.is_owner
        await other.advance(Phase.RUNNING)
        await (await other.wait_for_supervisor() and other.get("gated")).wait_for_startup()


# Where it comes from.


def test_one_that_was_made_before_a_fork_is_entered_in_every_child(
    anyio_backend: Any, loop_of_the_host: None, tmp_path: Path, ear: Ear
) -> None:
    source = """
import asyncio, os, sys
from tests.integrations import members

supervisor = members.shared(sys.argv[1], *members.specs(sys.argv[1]))

async def main():
    async with supervisor:
        members.say(sys.argv[1], "entered", mine=supervisor.is_owner)
        await asyncio.get_running_loop().run_in_executor(None, os.read, 0, 1)

children = []
for _ in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        asyncio.run(main())
        os._exit(0)
for child in children:
    os.waitpid(child, 0)
"""
    process = procs.start_script(source, str(tmp_path))
    try:
        ear.starts("a", "b")
        while len([line for line in ear.heard if line["what"] == "entered"]) < 2:
            ear.next()
        process.communicate(timeout=BOUND)
    finally:
        close_script(process)
    assert sorted(line["mine"] for line in ear.all("entered")) == [False, True]
    assert len(ear.all("start")) == 2
