"""Stops, and races on slots, clocks, pids and deaths, T60 to T86.

The numbers are those of section 4 of the reference; scenarios.py says where the others are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import (
    ExitKind,
    Flags,
    Phase,
    Restart,
    ShutdownMode,
    WorkerSpec,
    WorkerState,
)
from aiobgw._ipc.record import pack_status

from .. import procs, scenario_targets, targets
from ..client_targets import close_script, in_a_thread
from ..conftest import MakeSupervisor, NewLatch
from ..scenario_targets import up

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loop_of_the_host")]

# Stopping.


@pytest.mark.parametrize("busy", [True, False])
async def test_T60_a_request_that_was_sent_and_not_yet_read_when_a_stop_begins_is_answered(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch, busy: bool
) -> None:
    """Busy: a worker holds up the end of the stop; else it may end before the request is read."""
    supervisor = await make_supervisor(runtime_dir=place)
    go = new_latch()
    if busy:
        await up(
            supervisor,
            new_latch(),
            target=scenario_targets.end_when_told,
            latches={"go": go},
            stop_timeout=60,
        )
    async with aiobgw.attach(place) as client:
        # Both run in one turn of the loop, so that nobody reads the request before the stop.
        request = client.register(WorkerSpec(name="late", target=targets.sleep))
        asking = asyncio.ensure_future(request)
        stopping = asyncio.ensure_future(supervisor.shutdown(ShutdownMode.FAST))
        expected = aiobgw.ShuttingDown if busy else (aiobgw.ShuttingDown, aiobgw.SupervisorDied)
        async with asyncio.timeout(20):
            with pytest.raises(expected):
                await asking
            go.set()
            await stopping


async def test_T60_who_waits_for_a_start_that_a_stop_prevents_is_told(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, start_phase=Phase.CONSISTENT_STATE)
    async with aiobgw.attach(place) as client:
        handle = await client.register(WorkerSpec(name="gated", target=targets.sleep))
        waiting = asyncio.ensure_future(handle.wait_for_startup())
        await asyncio.sleep(0)
        await supervisor.shutdown(ShutdownMode.FAST)
        with pytest.raises(aiobgw.NeverStarted, match="the supervisor is stopping"):
            await waiting


async def test_T63_a_fast_stop_in_the_first_phase_asks_a_worker_that_runs_already(
    make_supervisor: MakeSupervisor, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(start_phase=Phase.SUPERVISOR_START)
    early = await up(supervisor, new_latch(), start_when=Phase.SUPERVISOR_START)
    gated = await supervisor.register(WorkerSpec(name="gated", target=targets.sleep))
    await supervisor.shutdown(ShutdownMode.FAST)
    exit = await early
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 1)
    assert await gated is None


async def test_T64_a_stop_gets_stricter_and_never_weaker_and_of_many_the_strictest_holds(
    make_supervisor: MakeSupervisor, new_latch: NewLatch
) -> None:
    orders = [
        [ShutdownMode.SMART, ShutdownMode.FAST, ShutdownMode.IMMEDIATE],
        [ShutdownMode.FAST, ShutdownMode.IMMEDIATE, ShutdownMode.SMART],
        [ShutdownMode.IMMEDIATE, ShutdownMode.SMART, ShutdownMode.FAST],
    ]
    for order in orders:
        supervisor = await make_supervisor()
        handle = await up(supervisor, new_latch(), target=targets.ignore_term, stop_timeout=60)
        events = supervisor.events()
        async with asyncio.timeout(20):
            await asyncio.gather(*(supervisor.shutdown(mode) for mode in order))
        exit = handle.status().exit
        assert exit is not None
        assert exit.signal == signal.SIGQUIT
        modes = [event.mode async for event in events if isinstance(event, aiobgw.Stopping)]
        assert modes == sorted(set(modes)), "each one stricter than the one before"
        assert modes[0] is order[0]
        assert modes[-1] is ShutdownMode.IMMEDIATE


async def test_T64_a_weaker_request_changes_nothing_of_a_stop(
    make_supervisor: MakeSupervisor, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor()
    go = new_latch()
    handle = await up(
        supervisor,
        new_latch(),
        target=scenario_targets.end_when_told,
        latches={"go": go},
        stop_timeout=60,
    )
    stops = [asyncio.ensure_future(supervisor.shutdown(ShutdownMode.FAST))]
    await asyncio.sleep(0)
    stops.append(asyncio.ensure_future(supervisor.shutdown(ShutdownMode.SMART)))
    await asyncio.sleep(0)
    assert supervisor.status().stopping is ShutdownMode.FAST
    assert handle.status().state is WorkerState.STOPPING
    go.set()
    await asyncio.gather(*stops)


@pytest.mark.parametrize("mode", [ShutdownMode.FAST, ShutdownMode.IMMEDIATE])
async def test_T66_the_helpers_of_a_worker_end_with_it_in_a_stop(
    make_supervisor: MakeSupervisor,
    new_latch: NewLatch,
    tmp_path: Path,
    mode: ShutdownMode,
    reaper: str,
) -> None:
    supervisor = await make_supervisor(reaper=reaper)
    out = tmp_path / "pids"
    await up(supervisor, new_latch(), target=scenario_targets.with_helper, args=(str(out),))
    helpers = set(map(int, out.read_text().split()))
    assert len(helpers) == 2
    assert all(map(procs.is_alive, helpers))
    await supervisor.shutdown(mode)
    assert not procs.wait_dead(helpers, 1.0)


# Races on the slots.


@pytest.mark.parametrize(
    ("flags", "restart"),
    [(Flags.NONE, Restart.ALWAYS), (Flags.CLASS_PARALLEL, Restart.NEVER)],
)
async def test_T67_terminate_and_exit_before_either_is_looked_at_free_the_slot_once(
    make_supervisor: MakeSupervisor,
    new_latch: NewLatch,
    reaper: str,
    flags: Flags,
    restart: Restart,
) -> None:
    supervisor = await make_supervisor(max_workers=1, max_parallel_workers=1, reaper=reaper)
    for terminate_first in (True, False):
        go, events = new_latch(), supervisor.events()
        handle = await up(
            supervisor,
            new_latch(),
            target=scenario_targets.stay_until_told,
            latches={"go": go},
            flags=flags,
            restart=restart,
            restart_delay=0,
        )
        pid = handle.status().pid
        assert pid is not None
        if terminate_first:
            procs.stop(pid)
            go.set()
            handle.terminate()  # which lets it go on
        else:
            go.set()
        assert not procs.wait_dead({pid})  # and the supervisor has had no turn
        if not terminate_first:
            assert handle.status().state is WorkerState.RUNNING
            handle.terminate()
        exit = await handle
        assert exit is not None
        assert (exit.code, handle.status().incarnation) == (1, 1)
        assert supervisor.status().parallel_workers == 0
        assert supervisor.handles() == []

        spec = WorkerSpec(name="next", target=targets.sleep, flags=Flags.CLASS_PARALLEL)
        following = await supervisor.register(spec)
        with pytest.raises(aiobgw.TooManyParallelWorkers):
            await supervisor.register(spec)
        following.kill()
        await following
        retired = Counter()
        while not retired["next"]:
            event = await anext(events)
            if isinstance(event, aiobgw.Retired):
                retired[event.status.name] += 1
        assert retired == {"w": 1, "next": 1}


async def test_T69_of_two_clients_that_race_for_the_last_slot_exactly_one_wins(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=2)
    await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    async with aiobgw.attach(place) as one, aiobgw.attach(place) as other:
        for number in range(20):
            racers = (one, other) if number % 2 else (other, one)
            spec = WorkerSpec(name=f"w{number}", target=targets.nothing)
            results = await asyncio.gather(
                *(client.register(spec) for client in racers), return_exceptions=True
            )
            won = [result for result in results if isinstance(result, aiobgw.WorkerHandle)]
            lost = [result for result in results if isinstance(result, aiobgw.NoFreeSlot)]
            assert (len(won), len(lost)) == (1, 1), results
            await won[0]


async def test_T71_what_a_client_asked_for_before_its_violent_death_is_done(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path
) -> None:
    """To send is to commit and to wake in one: the supervisor has no turn before the death."""
    supervisor = await make_supervisor(runtime_dir=place)
    out = tmp_path / "out"
    events = supervisor.events()
    client = procs.start_script(scenario_targets.IN_A_HURRY, place, str(out))
    assert client.stdout is not None
    assert client.stdin is not None
    try:
        assert await in_a_thread(client.stdout.readline) == "attached\n"
        client.stdin.write("go\n")
        client.stdin.flush()
        assert client.wait(20) == -signal.SIGKILL  # no turn in between
    finally:
        close_script(client)
    assert supervisor.handles() == []
    async with asyncio.timeout(20):
        async for event in events:
            if isinstance(event, aiobgw.Retired):
                break
    assert out.read_text() == "ran\n"


async def test_T72_stale_handles_never_see_the_next_tenants_of_their_slot(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    """Thousands of tenancies of one slot; every hundredth is a process."""
    supervisor = await make_supervisor(
        runtime_dir=place, max_workers=1, start_phase=Phase.CONSISTENT_STATE
    )
    clients = [aiobgw.attach(place) for _ in range(3)]
    attached = [await client.__aenter__() for client in clients]
    generation, stale = 0, []
    try:
        for number in range(3000):
            real = number % 100 == 0
            registrar = attached[number // 100 % 3] if real else supervisor
            handle = await registrar.register(
                WorkerSpec(
                    name=f"w{number}",
                    target=targets.sleep,
                    start_when=Phase.SUPERVISOR_START if real else Phase.RUNNING,
                )
            )
            assert handle.slot == 0
            assert handle.generation > generation
            generation = handle.generation
            if real:
                await handle.wait_for_startup()
                stale += [client.get(handle.token) for client in attached]
                assert stale[-1] == handle
                for old in stale[:-3]:
                    assert old.status().state is WorkerState.STOPPED
                    assert old.status().pid is None
                    old.kill()
                assert handle.status().state is WorkerState.RUNNING
            handle.terminate()
            await handle
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)
    assert generation == 3000


async def test_T73_fifty_requests_that_wait_when_the_supervisor_wakes_are_all_accepted(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(
        runtime_dir=place, max_workers=50, start_phase=Phase.CONSISTENT_STATE
    )
    async with aiobgw.attach(place) as client:
        asking = [
            asyncio.ensure_future(
                client.register(WorkerSpec(name=f"w{number}", target=targets.sleep))
            )
            for number in range(50)
        ]
        await asyncio.sleep(0)  # all of them are sent by now
        assert supervisor.handles() == []
        handles = await asyncio.gather(*asking)
        assert [handle.slot for handle in handles] == list(range(50))
        assert supervisor.handles() == handles


@pytest.mark.parametrize("at", [2**32, 2**31])
async def test_T74_nothing_happens_where_a_counter_of_postgres_wraps(
    make_supervisor: MakeSupervisor, place: str, at: int
) -> None:
    supervisor = await make_supervisor(runtime_dir=place, max_workers=2, max_parallel_workers=1)
    supervisor._core.registry._registered = at - 3
    async with aiobgw.attach(place) as client:
        for number in range(-2, 4):
            handle = await client.register(
                WorkerSpec(name="w", target=targets.nothing, flags=Flags.CLASS_PARALLEL)
            )
            assert handle.generation == at + number
            assert client.status().parallel_workers == 1
            exit = await handle
            assert exit is not None
            exit.check()
            assert supervisor.status().parallel_workers == 0


async def test_T78_a_name_of_any_script_is_the_same_for_the_worker_its_title_and_its_clients(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path, new_latch: NewLatch
) -> None:
    name = "größe 日本 " + "ж" * 40
    assert len(name.encode()) == 95, "as long as may be"
    supervisor = await make_supervisor(runtime_dir=place)
    out = tmp_path / "out"
    async with aiobgw.attach(place) as client:
        handle = await up(
            client, new_latch(), name=name, target=scenario_targets.note, args=(str(out),)
        )
        assert client.get(name) == handle
        status = handle.status()
        assert (status.name, status.type) == (name, name)
        assert status.pid is not None
        assert procs.title(status.pid) == f"aiobgw: test worker {name}"
    assert supervisor.status().workers[0].name == name
    assert out.read_text() == f"{name} {name} () \n"


# Clocks, pids and deaths.


@pytest.mark.parametrize("leap", [3600.0, -3600.0])
async def test_T79_a_clock_that_is_set_changes_no_restart_delay(
    supervisor: aiobgw.Supervisor, monkeypatch: pytest.MonkeyPatch, new_latch: NewLatch, leap: float
) -> None:
    again = new_latch()
    handle = await supervisor.register(
        WorkerSpec(
            name="w",
            target=scenario_targets.fail_first,
            latches={"up": again},
            restart_delay=0.4,
        )
    )
    await handle.wait_for_exit()
    ended, wall = time.monotonic(), time.time
    monkeypatch.setattr(time, "time", lambda: wall() + leap)
    async with asyncio.timeout(20):
        await again.wait()
    assert 0.35 <= time.monotonic() - ended < 5
    status = await handle.wait_for_ready()
    assert status.started_at is not None
    assert abs(status.started_at - wall() - leap) < 60, "people are told what their clock says"


@pytest.mark.parametrize("first", ["exits", "requests"])
async def test_T80_a_supervisor_that_stood_still_catches_up_and_does_everything_once(
    place: str, first: str, reaper: str
) -> None:
    options = {"max_workers": 2 * CROWD, "reaper": reaper}
    async with stopped_host(place, options) as (host, client, old, events):
        told: Counter[tuple[str, str]] = Counter()
        asking = await _happen_meanwhile(client, old, first)
        old[0].terminate()
        old[0].kill()
        host.send_signal(signal.SIGCONT)

        new = await asyncio.gather(*asking)
        for handle in new:
            assert (await handle.wait_for_startup()).state is WorkerState.RUNNING
        for handle in old:
            exit = await handle
            assert exit is not None
            assert exit.signal == signal.SIGKILL
        await client.register(WorkerSpec(name="last", target=targets.nothing))
        async with asyncio.timeout(20):
            while not told["Retired", "last"]:
                event = await anext(events)
                assert not isinstance(event, aiobgw.EventsLost)
                if isinstance(event, aiobgw.Exited | aiobgw.Retired | aiobgw.Started):
                    told[type(event).__name__, event.status.name] += 1
        expected = {(what, "last"): 1 for what in ("Started", "Exited", "Retired")}
        for number in range(CROWD):
            for what in ("Started", "Exited", "Retired"):
                expected[what, f"old {number}"] = 1
            expected["Started", f"new {number}"] = 1
        assert told == expected


@pytest.mark.parametrize("first", ["exits", "requests"])
async def test_T80_exits_come_before_requests_whichever_happened_first(
    place: str, first: str
) -> None:
    """All slots are in use: who asks finds room only if the exits are looked at before."""
    options = {"max_workers": CROWD, "reaper": "kernel"}
    async with stopped_host(place, options) as (host, client, old, _):
        asking = await _happen_meanwhile(client, old, first)
        host.send_signal(signal.SIGCONT)
        results = await asyncio.gather(*asking, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exception)]
        assert not refused, f"{len(refused)} of {len(results)} were refused"


CROWD = 10


@contextlib.asynccontextmanager
async def stopped_host(
    place: str, options: dict[str, Any]
) -> AsyncIterator[tuple[Any, aiobgw.Client, list[aiobgw.WorkerHandle], Any]]:
    """Have a host with a crowd of workers stand still."""
    host = procs.start_script(scenario_targets.HOST, place, json.dumps(options))
    assert host.stdout is not None
    try:
        await in_a_thread(host.stdout.readline)
        async with aiobgw.attach(place) as client:
            events = client.events()
            specs = [
                WorkerSpec(name=f"old {number}", target=targets.sleep, restart=Restart.NEVER)
                for number in range(CROWD)
            ]
            old = [await client.register(spec) for spec in specs]
            for handle in old:
                await handle.wait_for_startup()
            procs.stop(host.pid)
            yield host, client, old, events
    finally:
        close_script(host)


async def _happen_meanwhile(
    client: aiobgw.Client, old: list[aiobgw.WorkerHandle], first: str
) -> list[asyncio.Task[aiobgw.WorkerHandle]]:
    """Have the old workers die, and new ones asked for."""
    pids = {handle.status().pid or 0 for handle in old}
    if first == "exits":
        _kill(pids)
    asking = [
        asyncio.create_task(client.register(WorkerSpec(name=f"new {number}", target=targets.sleep)))
        for number in range(CROWD)
    ]
    await asyncio.sleep(0)  # all of it is sent by now
    if first == "requests":
        _kill(pids)
    assert not any(task.done() for task in asking)
    return asking


def _kill(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not procs.wait_dead(pids)


async def test_T82_a_report_that_nobody_reads_any_more_does_not_break_the_second_line(
    place: str, tmp_path: Path, new_latch: NewLatch
) -> None:
    """A zygote that reaps tells of an exit, and the supervisor dies without having read it.

    Before it tells, it ends the group of who exited: a helper's end shows how far it is.
    """
    host = procs.start_script(scenario_targets.HOST, place, json.dumps({"reaper": "zygote"}))
    out = tmp_path / "pids"
    assert host.stdout is not None
    try:
        zygote = int(await in_a_thread(host.stdout.readline))
        async with aiobgw.attach(place) as client:
            first = await up(client, new_latch(), name="first")
            second = await up(
                client, new_latch(), target=scenario_targets.with_helper, args=(str(out),)
            )
            spec = WorkerSpec(name="bare", target=scenario_targets.close_everything)
            bare = (await (await client.register(spec)).wait_for_startup()).pid
            while os.listdir(f"/proc/{bare}/fd"):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            pids = [handle.status().pid or 0 for handle in (first, second)]
            procs.stop(host.pid)
            for pid in pids:
                _kill({pid})
            assert not procs.wait_dead(set(map(int, out.read_text().split())), 5.0)
            host.kill()
            assert not procs.wait_dead({bare or 0, zygote}, 2.0)
    finally:
        close_script(host)


async def test_T83_a_worker_outlives_the_thread_that_asked_for_it(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    latch = new_latch()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        with aiobgw.attach_blocking(place) as client:
            spec = WorkerSpec(name="w", target=scenario_targets.stay, latches={"up": latch})
            client.register(spec).wait_for_startup(20)
        loop.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=ask)
    thread.start()
    await latch.wait()
    await ended.wait()
    thread.join()
    (handle,) = supervisor.handles()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):  # the kernel would have killed it by now
            await handle.wait_for_exit()
    assert handle.status().state is WorkerState.RUNNING
    assert procs.is_alive(handle.status().pid or 0)


async def test_T83_workers_outlive_the_thread_that_started_their_supervisor(
    new_latch: NewLatch,
) -> None:
    """The zygote was made by this thread, and must not die with it but with the process."""
    latch = new_latch()
    found: dict[str, Any] = {}

    def host() -> None:
        async def main() -> None:
            supervisor = found["supervisor"] = aiobgw.Supervisor(name="thread", spares=0)
            await supervisor.__aenter__()
            handle = await up(supervisor, latch)
            found["pids"] = {handle.status().pid, supervisor.status().zygote_pid}

        asyncio.run(main())

    thread = threading.Thread(target=host)
    thread.start()
    await in_a_thread(thread.join)
    try:
        assert await in_a_thread(procs.wait_dead, found["pids"], 0.2) == found["pids"]
    finally:
        found.pop("supervisor").abandon()
    assert not procs.wait_dead(found["pids"], 1.0)


async def test_T86_a_slot_is_not_given_away_while_its_process_lives_whatever_the_board_says(
    make_supervisor: MakeSupervisor, place: str, new_latch: NewLatch
) -> None:
    """Not even the supervisor's own board is believed; nobody else can write it at all."""
    supervisor = await make_supervisor(runtime_dir=place, max_workers=1)
    async with aiobgw.attach(place) as client:
        handle = await up(client, new_latch())
        status = supervisor.status().workers[0]
        board = supervisor._core.outside._board
        assert board is not None
        for lie in (b"", pack_status(_over(status))):
            board.write(0, lie)
            with pytest.raises(aiobgw.NoFreeSlot):
                await client.register(WorkerSpec(name="next", target=targets.nothing))
            assert supervisor.status().workers == (status,)
            assert procs.is_alive(status.pid or 0)
        handle_here = supervisor.handles()[0]
        handle_here.terminate()
        exit = await handle_here
        assert exit is not None
        assert exit.kind is ExitKind.TERMINATED
        assert handle.generation == handle_here.generation
        await (await client.register(WorkerSpec(name="next", target=targets.nothing)))


def _over(status: aiobgw.WorkerStatus) -> aiobgw.WorkerStatus:
    """Return what the board would say if its worker had never run."""
    return aiobgw.WorkerStatus(
        name=status.name,
        type=status.type,
        state=WorkerState.STOPPED,
        slot=status.slot,
        generation=status.generation,
    )
