"""Entering, leaving, failing: all or nothing, and nothing is ever left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import aiobgw
from aiobgw import Restart, ShutdownMode, WorkerSpec, WorkerState

from .. import procs
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

SLEEPER = WorkerSpec(name="sleeper", target="tests.targets:sleep")


async def started(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("target", "tests.targets:sleep")
    handle = await supervisor.register(WorkerSpec(**options))
    await handle.wait_for_startup()
    return handle


async def stubborn(supervisor: aiobgw.Supervisor, target: str, patience: float = 60.0) -> Any:
    """Start a worker that no SIGTERM ends, and wait until that is so."""
    up = aiobgw.Latch()
    handle = await started(supervisor, target=target, stop_timeout=patience, latches={"up": up})
    await up.wait()
    return handle


async def test_static_workers_start_in_the_order_of_their_registration() -> None:
    supervisor = aiobgw.Supervisor(name="static", spares=0)
    handles = [
        supervisor.add(WorkerSpec(name=f"w{n}", target="tests.targets:sleep")) for n in range(3)
    ]
    assert [handle.status().state for handle in handles] == [WorkerState.NOT_STARTED] * 3
    async with supervisor:
        begun = [await handle.wait_for_startup() for handle in handles]
        assert [status.slot for status in begun] == [0, 1, 2]
        pids = [status.pid for status in begun]
        assert all(pids)
        assert pids == sorted(pids, key=lambda pid: pid or 0)


async def test_too_many_static_workers_are_refused_with_the_limit() -> None:
    supervisor = aiobgw.Supervisor(name="static", max_workers=1)
    supervisor.add(SLEEPER)
    with pytest.raises(aiobgw.NoFreeSlot, match="all 1 worker slots"):
        supervisor.add(SLEEPER)


async def test_add_after_the_start_and_register_before_it_say_what_to_use(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    with pytest.raises(RuntimeError, match="await register"):
        supervisor.add(SLEEPER)
    with pytest.raises(RuntimeError, match="async with"):
        await aiobgw.Supervisor(name="early").register(SLEEPER)


async def test_a_supervisor_is_entered_once() -> None:
    supervisor = aiobgw.Supervisor(name="once", spares=0)
    async with supervisor:
        pass
    with pytest.raises(RuntimeError, match="make a new one"):
        await supervisor.__aenter__()


async def test_a_failing_preload_raises_at_the_start_and_leaves_nothing() -> None:
    supervisor = aiobgw.Supervisor(name="bad", preload=("no.such.module",))
    with pytest.raises(aiobgw.SupervisorFailed, match="No module named 'no'") as caught:
        await supervisor.__aenter__()
    assert "Traceback" in "".join(caught.value.__notes__)
    with pytest.raises(aiobgw.SupervisorDied):
        await supervisor.shutdown()


async def test_an_interpreter_that_is_none_is_unsupported() -> None:
    for python in ("/nonexistent/python", "/bin/true"):
        with pytest.raises(aiobgw.AiobgwError):
            await aiobgw.Supervisor(name="bad", python=python).__aenter__()


async def test_a_cancelled_start_leaves_nothing() -> None:
    for turns in range(0, 12, 2):
        supervisor = aiobgw.Supervisor(name="cancelled", spares=1)
        task = asyncio.ensure_future(supervisor.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_leaving_by_an_exception_ends_the_workers_and_lets_it_through() -> None:
    pid = None
    with pytest.raises(KeyError, match="mine"):
        async with aiobgw.Supervisor(name="left", spares=0) as supervisor:
            pid = (await (await started(supervisor)).wait_for_startup()).pid
            raise KeyError("mine")
    assert pid is not None
    assert not procs.is_alive(pid)


async def test_entering_and_leaving_may_happen_in_different_tasks() -> None:
    supervisor = aiobgw.Supervisor(name="tasks", spares=0)
    await asyncio.create_task(supervisor.__aenter__())
    handle = await asyncio.create_task(started(supervisor))
    await asyncio.create_task(supervisor.__aexit__(None, None, None))
    assert handle.status().state is WorkerState.STOPPED


async def test_a_cancellation_while_leaving_makes_it_immediate_and_is_raised_again() -> None:
    supervisor = aiobgw.Supervisor(name="leave", spares=0)
    await supervisor.__aenter__()
    handle = await stubborn(supervisor, "tests.targets:ignore_term")
    leaving = asyncio.ensure_future(supervisor.__aexit__(None, None, None))
    await asyncio.sleep(0)
    assert handle.status().state is WorkerState.STOPPING
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    exit = handle.status().exit
    assert exit is not None
    assert exit.signal == signal.SIGQUIT


async def test_shutdown_is_idempotent_and_concurrent_calls_wait_for_the_same_end(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    await started(supervisor)
    await asyncio.gather(*(supervisor.shutdown() for _ in range(5)), supervisor.wait_closed())
    await supervisor.shutdown(ShutdownMode.SMART)
    await supervisor.wait_closed()


async def test_register_is_refused_once_it_stops(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    await stubborn(supervisor, "tests.targets:ignore_term", patience=1)
    stopping = asyncio.ensure_future(supervisor.shutdown())
    await asyncio.sleep(0)
    with pytest.raises(aiobgw.ShuttingDown):
        await supervisor.register(SLEEPER)
    await supervisor.shutdown(ShutdownMode.IMMEDIATE)
    await stopping
    with pytest.raises(aiobgw.ShuttingDown):
        await supervisor.register(SLEEPER)


async def test_smart_waits_for_the_running_and_starts_nobody_again(
    make_supervisor: MakeSupervisor,
) -> None:
    go = aiobgw.Latch()
    supervisor = await make_supervisor()
    running = await started(
        supervisor,
        target="tests.targets:wait_then_exit",
        args=(1,),
        latches={"go": go},
        restart=Restart.ALWAYS,
        restart_delay=0,
    )
    waiting = await started(
        supervisor, target="tests.targets:fail", restart_delay=3600, name="waiting"
    )
    await waiting.wait_for_exit()
    stopping = asyncio.ensure_future(supervisor.shutdown(ShutdownMode.SMART))
    await waiting.wait_for_shutdown()  # in its delay: retired at once
    assert running.status().state is WorkerState.RUNNING
    assert not stopping.done()
    go.set()
    await stopping
    assert running.status().incarnation == 1


async def test_fast_tells_the_never_started_first_then_asks_all_at_once(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(start_phase=aiobgw.Phase.CONSISTENT_STATE)
    up = await started(supervisor, start_when=aiobgw.Phase.CONSISTENT_STATE)
    gated = await supervisor.register(SLEEPER)
    order: list[str] = []

    async def note(what: str, waiting: Any) -> None:
        try:
            await waiting
        except aiobgw.NeverStarted:
            order.append(f"{what} never started")
        else:
            order.append(f"{what} over")

    tasks = [
        asyncio.ensure_future(note("up", up.wait_for_shutdown())),
        asyncio.ensure_future(note("gated", gated.wait_for_startup())),
    ]
    await asyncio.sleep(0)
    await supervisor.shutdown(ShutdownMode.FAST)
    await asyncio.gather(*tasks)
    assert order == ["gated never started", "up over"]
    assert await gated.wait_for_shutdown() is None


async def test_a_stop_only_gets_stricter_and_always_ends(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    handle = await stubborn(supervisor, "tests.targets:spin")
    stops = [
        asyncio.ensure_future(supervisor.shutdown(mode))
        for mode in (ShutdownMode.SMART, ShutdownMode.FAST)
    ]
    await asyncio.sleep(0)
    assert supervisor.status().stopping is ShutdownMode.FAST
    await supervisor.shutdown(ShutdownMode.IMMEDIATE)
    await asyncio.gather(*stops)
    exit = handle.status().exit
    assert exit is not None
    assert exit.signal == signal.SIGQUIT  # its default action works inside C, too


async def test_abandon_ends_everything_at_once_without_the_loop(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(spares=2)
    handles = [await started(supervisor, target="tests.targets:spin") for _ in range(3)]
    pids = {handle.status().pid or 0 for handle in handles} | procs.children()
    waiting = asyncio.ensure_future(handles[0].wait_for_shutdown())
    await asyncio.sleep(0)
    supervisor.abandon()
    supervisor.abandon()
    assert not procs.wait_dead(pids, 1.0)
    with pytest.raises(aiobgw.SupervisorDied):
        await waiting
    with pytest.raises(aiobgw.SupervisorDied):
        handles[1].status()


async def test_a_supervisor_that_is_dropped_ends_its_workers() -> None:
    supervisor = aiobgw.Supervisor(name="dropped", spares=0)
    await supervisor.__aenter__()
    pid = (await (await started(supervisor)).wait_for_startup()).pid
    assert pid is not None
    del supervisor
    gc.collect()
    assert not procs.wait_dead({pid}, 1.0)


@pytest.mark.parametrize("end", ["loop.close()", "sys.exit(3)", "raise KeyError"])
def test_a_host_that_just_ends_leaves_no_worker(end: str) -> None:
    source = f"""
import asyncio, sys, aiobgw
async def main():
    global supervisor
    supervisor = aiobgw.Supervisor(name="ends", spares=1)
    await supervisor.__aenter__()
    handle = await supervisor.register(aiobgw.WorkerSpec(name="w", target="tests.targets:spin"))
    print((await handle.wait_for_startup()).pid, flush=True)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
{end}
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source],
        cwd=procs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=30,
        check=False,
    )
    assert not procs.wait_dead({int(run.stdout)}, 1.0)


async def test_events_tell_a_whole_life_in_order(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    events = supervisor.events()
    handle = await supervisor.register(
        WorkerSpec(name="w", target="tests.targets:fail", restart_delay=3600)
    )
    await handle.wait_for_exit()
    handle.terminate()
    await handle
    await supervisor.advance(aiobgw.Phase.RUNNING)
    await supervisor.shutdown()
    names = [type(event).__name__ async for event in events]
    assert names == [
        "Registered",
        "Started",
        "Ready",
        "Exited",
        "Restarting",
        "Retired",
        "PhaseChanged",
        "Stopping",
        "Closed",
    ]


async def test_advance_opens_gates_and_stops_nobody(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor(start_phase=aiobgw.Phase.SUPERVISOR_START)
    handles = [
        await supervisor.register(
            WorkerSpec(name=phase.name, target="tests.targets:sleep", start_when=phase)
        )
        for phase in aiobgw.Phase
    ]
    await handles[0].wait_for_startup()
    assert handles[2].status().reason == "waits for phase RUNNING"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handles[1].wait_for_startup()
    await supervisor.advance(aiobgw.Phase.RUNNING)
    for handle in handles:
        await handle.wait_for_startup()
    await supervisor.advance(aiobgw.Phase.SUPERVISOR_START)
    assert all(handle.status().state is WorkerState.RUNNING for handle in handles)


async def test_status_get_type_by_pid_and_terminate_where_find_workers(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=5)
    old = await started(supervisor, name="twin", type="a")
    new = await started(supervisor, name="twin", type="b")
    status = supervisor.status()
    assert [worker.name for worker in status.workers] == ["twin", "twin"]
    assert status.max_workers == 5
    assert supervisor.get("twin") == new
    assert supervisor.get(old.token) == old
    assert supervisor.get("nobody") is None
    assert supervisor.get("aiobgw1:nonsense") is None
    assert supervisor.type_by_pid(old.status().pid or 0) == "a"
    assert supervisor.type_by_pid(os.getpid()) is None
    assert supervisor.terminate_where(lambda worker: worker.type == "b") == [new]
    await new
    assert supervisor.handles() == [old]
    assert supervisor.get(new.token) is None


async def test_a_supervisor_that_cannot_start_a_zygote_any_more_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiobgw._process.keeper.ZYGOTE_ATTEMPTS", 2)
    supervisor = aiobgw.Supervisor(name="fails", spares=0)
    with pytest.raises(aiobgw.SupervisorFailed, match="no zygote can be started"):
        async with supervisor:
            handle = await started(supervisor)
            monkeypatch.setenv("PYTHONHOME", "/nonexistent")
            procs.kill(supervisor.status().zygote_pid)
            async with supervisor.guard():
                await handle.wait_for_shutdown()
            pytest.fail("the guard let it through")
    with pytest.raises(aiobgw.SupervisorFailed):
        await supervisor.wait_closed()
    assert handle.status().state is WorkerState.STOPPED


async def test_signals_of_the_host_stop_it_only_if_it_asked_for_that() -> None:
    supervisor = aiobgw.Supervisor(name="signals", spares=0, handle_signals=True)
    async with supervisor:
        await started(supervisor)
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor.wait_closed()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_another_thread_is_told_to_use_the_loop(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor()
    with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
        await asyncio.to_thread(supervisor.status)


async def test_abandon_ends_a_guarded_block_and_all_waits(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    one = await started(supervisor, name="one")
    other = await started(supervisor, name="other")
    waiting = asyncio.ensure_future(other.wait_for_shutdown())
    asyncio.get_running_loop().call_soon(supervisor.abandon)
    with pytest.raises(aiobgw.SupervisorDied):
        async with asyncio.timeout(5), one.guard():
            await asyncio.sleep(60)
    with pytest.raises(aiobgw.SupervisorDied):
        await waiting
