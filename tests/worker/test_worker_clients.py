"""Workers with SHMEM_ACCESS, which are clients of their own supervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Flags, Restart, WorkerSpec

from .. import client_targets, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def run(
    supervisor: aiobgw.Supervisor, target: Any, *args: object, flags: Flags = Flags.SHMEM_ACCESS
) -> None:
    """Run a target to its end, which must be a good one."""
    handle = await supervisor.register(
        WorkerSpec(name="parent", target=target, args=args, flags=flags, restart=Restart.NEVER)
    )
    exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.CLEAN, exit.error


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_async_worker_registers_waits_and_looks(
    supervisor: aiobgw.Supervisor, tmp_path: Path, loop: str
) -> None:
    out = tmp_path / "out"
    handle = await supervisor.register(
        WorkerSpec(
            name="parent",
            target=client_targets.use_the_client,
            args=(str(out),),
            flags=Flags.SHMEM_ACCESS,
            restart=Restart.NEVER,
            loop=loop,
        )
    )
    exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.CLEAN, exit.error
    assert json.loads(out.read_text()) == {**WHAT_BOTH_FIND, "kind": "WorkerHandle"}


WHAT_BOTH_FIND = {
    "alive": True,
    "handles": ["parent", "child"],
    "by name": True,
    "by token": True,
    "nobody": None,
    "status": ["parent", "child"],
    "supervisor": "test",
    "exit": "terminated",
}


async def test_a_plain_worker_registers_waits_and_looks(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await run(supervisor, client_targets.use_the_blocking_client, str(out))
    assert json.loads(out.read_text()) == {**WHAT_BOTH_FIND, "kind": "BlockingHandle"}


async def test_a_worker_without_the_flag_is_not_attached_and_told_how(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await run(supervisor, client_targets.use_no_client, str(out), flags=Flags.NONE)
    refusals = json.loads(out.read_text())
    assert refusals == [["NotAttached", "hint: register it with flags=Flags.SHMEM_ACCESS"]] * 3


async def test_only_a_worker_with_the_flag_has_one_descriptor_more(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    found = []
    for flags in (Flags.NONE, Flags.SHMEM_ACCESS):
        out = tmp_path / str(int(flags))
        await run(supervisor, targets.fds, str(out), flags=flags)
        lines = out.read_text().splitlines()
        found.append(sorted(line.split(" ", 1)[1].split(":")[0] for line in lines))
    without, with_it = found
    with_it.remove("socket")
    assert with_it == without


@pytest.mark.parametrize("attached", [True, False])
async def test_a_fork_of_a_worker_may_not_use_what_is_the_workers(
    supervisor: aiobgw.Supervisor, tmp_path: Path, attached: bool
) -> None:
    out = tmp_path / "out"
    await run(supervisor, client_targets.use_it_in_a_fork, str(out), attached)
    found = json.loads(out.read_text())
    assert set(found["fork"]) == {"WrongProcess"}
    assert len(found["fork"]) == (6 if attached else 3)
    assert found["here"] == ["parent"], "the worker itself goes on"


async def test_a_worker_registers_a_worker_that_registers_a_worker(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    await run(supervisor, client_targets.breed, str(out), 3)
    assert out.read_text().splitlines() == [
        "generation 0: parent, generation 2, generation 1, generation 0",
        "generation 1: parent, generation 2, generation 1",
        "generation 2: parent, generation 2",
        "parent: parent",
    ]


async def test_what_a_worker_registered_does_not_end_with_it(
    supervisor: aiobgw.Supervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stream = supervisor.events()
    await run(supervisor, client_targets.leave_one_behind, str(out))
    async for event in stream:
        if isinstance(event, aiobgw.Retired) and event.status.name == "left":
            break
    assert out.read_text() == "ran\n"


async def test_a_worker_is_a_client_in_every_life_and_none_of_the_limit(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(runtime_dir=str(tmp_path / "run"), max_clients=1)
    async with aiobgw.attach(tmp_path / "run") as client:
        for number in range(3):
            out = tmp_path / f"out{number}"
            await run(supervisor, client_targets.use_the_client, str(out))
            assert json.loads(out.read_text())["exit"] == "terminated"
        assert client.handles() == []
        with pytest.raises(aiobgw.AccessDenied, match="all 1 places"):
            await aiobgw.attach(tmp_path / "run").__aenter__()


async def test_a_worker_may_not_say_that_it_is_somebody_elses(
    supervisor: aiobgw.Supervisor,
) -> None:
    """SHMEM_ACCESS and another user do not go together: the channel may do everything."""
    with pytest.raises(aiobgw.InvalidSpec, match="user"):
        WorkerSpec(name="w", target=targets.nothing, user=65534, flags=Flags.SHMEM_ACCESS)


async def test_a_worker_with_the_flag_whose_launch_fails_leaves_no_channel(
    supervisor: aiobgw.Supervisor,
) -> None:
    for _ in range(3):
        handle = await supervisor.register(
            WorkerSpec(
                name="bad",
                target="tests.client_targets:missing",
                flags=Flags.SHMEM_ACCESS,
                restart=Restart.NEVER,
            )
        )
        exit = await handle
        assert exit is not None
        assert exit.kind is ExitKind.FAILED
    stream = supervisor.events()
    await run(supervisor, targets.nothing)
    async for event in stream:
        if isinstance(event, aiobgw.Retired):
            break
    peers = supervisor._core.outside._peers
    assert peers is not None
    assert len(peers._peers) <= 1, "the channels of ended workers are closed by their EOF"
