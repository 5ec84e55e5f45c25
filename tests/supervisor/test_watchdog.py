"""Watchdogs, with real processes: who is stuck is ended and tells where, and nobody else is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import aiobgw
from aiobgw import CrashScope, ExitKind, Flags, Restart, WorkerSpec, WorkerState
from aiobgw._ipc.launch import DUMP_SIGNALS, TEXT_BYTES
from aiobgw._policy.liveness import LOOKS
from aiobgw._supervisor import census
from aiobgw._supervisor.stacks import SIZE, in_order
from aiobgw.testing import FakeLauncher, ManualClock

from .. import live_targets, procs, targets
from ..conftest import MakeSupervisor, NewLatch

pytestmark = pytest.mark.anyio

WATCHDOG = 0.5
SILENT = "gave no sign of life for 0.5 s"


def spec(name: str, **fields: Any) -> WorkerSpec:
    fields.setdefault("watchdog", WATCHDOG)
    fields.setdefault("restart", Restart.NEVER)
    return WorkerSpec(name=name, **fields)


STUCK: dict[str, tuple[dict[str, Any], str]] = {
    "asyncio, in Python": ({"target": live_targets.block, "args": ("python",)}, "stuck_in_python"),
    "asyncio, in C": ({"target": live_targets.block, "args": ("c",)}, "stuck_in_c"),
    "uvloop, in Python": (
        {"target": live_targets.block, "args": ("python",), "loop": "uvloop"},
        "stuck_in_python",
    ),
    "plain, no beat": ({"target": live_targets.say_nothing}, "in say_nothing\n"),
    "plain, threads": ({"target": live_targets.say_nothing_in_threads}, "stuck_in_python"),
    "command, no WATCHDOG=1": ({"command": ["/bin/sleep", "3600"]}, ""),
}

HEALTHY: dict[str, dict[str, Any]] = {
    "asyncio": {"target": targets.sleep_async},
    "uvloop": {"target": targets.sleep_async, "loop": "uvloop"},
    "async that beats, too": {"target": live_targets.beat_and_sleep},
    "plain": {"target": live_targets.beat},
    "plain, in a thread": {"target": live_targets.beat_in_a_thread},
    "slow to import": {"target": "tests.slow_to_import:run"},
    "no watchdog": {"target": targets.sleep, "watchdog": None},
}


async def test_the_stuck_are_ended_and_tell_where_while_the_others_live_on(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=20)
    healthy = [await supervisor.register(spec(name, **f)) for name, f in HEALTHY.items()]
    stuck = [await supervisor.register(spec(name, **f)) for name, (f, _) in STUCK.items()]
    for handle, (_, where) in zip(stuck, STUCK.values(), strict=True):
        exit = await handle
        assert exit is not None
        assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGABRT), handle.name
        assert (exit.reason, exit.code) == (SILENT, None)
        # Most recent call last: what is kept of a long text names the place.
        assert where in (exit.error or "")[-300:], handle.name

    for handle in healthy:
        await handle.wait_for_startup()
        status = handle.status()
        assert (status.state, status.incarnation) == (WorkerState.RUNNING, 1), handle.name


async def test_a_sleep_in_c_that_a_signal_ends_is_told_all_the_same(
    make_supervisor: MakeSupervisor, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker goes on then, and may end by itself: it has failed as well."""
    supervisor = await make_supervisor()
    handle = await supervisor.register(spec("w", target=live_targets.block, args=("sleep",)))
    exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code, exit.reason) == (ExitKind.FAILED, 0, SILENT)
    assert "in asleep_in_c" in (exit.error or "")[-300:]
    assert "in asleep_in_c" in capfd.readouterr().err


async def test_a_stopped_worker_is_ended_and_restarted_by_its_rule(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGCONT goes with the end, so that it tells where it was, and need not be killed."""
    supervisor = await make_supervisor()
    up = new_latch()
    fields = {"restart": Restart.ON_FAILURE, "restart_delay": 0, "latches": {"up": up}}
    handle = await supervisor.register(spec("w", target=live_targets.beat, **fields))
    await up.wait()
    procs.stop((await handle.wait_for_startup()).pid)
    events = supervisor.events()
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.signal, exit.reason) == (ExitKind.FAILED, signal.SIGABRT, SILENT)
    assert "in beat" in (exit.error or "")
    assert "in beat" in capfd.readouterr().err
    async for event in events:
        if isinstance(event, aiobgw.Started):
            break
    status = handle.status()
    assert (status.incarnation, status.restarts) == (2, 1)


async def test_a_silent_member_begins_a_crash_cycle(
    make_supervisor: MakeSupervisor, new_latch: NewLatch
) -> None:
    """And everything else that an order brings is in its place."""
    supervisor = await make_supervisor()
    up, go = new_latch(), new_latch()
    handle = await supervisor.register(
        spec(
            "m",
            target=live_targets.member,
            args=(b"x" * 20_000,),
            latches={"up": up, "go": go},
            flags=Flags.SHMEM_ACCESS,
            crash_scope=CrashScope.ALL,
            restart=Restart.ALWAYS,
        )
    )
    await up.wait()
    events = supervisor.events()
    go.set()
    async for event in events:
        if isinstance(event, aiobgw.CrashCycle):
            break
    assert (event.name, event.exit.reason) == ("m", SILENT)
    assert "stuck_in_python" in (event.exit.error or "")
    handle.kill()
    await handle


async def test_the_stacks_of_a_crash_are_kept_too_and_cost_no_more_than_they_may(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()

    async def end(**fields: Any) -> aiobgw.ExitStatus:
        exit = await (await supervisor.register(spec("w", watchdog=60, **fields)))
        assert exit is not None
        return exit

    crash = await end(target=live_targets.read_nothing)
    assert (crash.kind, crash.signal) == (ExitKind.CRASHED, signal.SIGSEGV)
    assert "in read_nothing" in (crash.error or "")[-300:]

    aborted = await end(target=live_targets.scribble_and_die, args=("abort",))
    assert (aborted.kind, aborted.signal) == (ExitKind.CRASHED, signal.SIGABRT)
    assert 0 < len(aborted.error or "") <= TEXT_BYTES
    assert "\N{REPLACEMENT CHARACTER} scribbled" in (aborted.error or "")

    in_order = await end(target=live_targets.scribble_and_die, args=("exit",))
    assert (in_order.kind, in_order.code, in_order.error) == (ExitKind.FAILED, 3, None)

    nothing = await end(target=live_targets.beat_without_a_watchdog, restart=Restart.NEVER)
    assert nothing.kind is ExitKind.CLEAN


async def test_only_targets_with_a_watchdog_have_a_place_for_stacks_and_forks_of_the_host_none(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    fields: list[dict[str, Any]] = [
        {"target": targets.sleep_async, "watchdog": 60},
        {"target": targets.sleep_async, "watchdog": None},
        {"command": ["/bin/sleep", "3600"], "watchdog": 60},
    ]
    handles = [await supervisor.register(spec(f"w{n}", **f)) for n, f in enumerate(fields)]
    for handle in handles:
        await handle.wait_for_startup()

    ours = stacks_of("self")
    theirs = [len(stacks_of(str(handle.status().pid))) for handle in handles]
    assert (len(ours), theirs) == (1, [1, 0, 0])
    assert ours <= census.descriptors(supervisor._core)

    child = os.fork()
    if child == 0:
        os._exit(len(stacks_of("self")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
    handles[0].terminate()
    await handles[0]
    assert not stacks_of("self")


def stacks_of(pid: str) -> set[int]:
    found = set()
    for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
        try:
            if "aiobgw-stacks" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                found.add(fd)
        except FileNotFoundError:
            pass  # the descriptor that listdir() itself was using
    return found


async def test_a_fake_process_beats_when_a_test_says_so_and_nobody_is_told(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, clock = FakeLauncher(), ManualClock()
    supervisor = await make_supervisor(launcher=launcher, clock=clock)
    handle = await supervisor.register(spec("w", target="a:b", watchdog=60))
    told: list[str] = []
    loop = supervisor._core.loop
    assert loop is not None
    monkeypatch.setattr(loop, "_publish", lambda worker: told.append(worker.life.state.value))
    for _ in range(1000):
        clock.advance(59)
        launcher["w"].beat()
    assert told == []

    clock.advance(59)
    assert (handle.status().state, told) == (WorkerState.RUNNING, [])
    clock.advance(0.25 * 60 + 2)
    exit = await handle
    assert exit is not None
    assert exit.reason == "gave no sign of life for 60 s"
    assert launcher["w"].signals == [
        signal.SIGSTOP,
        *DUMP_SIGNALS,
        signal.SIGCONT,
        signal.SIGABRT,
    ]
    assert told == ["stopping", "stopped"]


async def test_a_beat_that_is_there_counts_before_a_look_whoever_wakes_the_supervisor_first(
    make_supervisor: MakeSupervisor,
) -> None:
    """A request is answered at once; what it finds due must not come ahead of what was said."""
    clock = ManualClock()
    supervisor = await make_supervisor(clock=clock)
    handle = await supervisor.register(spec("w", target=live_targets.beat, watchdog=0.5))
    await handle.wait_for_startup()
    loop = supervisor._core.loop
    worker = supervisor._core.registry.newest("w")
    assert loop is not None and worker is not None
    for _ in range(3):
        # Frames are not heard here, unless somebody looks: nothing is awaited.
        now = clock._now = clock._now + 0.125
        loop._decide(worker, aiobgw._policy.happenings.DeadlinePassed())
    assert (worker.life.silent, worker.life.watch_at) == (3, now + 0.125)
    procs.wait_readable(worker.launch.child.channel.fd)  # type: ignore[union-attr]
    clock._now += 0.125
    handle.wake()
    assert worker.life.state is WorkerState.RUNNING
    assert worker.life.silent == 0


CURRENT = 'Current thread 0x01 (most recent call first):\n  File "a.py", line 2 in inner'
OTHER = (
    'Thread 0x02 (most recent call first):\n  File "b.py", line 4 in wait\n  File "b.py", line 3'
)
CURRENT_TURNED = CURRENT.replace("first", "last")
OTHER_TURNED = (
    'Thread 0x02 (most recent call last):\n  File "b.py", line 3\n  File "b.py", line 4 in wait'
)
FATAL, MODULES = "Fatal Python error: Segmentation fault", "Extension modules: some (total: 1)"


@pytest.mark.parametrize(
    ("sections", "turned"),
    [
        ([CURRENT, OTHER], [CURRENT_TURNED, OTHER_TURNED]),
        ([FATAL, CURRENT, OTHER, MODULES], [FATAL, OTHER_TURNED, MODULES, CURRENT_TURNED]),
        ([""], [""]),
        (["no stacks", "at all"], ["no stacks", "at all"]),
        (["x" * SIZE], ["x" * SIZE]),
    ],
)
def test_stacks_are_turned_round_so_that_what_counts_comes_last(
    sections: list[str], turned: list[str]
) -> None:
    assert in_order("\n\n".join(sections) + "\n") == "\n\n".join(turned)


# Supervisors that are stopped and starved, in processes of their own.

HOST = """
import asyncio, sys
import aiobgw
from aiobgw import Restart, WorkerSpec

FIELDS = [
    dict(target="tests.targets:sleep_async"),
    dict(target="tests.targets:sleep_async", loop="uvloop"),
    dict(target="tests.live_targets:beat"),
    dict(target="tests.live_targets:sleep_as_the_last"),
]

async def main():
    loop = asyncio.get_running_loop()
    async with aiobgw.Supervisor(name="host") as supervisor:
        handles = [
            await supervisor.register(
                WorkerSpec(name=f"w{n}", watchdog=float(sys.argv[1]), **fields)
            )
            for n, fields in enumerate(FIELDS)
        ]
        for handle in handles:
            await handle.wait_for_startup()
        print(supervisor.status().zygote_pid, *(h.status().pid for h in handles), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            states = [h.status() for h in handles]
            print(*(f"{s.state.name}:{s.incarnation}:{s.exit}" for s in states), flush=True)

asyncio.run(main())
"""

FINE = " ".join(["RUNNING:1:None"] * 4)


class Host:
    """A supervisor in a process of its own, its workers, and what can be done to them."""

    def __init__(self, host: subprocess.Popen[str]) -> None:
        self.host = host
        self.zygote, *self.workers = map(int, self._line().split())

    def _line(self) -> str:
        assert self.host.stdout is not None
        return self.host.stdout.readline().strip()

    def status(self) -> str:
        assert self.host.stdin is not None
        self.host.stdin.write("?\n")
        self.host.stdin.flush()
        return self._line()

    def stop(self, pids: list[int]) -> None:
        for pid in pids:
            procs.stop(pid)

    def go_on(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def host(watchdog: float, loop: str) -> Iterator[Host]:
    environment = os.environ | {"AIOBGW_TEST_LOOP": loop}
    process = procs.start_script(HOST, str(watchdog), env=environment)
    try:
        yield Host(process)
    finally:
        process.kill()
        process.communicate()


def test_whoever_is_stopped_with_the_supervisor_or_goes_on_without_it_lives_on() -> None:
    with host(WATCHDOG, "uvloop") as it:
        supervisor, everybody = [it.host.pid], [it.host.pid, it.zygote, *it.workers]
        for pids in (supervisor, everybody):
            it.stop(pids)
            time.sleep(2.5 * WATCHDOG)  # not a synchronisation: so long they shall be stopped
            it.go_on(pids)
            time.sleep(1.5 * WATCHDOG)  # nor is this: so long somebody could seem silent
            assert it.status() == FINE

        # Everybody is stopped again and again, before the workers have gone on.
        it.stop(everybody)
        for _ in range(2 * LOOKS):
            time.sleep(0.5 * WATCHDOG)
            it.go_on(supervisor)
            assert it.status() == FINE
            it.stop(supervisor)
        it.go_on(everybody)
        time.sleep(1.5 * WATCHDOG)
        assert it.status() == FINE

        procs.stop(it.workers[0])
        assert procs.wait_dead({it.workers[0]}, 10.0) == set()
        status = it.status().split(" ", 1)[0]
        assert status.split(":")[0] != "RUNNING" or status.split(":")[1] == "2"


def test_whoever_is_starved_of_processors_lives_on() -> None:
    """Host, zygote and workers come after everybody else, and one worker after all of them."""
    busy: list[subprocess.Popen[bytes]] = []
    with host(1.0, "asyncio") as it:
        for pid in (it.host.pid, it.zygote, *it.workers[:-1]):
            os.setpriority(os.PRIO_PROCESS, pid, 10)
        try:
            for _ in range(os.cpu_count() or 1):
                busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            time.sleep(3.0)  # not a synchronisation: the time for which they are starved
            assert it.status() == FINE
        finally:
            for one in busy:
                one.kill()
                one.wait()


async def test_a_worker_is_not_ended_for_what_it_did_before_it_was_watched(
    make_supervisor: MakeSupervisor,
) -> None:
    """A beat of the incarnation before, or none in an import, says nothing of this one."""
    supervisor = await make_supervisor()
    handle = await supervisor.register(
        spec("w", target=live_targets.beat, restart=Restart.ALWAYS, restart_delay=0)
    )
    await handle.wait_for_startup()
    events = supervisor.events()
    for incarnation in (2, 3):
        handle.restart()
        async for event in events:
            if isinstance(event, aiobgw.Started) and event.status.incarnation == incarnation:
                break
    await asyncio.sleep(1.5 * WATCHDOG)  # not a synchronisation: the time to be silent for
    assert handle.status().incarnation == 3


SPEAKS = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1)
for _ in range(int(sys.argv[1])):
    s.sendto(b"WATCHDOG=1", address)
    time.sleep(0.05)
time.sleep(3600)
"""


async def test_a_command_lives_as_long_as_it_sends_watchdog(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    always, for_a_while = [
        await supervisor.register(
            spec(f"c{times}", command=[sys.executable, "-c", SPEAKS, str(times)], watchdog=1.0)
        )
        for times in (10**6, 30)
    ]
    exit = await for_a_while
    assert exit is not None
    assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGABRT)
    assert exit.reason == "gave no sign of life for 1 s"
    assert always.status().state is WorkerState.RUNNING
