"""Scripted workers: each request, in plain and async targets, and what ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Readiness, Restart, testing

from .. import procs
from ..client_targets import until
from ..conftest import MakeSupervisor, NewLatch
from . import fault_targets

pytestmark = pytest.mark.anyio

KINDS: list[dict[str, Any]] = [
    {"kind": "plain"},
    {"kind": "async", "loop": "asyncio"},
    {"kind": "async", "loop": "uvloop"},
]


@pytest.fixture
async def script(supervisor: aiobgw.Supervisor) -> AsyncIterator[testing.Script]:
    async with testing.Script() as script:
        yield script


@pytest.fixture(params=KINDS, ids=["plain", "asyncio", "uvloop"])
def kind(request: Any) -> dict[str, Any]:
    return dict(request.param)


Made = tuple[aiobgw.WorkerHandle, testing.Incarnation]


async def started(supervisor: aiobgw.Supervisor, script: testing.Script, **fields: Any) -> Made:
    fields = {"restart": Restart.NEVER, **fields}
    handle = await supervisor.register(script.spec(**fields))
    return handle, await script.wait_for_incarnation()


async def ended(handle: aiobgw.WorkerHandle) -> aiobgw.ExitStatus:
    exit = await handle
    assert exit is not None
    return exit


async def test_it_does_what_it_is_told_and_answers(
    make_supervisor: MakeSupervisor,
    kind: dict[str, Any],
    new_latch: NewLatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Here: pytest captures into other files than while it makes fixtures.
    supervisor = await make_supervisor()
    async with testing.Script() as script:
        latch = new_latch()
        fields = {"latches": {"it": latch}, "ready": Readiness.NOTIFY, **kind}
        handle, incarnation = await started(supervisor, script, **fields)
        assert (incarnation.name, incarnation.incarnation) == ("scripted", 1)
        assert incarnation.pid == handle.status().pid

        await incarnation.say("to whom it may concern")
        await incarnation.say("to whom it may not", "stderr")
        said = capfd.readouterr()
        assert "to whom it may concern\n" in said.out
        assert "to whom it may not\n" in said.err

        await incarnation.set_latch("it")
        await latch.wait()

        await handle.wait_for_startup()
        assert not handle.status().ready
        await incarnation.ready()
        await until(lambda: handle.status().ready)

        before = _resident(incarnation.pid)
        await incarnation.allocate(32 << 20)
        assert _resident(incarnation.pid) - before >= 32 << 20


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_a_call_gives_the_result_or_raises_what_was_raised(
    supervisor: aiobgw.Supervisor, script: testing.Script, kind: dict[str, Any]
) -> None:
    handle, incarnation = await started(supervisor, script, **kind)
    assert await incarnation.call("os:getpid") == incarnation.pid
    assert await incarnation.call(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(FileNotFoundError) as caught:
        await incarnation.call("os:open", "/no/such/file", 0)
    assert "in the worker:\nTraceback" in caught.value.__notes__[0]
    with pytest.raises(ModuleNotFoundError):
        await incarnation.call("no_such_module:function")
    with pytest.raises(RuntimeError, match=r"^Untakeable: as asked\nTraceback"):
        await incarnation.call(fault_targets.fail_untakeably)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        await incarnation.call("threading:Lock")
    with pytest.raises(ValueError, match="bytes; 32768 are possible"):
        await incarnation.call(bytes, 40_000)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await incarnation.call(next, iter([]))
    if kind["kind"] == "async":
        assert await incarnation.call("asyncio:sleep", 0.001, "rested") == "rested"
    else:
        with pytest.raises(TypeError, match="a plain target awaits nothing"):
            await incarnation.call("asyncio:sleep", 0)

    # Whoever does not wait for an answer does not take the next one's.
    given_up = incarnation.call(os.getppid)
    given_up.cancel()
    assert await incarnation.call(os.getpid) == incarnation.pid
    assert handle.status().pid == incarnation.pid


async def test_it_ends_as_it_is_told_and_the_next_incarnation_takes_over(
    supervisor: aiobgw.Supervisor, script: testing.Script, kind: dict[str, Any]
) -> None:
    handle, first = await started(
        supervisor, script, restart=Restart.ALWAYS, restart_delay=0, **kind
    )
    first.return_()
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code) == (ExitKind.CLEAN, 0)
    with pytest.raises(ConnectionResetError, match=r"<Incarnation 1 of 'scripted' .*> has ended"):
        await first.call(os.getpid)

    second = await script.wait_for_incarnation()
    second.raise_(LookupError("as asked"))
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code) == (ExitKind.FAILED, 1)
    assert exit.error is not None and exit.error.endswith("\nLookupError: as asked\n")

    third = await script.wait_for_incarnation()
    third.exit(7)
    exit = await handle.wait_for_exit()
    assert (exit.kind, exit.code, exit.error) == (ExitKind.CRASHED, 7, None)

    fourth = await script.wait_for_incarnation()
    with pytest.raises(ValueError, match="invalid literal"):
        await fourth.raise_(fault_targets.Untakeable())
    unanswered = fourth.call(f"{'time' if kind['kind'] == 'plain' else 'asyncio'}:sleep", 3600)
    never_begun = fourth.exit(3)
    handle.terminate()
    assert (await ended(handle)).kind is ExitKind.TERMINATED
    with pytest.raises(ConnectionResetError):
        await unanswered
    await never_begun  # it has ended: nothing is left to wait for
    assert [one.incarnation for one in (first, second, third, fourth)] == [1, 2, 3, 4]


async def test_a_fault_between_two_requests_ends_it_whatever_it_is_doing(
    make_supervisor: MakeSupervisor, script: testing.Script, kind: dict[str, Any]
) -> None:
    supervisor = await make_supervisor()
    again = {"restart": Restart.ALWAYS, "restart_delay": 0, "max_restarts": None}
    handle, incarnation = await started(supervisor, script, **again, **kind)
    for number in range(2, 20):
        await incarnation.call(os.getpid)
        testing.raise_in(handle, ConnectionResetError("not the channel's"))
        exit = await handle.wait_for_exit()
        assert exit.error is not None and "ConnectionResetError: not the channel's" in exit.error
        incarnation = await script.wait_for_incarnation()
        assert incarnation.incarnation == number


async def test_it_stops_as_every_worker_does_unless_it_is_told_not_to(
    supervisor: aiobgw.Supervisor, script: testing.Script, kind: dict[str, Any]
) -> None:
    handle, _ = await started(supervisor, script, **kind)
    handle.terminate()
    assert (await ended(handle)).kind is ExitKind.TERMINATED

    for request, argument in (("ignore", signal.SIGTERM), ("sleep_in_c", 3600)):
        handle, incarnation = await started(supervisor, script, stop_timeout=0.1, **kind)
        child = await incarnation.start_child()
        await getattr(incarnation, request)(argument)
        handle.terminate()
        exit = await ended(handle)
        assert (exit.kind, exit.signal) == (ExitKind.FAILED, signal.SIGKILL)
        assert not procs.wait_dead({child})

    handle, incarnation = await started(supervisor, script, **kind)
    await incarnation.sleep_in_c(3600)
    testing.kill(handle, signal.SIGQUIT)
    assert (await ended(handle)).signal == signal.SIGQUIT

    handle, incarnation = await started(supervisor, script, **kind)
    incarnation.sleep_in_c(0.001)
    assert await incarnation.call(os.getpid) == incarnation.pid
    handle.terminate()
    assert (await ended(handle)).kind is ExitKind.TERMINATED


async def test_a_child_outlives_its_worker_and_ends_with_its_group(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    handle, incarnation = await started(supervisor, script)
    child = await incarnation.start_child()
    assert os.getpgid(child) == incarnation.pid
    assert procs.is_alive(child)
    incarnation.exit(1)
    await handle
    assert not procs.wait_dead({child})


async def test_one_script_serves_several_workers_and_waits_for_each_by_its_name(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    waiting = asyncio.ensure_future(script.wait_for_incarnation("b"))
    a = await supervisor.register(script.spec("a"))
    b = await supervisor.register(script.spec("b", kind="async"))
    of_b, of_a = await waiting, await script.wait_for_incarnation("a")
    assert [of_a.pid, of_b.pid] == [a.status().pid, b.status().pid]
    waiting = asyncio.ensure_future(script.wait_for_incarnation())
    c = await supervisor.register(script.spec("c"))
    assert (await waiting).pid == c.status().pid


async def test_without_its_test_a_worker_returns(
    supervisor: aiobgw.Supervisor, kind: dict[str, Any]
) -> None:
    async with testing.Script() as script:
        handle, incarnation = await started(supervisor, script, **kind)
        asleep, other = await started(supervisor, script, **kind)
        unanswered = other.call("time:sleep", 0.05)
        late = script.spec(**kind)
    for one in (handle, asleep, await supervisor.register(late)):
        assert (await ended(one)).kind is ExitKind.CLEAN
    with pytest.raises(ConnectionResetError):
        await unanswered
    with pytest.raises(ConnectionResetError):
        await incarnation.call(os.getpid)


STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
    end.connect(sys.argv[1].replace("@", chr(0)))
    print(end.recv(100))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_processes_of_other_users_are_not_heard(
    supervisor: aiobgw.Supervisor, script: testing.Script
) -> None:
    address = str(script.spec().args[0]).replace("\0", "@")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STRANGER, address, stdout=subprocess.PIPE
    )
    assert (await process.communicate())[0] == b"b''\n"

    # A worker of another user would get nowhere, either, and does not obey others than root.
    handle = await supervisor.register(script.spec(user=65534, restart=Restart.NEVER))
    assert (await ended(handle)).kind is ExitKind.CLEAN
    assert not script._incarnations


async def test_what_tests_add_to_a_worker_is_small(anyio_backend: Any) -> None:
    source = f"""
import _socket, sys
sys.path.insert(0, {os.fspath(procs.ROOT)!r})
import aiobgw._process.zygote_main, aiobgw._worker.main
before = set(sys.modules)
import aiobgw.testing.inside, aiobgw.testing.scripted
print(*sorted(set(sys.modules) - before))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", source, stdout=subprocess.PIPE
    )
    assert (await process.communicate())[0].decode().split() == [
        "aiobgw._ipc.rundir",
        "aiobgw.testing",
        "aiobgw.testing.inside",
        "aiobgw.testing.scripted",
        "aiobgw.testing.wire",
    ]
