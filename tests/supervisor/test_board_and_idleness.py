"""What the board says, and that an idle supervisor does nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import aiobgw
from aiobgw import Flags, Restart, WorkerSpec, WorkerState
from aiobgw._ipc.board import BoardReader
from aiobgw._ipc.record import unpack_status

from .. import procs, targets
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio


async def test_the_board_says_what_the_supervisor_knows(make_supervisor: MakeSupervisor) -> None:
    supervisor = await make_supervisor(max_workers=8, start_phase=aiobgw.Phase.SUPERVISOR_START)
    reader = BoardReader(supervisor._core.outside.share_board())
    assert (reader.epoch, reader.slots) == (supervisor.epoch, 8)
    early = aiobgw.Phase.SUPERVISOR_START
    specs = [
        WorkerSpec(name="gated", target=targets.sleep),
        WorkerSpec(name="up", target=targets.sleep, start_when=early, type="kind"),
        WorkerSpec(name="waits", target=targets.fail, start_when=early, restart_delay=3600),
        WorkerSpec(name="over", target=targets.fail, start_when=early, restart=Restart.NEVER),
    ]
    handles = [await supervisor.register(spec) for spec in specs]
    await handles[1].wait_for_startup()
    for handle in handles[2:]:
        await handle.wait_for_exit()
    for handle in handles:
        told = unpack_status(handle.slot, reader.read(handle.slot))
        assert told == handle.status()
    states = [handle.status().state for handle in handles]
    assert states == [
        WorkerState.NOT_STARTED,
        WorkerState.RUNNING,
        WorkerState.BACKOFF,
        WorkerState.STOPPED,
    ]
    await supervisor.shutdown()
    last = unpack_status(1, reader.read(1))  # a board survives its supervisor
    assert last.state is WorkerState.STOPPED
    reader.close()


def read_board(path: str) -> None:
    """Read the own record, which is on the board, and see that it is a real one."""
    worker = aiobgw.current_worker()
    status = next(one for one in worker.status().workers if one.slot == worker.slot)
    boards = [
        fd
        for fd in map(int, os.listdir("/proc/self/fd"))
        if "memfd:aiobgw-board" in procs.open_fds().get(fd, "")
    ]
    told = (status.name, status.generation == worker.generation, len(boards))
    targets.write(path, repr(told))


async def test_a_worker_with_shmem_access_has_the_board(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    out = tmp_path / "out"
    handle = await supervisor.register(
        WorkerSpec(name="reader", target=read_board, args=(str(out),), flags=Flags.SHMEM_ACCESS)
    )
    exit = await handle
    assert exit is not None
    exit.check()
    assert out.read_text() == "('reader', True, 1)\n"


IDLE = """
import asyncio, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    async with aiobgw.Supervisor(name="idle", spares=2) as supervisor:
        targets = ["tests.targets:sleep", "tests.targets:sleep_async"]
        handles = [
            await supervisor.register(WorkerSpec(name=f"w{n}", target=targets[n % 2]))
            for n in range(10)
        ]
        for handle in handles:
            await handle.wait_for_startup()
        while supervisor.status().spares < 2:
            await asyncio.sleep(0.01)
        print("idle", flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


def switches(pid: int) -> int:
    """Return how often a process has gone to sleep: each wake-up ends in one."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("voluntary_ctxt_switches:")[2].split()[0])


def test_an_idle_supervisor_and_its_zygote_do_not_wake_up() -> None:
    host = procs.start_script(IDLE)
    assert host.stdout is not None
    assert host.stdout.readline() == "idle\n"
    everybody = {host.pid} | procs.descendants(host.pid)
    assert len(everybody) == 14  # host, zygote, ten workers, two spares
    time.sleep(0.3)  # what they do at first is over
    before = {pid: switches(pid) for pid in everybody}
    time.sleep(1.0)  # not a synchronisation: the time in which nothing shall happen
    assert {pid: switches(pid) for pid in everybody} == before
    host.kill()
    host.communicate()
