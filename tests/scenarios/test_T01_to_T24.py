"""PostgreSQL's worker_spi, its database workers and its registrants, T01 to T24.

The numbers are those of section 4 of the reference; scenarios.py says where the others are.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Latch, NeverStarted, Phase, Restart, WorkerSpec, WorkerState

from .. import procs, scenario_targets, targets
from ..client_targets import close_script, in_a_thread
from ..conftest import MakeSupervisor, NewLatch
from ..scenario_targets import up

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loop_of_the_host")]


async def test_T01_a_client_gets_the_pid_at_once_and_the_worker_initialises_itself_after(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    out, go, ready = tmp_path / "out", new_latch(), new_latch()
    async with aiobgw.attach(place) as client:
        handle = await client.register(
            WorkerSpec(
                name="worker_spi",
                target=scenario_targets.initialise,
                args=(str(out),),
                latches={"go": go, "up": ready},
            )
        )
        status = await handle.wait_for_startup()
        assert status.pid is not None
        assert procs.is_alive(status.pid)
        assert supervisor.type_by_pid(status.pid) == "worker_spi"
        assert not out.exists(), "its own initialisation is not what is waited for"
        go.set()
        await ready.wait()
        assert out.read_text() == "initialised\n"
        assert handle.status().pid == status.pid


@pytest.mark.parametrize("how", ["wake", "SIGHUP"])
async def test_T02_a_reload_wakes_workers_that_idle_and_they_go_back_to_idle(
    make_supervisor: MakeSupervisor, tmp_path: Path, new_latch: NewLatch, how: str
) -> None:
    """Nothing is broadcast by itself: whoever reloads goes through the handles."""
    supervisor = await make_supervisor()
    inbox, outbox, done = tmp_path / "in", tmp_path / "out", [new_latch(), new_latch()]
    handles = [
        await up(
            supervisor,
            new_latch(),
            name=f"w{number}",
            target=scenario_targets.work_when_woken,
            args=(str(inbox), str(outbox)),
            latches={"done": done[number]},
        )
        for number in range(2)
    ]
    pids = [handle.status().pid for handle in handles]
    for round_ in ("first", "second"):
        inbox.write_text(round_)
        for handle in supervisor.handles():
            if how == "wake":
                handle.wake()
            else:
                handle.signal(1)
        for latch in done:
            await latch.wait()
            latch.reset()
    lines = outbox.read_text().split("\n")
    assert sorted(filter(None, lines)) == ["w0 first", "w0 second", "w1 first", "w1 second"]
    assert [handle.status().pid for handle in handles] == pids, "nobody was started again"


async def test_T03_the_kind_of_an_idle_worker_and_its_state_are_seen_by_everybody(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    ours = await up(supervisor, new_latch(), name="worker_spi 1", type="worker_spi")
    async with aiobgw.attach(place) as client:
        (seen,) = client.status().workers
        assert seen == ours.status()
        assert (seen.name, seen.type, seen.reason) == ("worker_spi 1", "worker_spi", "")
        assert seen.state is WorkerState.RUNNING
        assert seen.pid is not None
        assert procs.title(seen.pid) == "aiobgw: test worker worker_spi 1"


def static(out: Path, latches: list[Latch]) -> list[WorkerSpec]:
    return [
        WorkerSpec(
            name=f"static {number}",
            type="static",
            target=scenario_targets.note,
            args=(str(out), number),
            latches={"up": latch},
        )
        for number, latch in enumerate(latches)
    ]


async def test_T04_static_workers_all_run_again_after_a_restart_each_with_its_own_index(
    make_supervisor: MakeSupervisor, tmp_path: Path, new_latch: NewLatch
) -> None:
    out, latches = tmp_path / "out", [new_latch() for _ in range(3)]
    pids: list[int | None] = []
    for _ in range(2):
        supervisor = await make_supervisor(*static(out, latches))
        for latch in latches:
            await latch.wait()
            latch.reset()
        workers = supervisor.status().workers
        assert {worker.type for worker in workers} == {"static"}
        pids += [worker.pid for worker in workers]
        lines = sorted(out.read_text().splitlines())
        assert lines == [f"static {number} static ({number},) " for number in range(3)]
        await supervisor.shutdown()
        out.unlink()
    assert len(set(pids)) == 6


async def test_T05_dynamic_workers_see_exactly_their_extra_and_leave_static_ones_alone(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, new_latch: NewLatch
) -> None:
    out, latches = tmp_path / "out", [new_latch() for _ in range(3)]
    supervisor = await make_supervisor(*static(tmp_path / "statics", latches), runtime_dir=place)
    for latch in latches:
        await latch.wait()
    before = supervisor.status().workers
    async with aiobgw.attach(place) as client:
        for number in (1, 2):
            await up(
                client,
                new_latch(),
                name=f"dynamic {number}",
                type="dynamic",
                target=scenario_targets.note,
                args=(str(out),),
                extra=f"database {number}".encode(),
            )
    assert out.read_text().splitlines() == [
        "dynamic 1 dynamic () database 1",
        "dynamic 2 dynamic () database 2",
    ]
    after = supervisor.status().workers
    assert after[:3] == before
    assert [worker.type for worker in after] == ["static"] * 3 + ["dynamic"] * 2


async def test_T06_T07_a_database_that_refuses_fails_the_launch_unless_it_is_bypassed(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    await make_supervisor(connector=scenario_targets.refusing, max_workers=1, runtime_dir=place)

    def spec(extra: bytes) -> WorkerSpec:
        return WorkerSpec(
            name="worker_spi",
            target=scenario_targets.show_connection,
            args=(str(out),),
            extra=extra,
            flags=Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION,
            restart=Restart.NEVER,
        )

    async with aiobgw.attach(place) as client:
        refused = await client.register(spec(b""))
        with pytest.raises(NeverStarted) as caught:
            await refused.wait_for_startup()
        assert "this database takes no connections" in (caught.value.error or "")
        assert any("worker_spi" in record.getMessage() for record in caplog.records)
        assert not out.exists()

        passed = await client.register(spec(b"bypass"))  # the one slot is free
        exit = await passed
        assert exit is not None
        exit.check()
        assert out.read_text() == "connected\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [({"colour": "red"}, TypeError), ({"flags": 0x40}, aiobgw.InvalidSpec)],
)
async def test_T08_an_option_that_does_not_exist_is_an_error_before_any_slot_is_used(
    make_supervisor: MakeSupervisor, place: str, options: dict[str, Any], error: type[Exception]
) -> None:
    supervisor = await make_supervisor(max_workers=1, runtime_dir=place)
    events = supervisor.events()
    async with aiobgw.attach(place) as client:
        with pytest.raises(error):
            await client.register(WorkerSpec(name="w", target=targets.sleep, **options))
        handle = await client.register(WorkerSpec(name="w", target=targets.nothing))
        assert handle.generation == 1
    first = await anext(events)
    assert isinstance(first, aiobgw.Registered)
    assert first.status.generation == 1


async def test_T10_a_client_that_waits_for_a_start_hears_of_the_supervisors_death(
    place: str, tmp_path: Path
) -> None:
    """The worker is a process already, and its start is held up."""
    gate, token = tmp_path / "gate", tmp_path / "token"
    os.mkfifo(gate)
    host = procs.start_script(scenario_targets.HALTED_HOST, place, str(gate), str(token))
    assert host.stdout is not None
    try:
        zygote = int(await in_a_thread(host.stdout.readline))
        async with aiobgw.attach(place) as client:
            handle = await client.register(WorkerSpec(name="w", target=targets.sleep))
            waiting = asyncio.ensure_future(handle.wait_for_startup())
            while token.exists():  # noqa: ASYNC110 - whoever waits at the gate has taken it
                await asyncio.sleep(0.005)
            (worker,) = procs.children(zygote)
            assert not waiting.done()
            host.kill()
            async with asyncio.timeout(1):
                with pytest.raises(aiobgw.SupervisorDied):
                    await waiting
            assert not procs.wait_dead({worker, zygote}, 1.0)
    finally:
        close_script(host)


async def test_T12_an_administrator_ends_a_worker_by_its_pid(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch
) -> None:
    one = await up(supervisor, new_latch(), name="twin", restart_delay=0)
    other = await up(supervisor, new_latch(), name="twin", restart_delay=0)
    pid = one.status().pid
    assert supervisor.terminate_where(lambda worker: worker.pid == pid) == [one]
    exit = await one
    assert exit is not None
    assert exit.kind is ExitKind.TERMINATED
    assert supervisor.handles() == [other]
    assert other.status().state is WorkerState.RUNNING


async def test_T11_T13_T15_who_is_bound_to_a_resource_makes_way_and_nobody_else(
    supervisor: aiobgw.Supervisor,
    caplog: pytest.LogCaptureFixture,
    new_latch: NewLatch,
) -> None:
    """The binding is the type: what a worker may be ended for is the application's to say."""
    handles = {
        name: await up(
            supervisor,
            new_latch(),
            name=name,
            type=kind,
            restart=Restart.ALWAYS,
            restart_delay=0,
        )
        for name, kind in (
            ("first of X", "interruptible:X"),
            ("second of X", "interruptible:X"),
            ("held by X", "X"),
            ("of Y", "interruptible:Y"),
        )
    }
    caplog.set_level("DEBUG", "aiobgw")
    gone = supervisor.terminate_where(lambda worker: worker.type == "interruptible:X")
    assert gone == [handles["first of X"], handles["second of X"]]
    for handle in gone:
        exit = await handle
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED
        assert handle.status().incarnation == 1
        told = [line for line in caplog.messages if handle.name in line and "terminated" in line]
        assert told, "its exit is in the log"

    assert [worker.name for worker in supervisor.status().workers] == ["held by X", "of Y"]
    for name in ("held by X", "of Y"):
        status = handles[name].status()
        assert (status.state, status.incarnation) == (WorkerState.RUNNING, 1)


@pytest.mark.parametrize("when", ["before it starts", "while it works"])
async def test_T24_a_worker_that_follows_its_registrant_ends_after_its_violent_death(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, when: str
) -> None:
    """No worker is owned by who registered it; one that wants to be watches a pidfd."""
    phase = Phase.CONSISTENT_STATE if when == "before it starts" else Phase.RUNNING
    supervisor = await make_supervisor(runtime_dir=place, start_phase=phase, max_workers=1)
    out = tmp_path / "out"
    registrant = procs.start_script(
        scenario_targets.REGISTRANT,
        place,
        "tests.scenario_targets:follow_the_registrant",
        str(out),
        "waits",
    )
    assert registrant.stdout is not None
    try:
        assert await in_a_thread(registrant.stdout.readline) == "registered\n"
        (handle,) = supervisor.handles()
        if when == "while it works":
            while not out.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        registrant.kill()
        registrant.wait()
        await supervisor.advance(Phase.RUNNING)
        exit = await handle
        assert exit is not None
        exit.check()
    finally:
        close_script(registrant)
    expected = "was gone\n" if when == "before it starts" else "follows\nwent\n"
    assert out.read_text() == expected
    await supervisor.register(WorkerSpec(name="next", target=targets.nothing))  # the slot is free
