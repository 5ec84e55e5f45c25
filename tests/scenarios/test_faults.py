"""Faults on the way to a start: told, survived, and nobody else's business."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import NeverStarted, Restart, WorkerSpec, WorkerState
from aiobgw._ipc.channel import Channel

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def replaced_zygote(supervisor: aiobgw.Supervisor) -> None:
    """Have a new zygote, which reads the environment of this moment."""
    events = supervisor.events()
    procs.kill(supervisor.status().zygote_pid)
    async for event in events:
        if isinstance(event, aiobgw.ZygoteRestarted):
            return


async def test_a_failed_fork_ends_a_worker_that_is_never_restarted(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(max_workers=1)
    token = tmp_path / "token"
    monkeypatch.setenv("AIOBGW_INJECT", f"fork:fail=11@{token}")
    await replaced_zygote(supervisor)
    token.touch()
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.nothing, restart=Restart.NEVER)
    )
    with pytest.raises(NeverStarted, match="Resource temporarily unavailable"):
        await handle.wait_for_startup()
    assert await handle is None
    again = await supervisor.register(WorkerSpec(name="w", target=targets.nothing))
    exit = await again
    assert exit is not None
    exit.check()


async def test_a_failed_fork_of_a_restartable_worker_is_tried_again_and_holds_up_nobody(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("aiobgw._policy.ending.launch_delay", lambda failures: 0.2)
    supervisor = await make_supervisor()
    token = tmp_path / "token"
    monkeypatch.setenv("AIOBGW_INJECT", f"fork:fail=12@{token}")
    await replaced_zygote(supervisor)
    token.touch()
    handle = await supervisor.register(WorkerSpec(name="w", target=targets.sleep))
    waiting = asyncio.ensure_future(handle.wait_for_startup())
    other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep))
    await other.wait_for_startup()
    status = handle.status()
    assert status.state is WorkerState.NOT_STARTED
    assert "Cannot allocate memory" in status.reason
    assert status.next_start_at is not None
    assert (await waiting).incarnation == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_launches_wait_while_there_are_no_descriptors(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    supervisor = await make_supervisor()
    tries = 0
    pair = Channel.pair

    def scarce() -> Any:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise OSError(number, os.strerror(number))
        return pair()

    monkeypatch.setattr(Channel, "pair", scarce)
    handles = [
        await supervisor.register(WorkerSpec(name=f"w{n}", target=targets.nothing))
        for n in range(3)
    ]
    for exit in await asyncio.gather(*handles):
        assert exit is not None
        exit.check()
    told = [record for record in caplog.records if "launches wait" in record.message]
    assert len(told) == 1


async def test_a_handler_that_fails_is_called_again_and_its_exit_not_missed(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiobgw._process.child import Child

    supervisor = await make_supervisor()
    find_status = Child.find_status
    failures = iter([MemoryError, MemoryError])

    def scarce(self: Child) -> int | None:
        for failure in failures:
            raise failure
        return find_status(self)

    monkeypatch.setattr(Child, "find_status", scarce)
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.exit_with, args=(4,), restart=Restart.NEVER)
    )
    exit = await handle
    assert exit is not None
    assert exit.code == 4


async def test_an_action_that_fails_is_left_for_a_later_turn(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiobgw._supervisor.effects import Effects

    supervisor = await make_supervisor()
    order = Effects._order
    failures = iter([MemoryError])

    def scarce(self: Effects, worker: Any) -> Any:
        for failure in failures:
            raise failure
        return order(self, worker)

    monkeypatch.setattr(Effects, "_order", scarce)
    handle = await supervisor.register(WorkerSpec(name="w", target=targets.nothing))
    exit = await handle
    assert exit is not None
    exit.check()


async def test_the_reap_between_two_looks_does_not_lose_the_status(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiobgw._process import exits

    supervisor = await make_supervisor(reaper="kernel")
    handle = await supervisor.register(
        WorkerSpec(name="w", target=targets.sleep, restart=Restart.NEVER)
    )
    await handle.wait_for_startup()
    reaped, zombie, asked = exits.reaped_status, exits.zombie_status, []

    def too_early(pidfd: int) -> int | None:
        asked.append(pidfd)
        return None if len(asked) == 1 else reaped(pidfd)

    def too_late(pid: int, pidfd: int) -> int | None:
        while exits.is_unreaped(pidfd):
            pass
        return zombie(pid, pidfd)

    monkeypatch.setattr(exits, "reaped_status", too_early)
    monkeypatch.setattr(exits, "zombie_status", too_late)
    handle.signal(signal.SIGKILL)
    exit = await handle
    assert exit is not None
    assert exit.signal == signal.SIGKILL
