"""Faults on real workers: what they do to the process, and what its supervisor makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Restart, Unsupported, WorkerSpec, WorkerState, testing
from aiobgw.testing import asking, faults, memory, wire
from aiobgw.testing.process import Process, process_of

from .. import procs, targets
from ..client_targets import Host, in_a_thread, until
from ..conftest import MakeSupervisor, NewLatch
from . import fault_targets

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loop_of_the_host")]

INSIDE = "aiobgw.testing.inside"
KINDS: list[dict[str, Any]] = [
    {"kind": "plain"},
    {"kind": "async", "loop": "asyncio"},
    {"kind": "async", "loop": "uvloop"},
]
AT_ONCE: dict[str, Any] = {
    "restart": Restart.ALWAYS,
    "restart_delay": 0,
    "max_restarts": None,
}


@pytest.fixture
async def supervisor(make_supervisor: MakeSupervisor, request: Any) -> aiobgw.Supervisor:
    both_ways = "reaper" in request.fixturenames
    options = {"reaper": request.getfixturevalue("reaper")} if both_ways else {}
    return await make_supervisor(**options)


@pytest.fixture
async def script(supervisor: aiobgw.Supervisor) -> AsyncIterator[testing.Script]:
    async with testing.Script() as script:
        yield script


@pytest.fixture
async def bystander(supervisor: aiobgw.Supervisor) -> AsyncIterator[None]:
    """A worker that has nothing to do with it, and must not notice."""
    handle = await supervisor.register(WorkerSpec(name="bystander", target=targets.sleep))
    before = await handle.wait_for_startup()
    yield
    after = handle.status()
    assert (after.pid, after.state) == (before.pid, WorkerState.RUNNING)


Made = tuple[aiobgw.WorkerHandle, testing.Incarnation]


async def started(supervisor: aiobgw.Supervisor, script: testing.Script, **fields: Any) -> Made:
    fields = {"name": f"w{len(supervisor.handles())}", **AT_ONCE, **fields}
    handle = await supervisor.register(script.spec(**fields))
    return handle, await script.wait_for_incarnation(handle.name)


async def one_of_each(supervisor: aiobgw.Supervisor, script: testing.Script) -> list[Made]:
    return [await started(supervisor, script, **kind) for kind in KINDS]


async def answers(incarnation: testing.Incarnation) -> bool:
    """Tell whether that very process is there, and does what it is told."""
    return bool(await incarnation.call(os.getpid) == incarnation.pid)


# From outside.


async def test_a_kill_is_a_crash_like_any_other_and_the_rule_decides(
    reaper: str, supervisor: aiobgw.Supervisor, script: testing.Script, bystander: None
) -> None:
    handle, first = await started(supervisor, script)
    child = await first.start_child()
    testing.kill(handle)
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.signal, exit.incarnation) == (ExitKind.CRASHED, signal.SIGKILL, 1)
    assert not procs.wait_dead({child})

    second = await script.wait_for_incarnation()
    assert second.incarnation == 2
    testing.kill(handle, signal.SIGTERM)  # of which the supervisor knows nothing
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code, exit.incarnation) == (ExitKind.FAILED, 1, 2)
    assert (await script.wait_for_incarnation()).incarnation == 3


async def test_a_frozen_worker_stands_still_until_it_is_thawed(
    supervisor: aiobgw.Supervisor, script: testing.Script, bystander: None
) -> None:
    handle, incarnation = await started(supervisor, script, restart=Restart.NEVER)
    other, witness = await started(supervisor, script, kind="async")
    assert await incarnation.call(fault_targets.start_thread) == 2
    testing.freeze(handle)
    threads = os.listdir(f"/proc/{incarnation.pid}/task")
    assert [procs.state(int(thread)) for thread in threads] == ["T", "T"]
    answer = incarnation.call(os.getpid)
    testing.freeze(other)
    testing.thaw(other)
    assert await answers(witness)
    assert not answer.done()

    testing.thaw(handle)
    assert await answer == incarnation.pid
    testing.thaw(handle)  # again: nothing

    with testing.frozen(handle):
        handle.terminate()  # which wakes it: a stopped process hears nothing
        exit = await handle
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.TERMINATED, 1)


async def test_a_frozen_block_thaws_its_own_process_and_no_other(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    handle, first = await started(supervisor, script)
    with testing.frozen(handle):
        assert procs.state(first.pid) == "T"
    assert await answers(first)

    with testing.frozen(handle):
        testing.kill(handle)
        second = await script.wait_for_incarnation()
        testing.freeze(handle)
    assert procs.state(second.pid) == "T"
    testing.thaw(handle)
    assert await answers(second)


async def test_a_process_that_does_not_stop_is_told_to_go_on(
    supervisor: aiobgw.Supervisor, script: testing.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, incarnation = await started(supervisor, script)
    monkeypatch.setattr(faults, "STOP_TIMEOUT", 0.05)
    monkeypatch.setattr(faults, "_is_stopped", lambda pid: False)
    with pytest.raises(TimeoutError, match=r"'w0' has not stopped"):
        testing.freeze(handle)
    assert await answers(incarnation)


# From inside.


async def test_exit_with_ends_a_process_at_once_and_nothing_else_is_run(
    supervisor: aiobgw.Supervisor, script: testing.Script, bystander: None, tmp_path: Path
) -> None:
    kinds = {7: ExitKind.CRASHED, 1: ExitKind.FAILED, 0: ExitKind.CLEAN}
    made = await one_of_each(supervisor, script)
    for (handle, incarnation), (code, kind) in zip(made, kinds.items(), strict=True):
        await incarnation.call("atexit:register", targets.write, str(tmp_path / "atexit"))
        testing.exit_with(handle, code)
        exit = await handle.wait_for_exit()
        assert (exit.code, exit.kind, exit.error) == (code, kind, None)
        # Two in a row: the second one is for the next incarnation.
        second = await script.wait_for_incarnation(handle.name)
        testing.exit_with(handle, 3)
        assert (await handle.wait_for_exit()).code == 3
        assert second.incarnation == 2
    assert not os.listdir(tmp_path)


async def test_raise_in_fails_a_target_with_that_error_and_the_rule_decides(
    reaper: str, supervisor: aiobgw.Supervisor, script: testing.Script, bystander: None
) -> None:
    for handle, _ in await one_of_each(supervisor, script):
        testing.raise_in(handle, LookupError("as asked"))
        exit = await handle.wait_for_exit()
        assert (exit.kind, exit.code) == (ExitKind.FAILED, 1)
        assert exit.error is not None and exit.error.endswith("\nLookupError: as asked\n")
        assert (await script.wait_for_incarnation(handle.name)).incarnation == 2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_async_target_gets_the_error_where_it_awaits_and_may_catch_it(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch, tmp_path: Path, loop: str
) -> None:
    up, path = new_latch(), tmp_path / "found"
    handle = await supervisor.register(
        WorkerSpec(
            name="w",
            target=fault_targets.survive,
            args=(str(path),),
            latches={"up": up},
            restart=Restart.NEVER,
            loop=loop,
        )
    )
    await up.wait()
    up.reset()
    await handle.wait_for_startup()
    testing.raise_in(handle, ConnectionResetError("first"))
    await up.wait()
    assert json.loads(path.read_text()) == {
        "error": "first",
        "child": True,
        "cancelling": 0,
        "timeout": True,
    }
    testing.raise_in(handle, ConnectionResetError("second"))
    exit = await handle
    assert exit is not None and exit.error is not None
    assert "ConnectionResetError: second" in exit.error


@pytest.mark.parametrize(
    ("target", "loop"),
    [
        (fault_targets.wait_for_a_lock, "asyncio"),
        (fault_targets.be_busy, "asyncio"),
        (fault_targets.be_busy, "uvloop"),
        (fault_targets.wait_beside_busy_tasks, "asyncio"),
        (fault_targets.wait_beside_busy_tasks, "uvloop"),
    ],
)
async def test_the_error_is_the_targets_whatever_code_it_interrupts(
    supervisor: aiobgw.Supervisor, new_latch: NewLatch, target: Callable[[], None], loop: str
) -> None:
    up = new_latch()
    for _ in range(5):
        handle = await supervisor.register(
            WorkerSpec(
                name="w", target=target, latches={"up": up}, restart=Restart.NEVER, loop=loop
            )
        )
        await up.wait()
        up.reset()
        await handle.wait_for_startup()
        testing.raise_in(handle, LookupError("as asked"))
        exit = await handle
        assert exit is not None and exit.kind is ExitKind.FAILED
        assert exit.error is not None and exit.error.endswith("\nLookupError: as asked\n")


async def test_a_target_that_is_over_gets_no_error(
    supervisor: aiobgw.Supervisor, script: testing.Script, new_latch: NewLatch, tmp_path: Path
) -> None:
    up, path = new_latch(), tmp_path / "go"
    for kind in KINDS:
        handle, incarnation = await started(
            supervisor, script, latches={"up": up}, restart=Restart.NEVER, **kind
        )
        await incarnation.call("atexit:register", fault_targets.wait_at_exit, str(path))
        incarnation.return_()
        await up.wait()
        up.reset()
        with pytest.raises(ProcessLookupError, match="its target is over"):
            testing.raise_in(handle, LookupError("too late"))
        path.touch()
        exit = await handle
        assert exit is not None and exit.kind is ExitKind.CLEAN
        path.unlink()


async def test_what_cannot_cross_is_refused_and_hurts_nobody(
    supervisor: aiobgw.Supervisor, script: testing.Script, bystander: None
) -> None:
    handle, incarnation = await started(supervisor, script)
    with pytest.raises(ValueError, match="cannot unpickle it: ValueError: invalid literal"):
        testing.raise_in(handle, fault_targets.Untakeable())
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        testing.raise_in(handle, LookupError(lambda: None))
    with pytest.raises(ValueError, match="bytes; 32768 are possible"):
        testing.raise_in(handle, LookupError("x" * 40_000))
    with pytest.raises(TypeError, match="an exception is raised"):
        testing.raise_in(handle, LookupError)  # type: ignore[arg-type]
    for code in (-1, 256):
        with pytest.raises(ValueError, match="0 to 255"):
            testing.exit_with(handle, code)
    assert await answers(incarnation)


async def test_what_is_not_taken_in_time_never_happens(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    for handle, incarnation in await one_of_each(supervisor, script):
        with testing.frozen(handle), pytest.raises(TimeoutError, match="C code, or frozen"):
            testing.exit_with(handle, 3, timeout=0.05)
        assert await answers(incarnation)

        # The same, once it has called back: it can answer no more, and so does nothing.
        with process_of(handle) as process:
            for name, argument in (("exit_with", 3), ("raise_in", LookupError("too late"))):
                with pytest.raises(TimeoutError):
                    asking.ask(process, name, argument, 0.05, lambda: faults._freeze(process))
                testing.thaw(handle)
                assert await answers(incarnation)


async def test_a_signal_that_python_has_overlooked_is_sent_again(
    supervisor: aiobgw.Supervisor, script: testing.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, _ = await started(supervisor, script)
    send, sent = Process.send, []

    def overlook_some(self: Process, signum: int) -> None:
        sent.append(signum)
        if len(sent) > 2:
            send(self, signum)

    monkeypatch.setattr(Process, "send", overlook_some)
    testing.exit_with(handle, 3)
    assert (await handle.wait_for_exit()).code == 3


async def test_c_code_is_not_interrupted(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    handle, incarnation = await started(supervisor, script)
    await incarnation.sleep_in_c(3600)
    with pytest.raises(TimeoutError):
        testing.raise_in(handle, LookupError(), timeout=0.05)
    testing.kill(handle)
    assert (await handle.wait_for_exit()).signal == signal.SIGKILL


async def test_a_fault_that_is_under_way_is_not_mixed_up_with_another(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    handle, incarnation = await started(supervisor, script)
    with (
        wire.listen(wire.fault_address(incarnation.pid)),
        pytest.raises(RuntimeError, match="another fault is under way"),
    ):
        testing.exit_with(handle, 3)
    assert await answers(incarnation)


CALLS_BACK = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
    end.connect("\\0aiobgw/fault/" + sys.argv[1])
    print(end.recv(100))
"""


async def test_a_stranger_who_calls_back_is_not_taken_for_the_worker(
    supervisor: aiobgw.Supervisor, script: testing.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, _ = await started(supervisor, script)
    accept = asking._accept
    heard = []

    def after_a_stranger(listener: socket.socket, process: Process, give_up: float) -> Any:
        argv = [sys.executable, "-c", CALLS_BACK, str(process.pid)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as stranger:
            select.select([listener], [], [], 20)  # the worker is frozen: this is the stranger
            testing.thaw(handle)
            channel = accept(listener, process, give_up)
            heard.append(stranger.communicate()[0])
        return channel

    monkeypatch.setattr(asking, "_accept", after_a_stranger)
    testing.freeze(handle)
    testing.exit_with(handle, 3, timeout=20)
    assert (await handle.wait_for_exit()).code == 3
    assert heard == ["b''\n"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start workers of other users")
async def test_a_worker_of_another_user_obeys_root(
    supervisor: aiobgw.Supervisor,
) -> None:
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.sleep, user=65534, **AT_ONCE)
    )
    await handle.wait_for_startup()
    testing.raise_in(handle, LookupError("as asked"))
    exit = await handle.wait_for_exit()
    assert exit.error is not None and "LookupError: as asked" in exit.error
    await until(lambda: handle.status().state is WorkerState.RUNNING)
    testing.exit_with(handle, 3)
    assert (await handle.wait_for_exit()).code == 3


COMMANDS = """
import os, pickle, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind("\\0aiobgw/fault/" + sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    end, _ = listener.accept()
    with end:
        try:
            end.send(pickle.dumps(("exit_with", 3)))
            print(end.recv(100))
        except ConnectionError:
            print(b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_a_worker_obeys_no_other_user_than_root_and_its_own(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    for handle, incarnation in await one_of_each(supervisor, script):
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMMANDS, str(incarnation.pid), stdout=subprocess.PIPE
        )
        assert stranger.stdout is not None
        assert await stranger.stdout.readline() == b"listens\n"
        handle.signal(wire.FAULT_SIGNAL)
        assert (await stranger.communicate())[0] == b"b''\n"
        assert await answers(incarnation)


# Who cannot be hit.


ALL: list[Callable[[Any], None]] = [
    testing.kill,
    testing.freeze,
    testing.thaw,
    lambda handle: testing.frozen(handle).__enter__(),
    lambda handle: testing.exit_with(handle, 3),
    lambda handle: testing.raise_in(handle, LookupError()),
    testing.oom,
]


def check_unhittable(handle: Any, match: str, which: list[Callable[[Any], None]] = ALL) -> None:
    for fault in which:
        with pytest.raises(ProcessLookupError, match=match) as caught:
            fault(handle)
        assert caught.value.errno == errno.ESRCH


async def test_a_worker_without_a_process_is_not_hit_nor_is_the_next_in_its_slot(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor(max_workers=1)
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.fail, restart_delay=3600)
    )
    await handle.wait_for_exit()
    check_unhittable(handle, "worker 'w': it has no process: back-off")
    handle.terminate()
    await handle
    check_unhittable(handle, "worker 'w': it has no process: stopped")

    other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    await other.wait_for_startup()
    assert other.slot == handle.slot
    check_unhittable(handle, "it has no process: stopped")
    assert other.status().state is WorkerState.RUNNING
    assert procs.state(other.status().pid or 0) in ("R", "S")


async def test_a_process_whose_end_nobody_knows_of_yet_is_not_hit(
    reaper: str, supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    handle, incarnation = await started(supervisor, script, restart=Restart.NEVER)
    os.kill(incarnation.pid, signal.SIGKILL)
    assert not procs.wait_dead({incarnation.pid})
    assert handle.status().pid == incarnation.pid
    check_unhittable(handle, "has just ended")
    exit = await handle
    assert exit is not None and exit.signal == signal.SIGKILL


async def test_who_is_starting_can_be_killed_but_not_asked(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("AIOBGW_INJECT", f"before_started:wait={gate}")
    supervisor = await make_supervisor()
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.sleep, restart=Restart.NEVER)
    )
    # Once it has its order: without it, it would be replaced as if nothing had been.
    await until(lambda: "worker w" in procs.title(handle.status().pid or 0))
    assert handle.status().state is WorkerState.STARTING
    check_unhittable(handle, "it has not started", ALL[4:])
    testing.kill(handle)
    with pytest.raises(aiobgw.NeverStarted):
        await handle.wait_for_startup()


def some_handle(*pids: int | None) -> Any:
    """Return what looks like a handle whose status names these pids in turn."""
    found = iter(pids)

    def status() -> SimpleNamespace:
        return SimpleNamespace(pid=next(found), state=WorkerState.RUNNING, reason="")

    return SimpleNamespace(name="w", status=status)


@contextlib.contextmanager
def a_stranger() -> Iterator[int]:
    """A process that leads no session, as every worker does; dead and reaped at the end."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


async def test_a_pid_that_may_be_another_processs_is_not_hit(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    with a_stranger() as stranger:
        check_unhittable(some_handle(stranger, stranger), "has just ended", [testing.kill])
        assert procs.is_alive(stranger)
    _, incarnation = await started(supervisor, script)
    for then in (None, os.getpid()):
        handle = some_handle(incarnation.pid, then)
        check_unhittable(handle, "has just ended", [testing.kill])
    assert await answers(incarnation)


CATCHES_ALL = """
import signal, sys
for number in range(1, 65):
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, lambda *_: None)
open(sys.argv[1], "w").close()
while True:
    signal.pause()
"""


async def test_who_cannot_help_is_told_so_and_lives_on(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    up = tmp_path / "up"
    catcher = [sys.executable, "-c", CATCHES_ALL, str(up)]
    async with aiobgw.Supervisor(name="without", spares=0) as without:  # not the fixtures'
        handles = [
            await without.register(WorkerSpec(name="w", target=targets.sleep)),
            await supervisor.register(WorkerSpec(name="w", command=["sleep", "60"])),
            await supervisor.register(WorkerSpec(name="w", command=catcher)),
        ]
        await until(up.exists)
        for handle in handles:
            await check_cannot_help(handle)


async def check_cannot_help(handle: aiobgw.WorkerHandle) -> None:
    before = await handle.wait_for_startup()
    for fault in ALL[4:]:
        with pytest.raises(Unsupported, match=f"a command, or .* without {INSIDE}") as caught:
            fault(handle)
        assert f'preload=("{INSIDE}",)' in caught.value.__notes__[0]
    assert handle.status() == before
    assert procs.is_alive(before.pid or 0)
    testing.kill(handle)
    assert (await handle.wait_for_exit()).signal == signal.SIGKILL


# Memory.


@pytest.fixture
def memory_cgroup() -> None:
    """Skip where there is none."""
    try:
        with memory.MemoryCgroup(os.getpid(), memory.LIMIT):
            pass
    except Unsupported as error:
        pytest.skip(str(error))


def cgroup_of(pid: int | str = "self") -> Path:
    place = memory.place_of(
        Path(f"/proc/{pid}/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    )
    assert place is not None
    return place.cgroup


def left_over() -> list[str]:
    """Return the cgroups of this process, and of no other suite that runs beside it."""
    mine = f"{memory.PREFIX}{os.getpid()}-"
    return [name for name in os.listdir(cgroup_of()) if name.startswith(mine)]


async def test_the_kernel_ends_a_worker_that_is_out_of_memory_and_no_cgroup_is_left(
    memory_cgroup: None,
    reaper: str,
    supervisor: aiobgw.Supervisor,
    script: testing.Script,
    bystander: None,
) -> None:
    before = cgroup_of()
    for handle, _ in await one_of_each(supervisor, script):
        testing.oom(handle)
        exit = await handle.wait_for_exit()
        assert (exit.kind, exit.signal) == (ExitKind.CRASHED, signal.SIGKILL)
        second = await script.wait_for_incarnation(handle.name)
        assert second.incarnation == 2
        assert cgroup_of(second.pid) == cgroup_of() == before
    assert not left_over()


async def test_whoever_fails_in_the_middle_leaves_the_worker_where_it_was(
    memory_cgroup: None,
    supervisor: aiobgw.Supervisor,
    script: testing.Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle, incarnation = await started(supervisor, script)
    before = cgroup_of(incarnation.pid)
    # A test that was killed has left this.
    with a_stranger() as dead:
        pass
    of_the_dead = before / f"{memory.PREFIX}{dead}-1"
    of_the_dead.mkdir()
    with (
        pytest.raises(KeyboardInterrupt),
        memory.MemoryCgroup(incarnation.pid, memory.LIMIT) as cgroup,
    ):
        cgroup.enter(incarnation.pid)
        assert left_over() == [f"{memory.PREFIX}{os.getpid()}-{incarnation.pid}"]
        assert not of_the_dead.exists()
        assert cgroup_of(incarnation.pid) == cgroup.path
        raise KeyboardInterrupt
    assert cgroup_of(incarnation.pid) == before
    assert not left_over()
    assert await answers(incarnation)

    # A cgroup that limits nothing: it is not taken for the kernel's fault.
    monkeypatch.setattr(memory.MemoryCgroup, "enter", lambda self, pid: None)
    with pytest.raises(Unsupported, match="let worker 'w0' have more memory"):
        testing.oom(handle)
    assert await answers(incarnation)
    assert not left_over()


async def test_without_a_memory_cgroup_the_reason_is_told(
    supervisor: aiobgw.Supervisor, script: testing.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, incarnation = await started(supervisor, script)
    monkeypatch.setattr(memory, "place_of", lambda cgroups, mounts: None)
    with pytest.raises(Unsupported, match="can be had here: there is no memory controller"):
        testing.oom(handle)
    read_only = memory.Place(Path("/proc"), Path("/proc"), 1)
    monkeypatch.setattr(memory, "place_of", lambda cgroups, mounts: read_only)
    with pytest.raises(Unsupported, match=r"can be had here: .*/proc/aiobgw-oom-"):
        testing.oom(handle)
    assert await answers(incarnation)


# The processes around a worker.


async def test_a_killed_zygote_is_replaced_and_workers_do_not_notice(
    reaper: str, make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(reaper=reaper, runtime_dir=place)
    handle = await supervisor.register(WorkerSpec(name="w", target=targets.sleep))
    before = await handle.wait_for_startup()
    events = supervisor.events()
    zygotes = set()
    async with aiobgw.attach(place) as client:
        for one in (supervisor, client):
            zygote = one.status().zygote_pid or 0
            zygotes.add(zygote)
            testing.kill_zygote(one)
            assert not procs.wait_dead({zygote})
            with pytest.raises(ProcessLookupError, match=r"zygote of 'test': process \d+ has just"):
                testing.kill_zygote(supervisor)
            async for event in events:
                if isinstance(event, aiobgw.ZygoteRestarted):
                    break
            await until(lambda: client.status().zygote_pid == supervisor.status().zygote_pid)
    assert len(zygotes) == 2
    assert handle.status() == before
    check_unhittable_zygote(supervisor)


def check_unhittable_zygote(supervisor: aiobgw.Supervisor) -> None:
    status = supervisor.status()
    for pid, why in ((None, "there is none"), (os.getppid(), "has just ended")):
        other = SimpleNamespace(
            status=lambda pid=pid: SimpleNamespace(name="x", zygote_pid=pid, pid=status.pid)
        )
        with pytest.raises(ProcessLookupError, match=why):
            testing.kill_zygote(other)  # type: ignore[arg-type]


async def test_a_killed_supervisor_takes_its_workers_along(place: str) -> None:
    for blocking in (False, True):
        path = f"{place}-{blocking}"
        with Host(path, w="tests.targets:sleep", stubborn="tests.targets:ignore_term") as host:
            async with contextlib.AsyncExitStack() as stack:
                if blocking:
                    client: Any = stack.enter_context(aiobgw.attach_blocking(path))
                else:
                    client = await stack.enter_async_context(aiobgw.attach(path))
                handle = client.get("w")
                testing.kill_supervisor(client)
                assert not procs.wait_dead(host.all)
                host.process.wait()
                with pytest.raises(aiobgw.SupervisorDied):
                    handle.status()
                with pytest.raises(aiobgw.SupervisorDied):
                    testing.kill_supervisor(client)


async def test_nobody_kills_the_process_that_it_is(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        for one in (client, supervisor):
            with pytest.raises(ValueError, match="this very process"):
                testing.kill_supervisor(one)  # type: ignore[arg-type]


async def test_handles_of_clients_will_do(place: str) -> None:
    options = {"preload": [INSIDE]}
    with (
        Host(place, options=options, w="tests.targets:sleep") as host,
        aiobgw.attach_blocking(place) as client,
    ):
        handle = client.get("w")
        assert handle is not None
        (pid,) = host.workers
        testing.freeze(handle)
        assert procs.state(pid) == "T"
        testing.thaw(handle)
        testing.exit_with(handle, 7)
        exit = await in_a_thread(handle.wait_for_exit, 20)
        assert (exit.code, exit.kind) == (7, ExitKind.CRASHED)
        check_unhittable(handle, "it has no process: back-off", ALL[:2])
        handle.restart()
        await until(lambda: handle.status().state is WorkerState.RUNNING)
        testing.raise_in(handle, LookupError("as asked"))
        exit = await in_a_thread(handle.wait_for_exit, 20)
        assert exit.error is not None and "LookupError: as asked" in exit.error
