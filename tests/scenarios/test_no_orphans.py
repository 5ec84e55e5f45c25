"""No orphan, ever: whoever dies, and however."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import WorkerSpec

from .. import procs, targets
from ..conftest import MakeSupervisor

HOST = """
import asyncio, json, os, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    supervisor = aiobgw.Supervisor(name="host", spares=2, max_workers=128, **{options})
    async with supervisor:
        handles = []
        for spec in {specs}:
            handles.append(await supervisor.register(WorkerSpec(**spec)))
        for handle in handles:
            await handle.wait_for_startup()
        {before}
        pids = [handle.status().pid for handle in handles]
        print(json.dumps({{"pids": pids, "zygote": supervisor.status().zygote_pid}}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        {after}
        await asyncio.sleep(3600)

asyncio.run(main())
"""

THIRDS = ["tests.targets:sleep", "tests.targets:spin", "tests.targets:ignore_term"]
HUNDRED = [{"name": f"w{n}", "target": THIRDS[n % 3]} for n in range(100)]


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop_of_the_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host that dies here runs on asyncio, and on uvloop."""
    monkeypatch.setenv("AIOBGW_TEST_LOOP", request.param)


SPARES_ARE_THERE = "while supervisor.status().spares < 2: await asyncio.sleep(0.01)"


class Host:
    """A host process with a supervisor, and everything that lives below it."""

    def __init__(
        self, specs: list[dict[str, Any]], before: str = "pass", after: str = "pass", **options: Any
    ) -> None:
        source = HOST.format(specs=repr(specs), before=before, after=after, options=repr(options))
        self.process = procs.start_script(source)
        assert self.process.stdout is not None
        line = json.loads(self.process.stdout.readline())
        self.workers: set[int] = set(line["pids"])
        self.zygote: int = line["zygote"]
        self.all = procs.descendants(self.process.pid) | self.workers | {self.zygote}

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.process.send_signal(signum)

    def go_on(self) -> None:
        """Let the host do its last step."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def test_kill_9_of_the_supervisor_ends_a_hundred_workers_within_a_second() -> None:
    host = Host(HUNDRED, before=SPARES_ARE_THERE)
    assert len(host.workers) == 100
    assert len(host.all) == 103, "zygote and spares count, too"
    host.kill()
    assert not procs.wait_dead(host.all, 1.0)
    host.close()


@pytest.mark.parametrize("reaper", ["kernel", "zygote"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_any_violent_death_of_the_supervisor_ends_everybody(signum: int, reaper: str) -> None:
    host = Host(HUNDRED[:6], reaper=reaper)
    host.kill(signum)
    assert not procs.wait_dead(host.all, 1.0)
    host.close()


def test_workers_of_a_dead_zygote_end_with_the_supervisor() -> None:
    host = Host(HUNDRED[:9])
    os.kill(host.zygote, signal.SIGKILL)
    assert not procs.wait_dead({host.zygote}, 1.0)
    everybody = host.workers | procs.descendants(host.process.pid)
    host.kill()
    assert not procs.wait_dead(everybody, 1.0)
    host.close()


def test_a_stopped_zygote_and_stopped_workers_end_with_the_supervisor() -> None:
    host = Host(HUNDRED[:3])
    for pid in host.workers | {host.zygote}:
        os.kill(pid, signal.SIGSTOP)
    host.kill()
    assert not procs.wait_dead(host.all, 1.0)
    host.close()


COMMANDS = [
    {"name": "plain", "command": ["/bin/sleep", "3600"]},
    {"name": "group", "command": ["/bin/sh", "-c", "sleep 3600 & sleep 3600 & wait"]},
    {
        "name": "closes",
        "command": [
            sys.executable,
            "-c",
            "import os, time; os.closerange(0, 1000)\nwhile True: time.sleep(3600)",
        ],
    },
    {
        "name": "ignores",
        "command": ["/bin/sh", "-c", "trap '' TERM HUP INT QUIT; while :; do sleep 1; done"],
    },
]


def test_commands_and_their_groups_end_with_the_supervisor() -> None:
    host = Host(COMMANDS)
    _until_closed(host)
    host.kill()
    assert not procs.wait_dead(host.all | procs.descendants(host.process.pid), 1.0)
    host.close()


def _until_closed(host: Host) -> None:
    """Wait until the one command has closed its descriptors."""
    give_up = time.monotonic() + 10
    for pid in host.workers:
        while "closerange" in procs.title(pid) and os.listdir(f"/proc/{pid}/fd"):
            assert time.monotonic() < give_up
            time.sleep(0.01)


def test_a_python_worker_that_closes_everything_is_ended_by_the_second_line() -> None:
    host = Host([{"name": "w", "target": "tests.scenarios.test_no_orphans:close_everything"}])
    (worker,) = host.workers
    give_up = time.monotonic() + 5
    while os.listdir(f"/proc/{worker}/fd"):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    host.kill()
    assert not procs.wait_dead(host.all, 1.0)
    host.close()


@pytest.mark.parametrize("reaper", ["kernel", "zygote"])
def test_the_second_line_overlooks_nobody_while_others_end(reaper: str) -> None:
    """The kernel's list of children leaves out some while others exit."""
    bare = "tests.scenarios.test_no_orphans:close_everything"
    host = Host(
        [
            {"name": f"w{number}", "target": bare if number % 5 == 0 else "tests.targets:sleep"}
            for number in range(100)
        ],
        reaper=reaper,
    )
    give_up = time.monotonic() + 10
    while sum(not os.listdir(f"/proc/{worker}/fd") for worker in host.workers) < 20:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    host.kill()
    assert not procs.wait_dead(host.all, 5.0)
    host.close()


def close_everything() -> None:
    os.closerange(0, 1000)
    while True:
        time.sleep(3600)


FORKS = {
    "multiprocessing": "import multiprocessing, time; multiprocessing.get_context('fork')"
    ".Process(target=time.sleep, args=(3600,)).start()",
    "os.fork": "import time; os.fork() or (time.sleep(3600), os._exit(0))",
}


@pytest.mark.parametrize("how", sorted(FORKS))
def test_a_fork_of_the_host_does_not_hide_its_death(how: str) -> None:
    host = Host(HUNDRED[:6], before=FORKS[how])
    (fork,) = procs.children(host.process.pid) - {host.zygote}
    ours = host.all - {fork}
    host.kill()
    assert not procs.wait_dead(ours, 1.0)
    assert procs.is_alive(fork), "the fork itself is the host's own business"
    os.kill(fork, signal.SIGKILL)
    host.close()


def test_execv_of_the_host_ends_all_workers() -> None:
    host = Host(HUNDRED[:6], after="os.execv('/bin/sleep', ['sleep', '3600'])")
    host.go_on()
    assert not procs.wait_dead(host.all, 2.0)
    assert procs.is_alive(host.process.pid)
    host.close()


@pytest.mark.anyio
async def test_everything_raises_wrong_process_in_a_fork(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(spares=1)
    handle = await supervisor.register(WorkerSpec(name="w", target=targets.sleep))
    status = await handle.wait_for_startup()
    out = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        out.write_text(json.dumps(_in_the_fork(supervisor, handle)))
        os._exit(0)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - the fork ends by itself
    raised, kept = json.loads(out.read_text())
    assert raised == ["WrongProcess"] * 8
    assert not [what for what in kept if "pidfd" in what or "memfd:aiobgw" in what]
    assert procs.is_alive(status.pid or 0)
    assert handle.status() == status


def _in_the_fork(
    supervisor: aiobgw.Supervisor, handle: aiobgw.WorkerHandle
) -> tuple[list[str], list[str]]:
    raised = []
    for attempt in (
        supervisor.status,
        supervisor.handles,
        supervisor.events,
        lambda: supervisor.get("w"),
        handle.status,
        handle.terminate,
        handle.kill,
        lambda: supervisor.terminate_where(lambda worker: True),
    ):
        try:
            attempt()
        except Exception as error:
            raised.append(type(error).__name__)
        else:
            raised.append("nothing")
    supervisor.abandon()
    return raised, list(procs.open_fds().values())


def test_a_worker_that_is_forked_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = f"""
import asyncio, aiobgw
async def main():
    async with aiobgw.Supervisor(name="f", spares=0) as supervisor:
        spec = aiobgw.WorkerSpec(
            name="w", target="tests.scenarios.test_no_orphans:fork_and_ask", args=({str(out)!r},)
        )
        (await (await supervisor.register(spec))).check()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", source], cwd=procs.ROOT, check=True, timeout=30)
    assert out.read_text() == "WrongProcess\n"


def fork_and_ask(path: str) -> None:
    child = multiprocessing.get_context("fork").Process(target=ask, args=(path,))
    child.start()
    child.join()


def ask(path: str) -> None:
    try:
        aiobgw.current_worker()
    except aiobgw.WrongProcess:
        targets.write(path, "WrongProcess")


STORM = """
import asyncio, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    supervisor = aiobgw.Supervisor(name="storm", spares=2, max_workers=400)
    async with supervisor:
        print(supervisor.status().zygote_pid, flush=True)
        for number in range(400):
            target = ["tests.targets:sleep", "tests.targets:spin"][number % 2]
            await supervisor.register(WorkerSpec(name=f"w{number}", target=target))
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


@pytest.mark.parametrize("zygote_first", [False, True])
def test_kill_9_in_the_middle_of_a_storm_of_starts_leaves_nobody(zygote_first: bool) -> None:
    chance = random.Random(11)
    for _ in range(4):
        host = procs.start_script(STORM)
        assert host.stdout is not None
        zygote = int(host.stdout.readline())
        procs.wait_dead({host.pid}, 0.02 + chance.random() * 0.25)  # a moment, at random
        everybody = procs.descendants(host.pid)
        if zygote_first:
            os.kill(zygote, signal.SIGKILL)
        host.kill()
        everybody |= procs.children() - {host.pid}
        host.communicate()
        everybody |= procs.children()
        assert not procs.wait_dead(everybody, 1.0)


GATED = """
import asyncio, os, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    token = sys.argv[1]
    os.environ["AIOBGW_INJECT"] = sys.argv[2]
    async with aiobgw.Supervisor(name="gated", spares=0) as supervisor:
        open(token, "w").close()
        handle = await supervisor.register(WorkerSpec(name="w", target="tests.targets:sleep"))
        while os.path.exists(token):
            await asyncio.sleep(0.001)
        print(supervisor.status().zygote_pid, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["after_fork", "before_hello", "before_started"])
@pytest.mark.parametrize("zygote_first", [False, True])
def test_a_worker_that_is_not_armed_yet_ends_when_it_finds_nobody(
    tmp_path: Path, where: str, zygote_first: bool
) -> None:
    gate, token = tmp_path / "gate", tmp_path / "token"
    os.mkfifo(gate)
    host = procs.start_script(GATED, str(token), f"{where}:wait={gate}@{token}")
    assert host.stdout is not None
    zygote = int(host.stdout.readline())
    (worker,) = procs.children(zygote)
    if zygote_first:
        os.kill(zygote, signal.SIGKILL)
        procs.wait_dead({zygote})
    host.kill()
    host.wait()
    try:  # let it go on, if it is still there
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        pass
    assert not procs.wait_dead({worker, zygote}, 1.0)
    host.communicate()
