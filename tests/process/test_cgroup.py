"""Cgroups: nothing gets out of them, nothing is left of them, and limits that cannot be had."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Restart, WorkerSpec, WorkerState
from aiobgw._process import cgroup
from aiobgw._process.cgroup import CannotLimit
from aiobgw._supervisor import cgroups
from aiobgw.testing import FakeLauncher

from .. import limit_targets, procs, targets
from ..conftest import MakeSupervisor
from ..limit_targets import Report, what_runs

pytestmark = pytest.mark.anyio

CONTROLLER, LIMIT = "hugetlb", "hugetlb.2MB.max"


def _mounted() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if "cgroup2" in fields[fields.index("-") :]:
            return Path(fields[4])
    return None


def _why_not() -> str:
    """Return why there can be no cgroup of our own here; "" if there can."""
    mounted = _mounted()
    if mounted is None:
        return "cgroup v2 is not mounted"
    try:
        probe = mounted / f"aiobgw-probe-{os.getpid()}"
        probe.mkdir()
    except OSError as error:
        return f"no cgroup can be made in {mounted}: {error.strerror}"
    found = (probe / "cgroup.kill").exists()
    probe.rmdir()
    return "" if found else "there is no cgroup.kill: needs Linux 5.14"


WHY_NOT = _why_not()
real = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup of our own, as if it were delegated; a test leaves nothing in it."""
    mounted = _mounted()
    assert mounted is not None
    path = mounted / f"test-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    yield path
    left = inside(path)
    (path / "cgroup.kill").write_text("1")
    give_up = time.monotonic() + 5
    parent = os.open(mounted, os.O_RDONLY)
    while not cgroup.remove(path.name, parent) and time.monotonic() < give_up:
        time.sleep(0.01)
    os.close(parent)
    assert not left, "cgroups left behind"


def inside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def workers_of(path: Path) -> list[str]:
    """Return the names of the workers' cgroups in the only supervisor's directory."""
    (own,) = inside(path)
    return inside(path / own)


async def run(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.ExitStatus:
    handle = await started(supervisor, **options)
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    return exit


async def started(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.WorkerHandle:
    options.setdefault("name", "worker")
    options.setdefault("restart", Restart.NEVER)
    options.setdefault("cgroup", {})
    return await supervisor.register(WorkerSpec(**options))


async def until(condition: Callable[[], object]) -> None:
    """Poll for what nobody tells."""
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


async def written(path: Path) -> int:
    """Wait until a worker has written a number; files cannot be awaited."""
    await until(path.exists)
    return _number(path)


def _number(path: Path) -> int:
    return int(path.read_text())


# Workers in the real hierarchy.


@real
async def test_a_worker_has_a_cgroup_of_its_own_from_its_first_line(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated, spares=1)
    (own,) = inside(delegated)
    assert own == f"aiobgw-test-{supervisor.epoch:016x}"
    for number, kind in enumerate(limit_targets.KINDS, 1):
        path = tmp_path / kind
        (await run(supervisor, **what_runs(kind, path))).check()
        seen = Report(path).cgroup
        assert seen.endswith(f"/{delegated.name}/{own}/worker-0-{number}-{number}")
    (await run(supervisor, **what_runs("plain", tmp_path / "none"), cgroup=None)).check()
    assert Report(tmp_path / "none").cgroup == _own_cgroup(), "only who asks for one"
    await supervisor.shutdown()
    assert not inside(delegated)


def _own_cgroup() -> str:
    (line,) = (x for x in Path("/proc/self/cgroup").read_text().splitlines() if x[:3] == "0::")
    return line[3:]


@real
async def test_s13_a_worker_keeps_no_way_to_its_cgroup(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    path = tmp_path / "fds"
    options: dict[str, Any] = {"target": limit_targets.descriptors, "args": (str(path),)}
    (await run(supervisor, **options)).check()
    found = json.loads(path.read_text())["descriptors"]
    assert sorted(what.split(":")[0] for what in found[3:]) == ["pipe", "socket"]


@real
@pytest.mark.parametrize("how", ["it ends", "it is killed", "it does not stop", "stop"])
async def test_sessions_that_a_worker_has_started_end_with_it(
    delegated: Path,
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
    reaper: str,
) -> None:
    """Whatever ends a group ends the cgroup; that it is also ended when it is removed does not
    count here."""
    monkeypatch.setattr(cgroups.Cgroups, "leave", lambda *_: None)
    supervisor = await make_supervisor(cgroup=delegated, reaper=reaper)
    path = tmp_path / "pid"
    ends = how == "it ends"
    target = limit_targets.leave_a_session if ends else limit_targets.stay_with_a_session
    handle = await started(supervisor, target=target, args=(str(path),), stop_timeout=0.1)
    left = await written(path)
    if how == "it is killed":
        handle.kill()
    elif how == "it does not stop":
        handle.terminate()
    elif how == "stop":
        await supervisor.shutdown()
    await handle.wait_for_shutdown()
    assert not procs.wait_dead({left}, 1.0)
    await supervisor.shutdown()
    assert not inside(delegated)


@real
async def test_without_a_cgroup_such_a_session_outlives_its_worker(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    """Guard the test above: it must show what only a cgroup does."""
    supervisor = await make_supervisor()
    path = tmp_path / "pid"
    options: dict[str, Any] = {"target": limit_targets.leave_a_session, "args": (str(path),)}
    (await run(supervisor, cgroup=None, **options)).check()
    left = await written(path)
    assert procs.is_alive(left)
    os.kill(left, signal.SIGKILL)


@real
async def test_a_fork_of_the_host_touches_no_cgroup(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    handle = await started(supervisor, target=targets.sleep)
    await handle.wait_for_startup()
    out = tmp_path / "fds"
    pid = os.fork()
    if pid == 0:
        supervisor.abandon()
        out.write_text("\n".join(procs.open_fds().values()))
        os._exit(0)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - the fork ends by itself
    assert delegated.name not in out.read_text()
    assert procs.is_alive(handle.status().pid or 0)
    assert workers_of(delegated) == ["worker-0-1-1"]


@real
async def test_each_incarnation_has_a_new_cgroup_and_the_old_one_goes(
    delegated: Path, make_supervisor: MakeSupervisor
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    handle = await started(supervisor, target=targets.sleep, restart=Restart.ALWAYS)
    await handle.wait_for_startup()
    for number in range(1, 4):
        assert workers_of(delegated) == [f"worker-0-1-{number}"]
        # It has entered, so that nobody here needs the way to it.
        assert not [what for what in procs.open_fds().values() if what.endswith("cgroup.procs")]
        before = handle.status().incarnation
        handle.restart()
        await until(
            lambda before=before: handle.status().incarnation > before and handle.status().ready
        )
    assert workers_of(delegated) == ["worker-0-1-4"]


@real
async def test_who_waits_for_its_next_start_has_no_cgroup(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    path = tmp_path / "pid"
    handle = await started(
        supervisor,
        target=fail_with_a_session,
        args=(str(path),),
        restart=Restart.ON_FAILURE,
        restart_delay=60,
    )
    await handle.wait_for_exit()
    assert not procs.wait_dead({await written(path)}, 1.0)
    await until(lambda: not workers_of(delegated))
    assert handle.status().state is WorkerState.BACKOFF


def fail_with_a_session(path: str) -> None:
    limit_targets.leave_a_session(path)
    raise ValueError("as asked")


def build_a_nest(path: str) -> None:
    """Make cgroups in one's own, as a container engine does, and leave somebody in there."""
    (line,) = (x for x in Path("/proc/self/cgroup").read_text().splitlines() if x[:3] == "0::")
    own = Path(str(_mounted()) + line[3:])
    (own / "outer").mkdir()
    (own / "outer" / "inner").mkdir()
    limit_targets.leave_a_session(f"{path}.pid")
    (own / "outer" / "inner" / "cgroup.procs").write_text(Path(f"{path}.pid").read_text())
    os.rename(f"{path}.pid", path)


@real
@as_root
async def test_cgroups_that_a_worker_has_made_in_its_own_go_with_it(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    path = tmp_path / "pid"
    (await run(supervisor, target=build_a_nest, args=(str(path),))).check()
    assert not procs.wait_dead({await written(path)}, 1.0)
    await supervisor.shutdown()
    assert not inside(delegated)


@real
async def test_what_holds_on_does_not_hold_up_a_stop_for_ever(
    delegated: Path,
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_TIMEOUT", 0.05)
    monkeypatch.setattr(cgroup, "remove", lambda name, parent: False)
    supervisor = await make_supervisor(cgroup=delegated)
    (await run(supervisor, target=targets.nothing)).check()
    await supervisor.shutdown()
    monkeypatch.undo()
    lines = [line for line in caplog.messages if "cannot be removed" in line]
    assert len(lines) == 2, "the worker's, and the supervisor's own, once each"
    _remove_all(delegated)


def _remove_all(delegated: Path) -> None:
    parent = os.open(delegated, os.O_RDONLY)
    for name in inside(delegated):
        assert cgroup.remove(name, parent)
    os.close(parent)


# Whoever dies.

HOST = """
import asyncio, json, os, sys
import aiobgw
from aiobgw import WorkerSpec

async def main():
    place, out, user, where = sys.argv[1:5]
    if where:
        with open(where, "w") as file:
            file.write("0")
    place = True if place == "True" else place
    async with aiobgw.Supervisor(
        name="host", cgroup=place, preload=("tests.limit_targets",)
    ) as supervisor:
        target = "tests.limit_targets:stay_with_a_session"
        spec = WorkerSpec(
            name="w", target=target, args=(out,), cgroup={}, user=user or None,
            stop_timeout=0.1,
        )
        handle = await supervisor.register(spec)
        await handle.wait_for_startup()
        while not os.path.exists(out):
            await asyncio.sleep(0.005)
        pids = [handle.status().pid, int(open(out).read()), supervisor.status().zygote_pid]
        print(json.dumps(pids), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


class Host:
    """A process with a supervisor, a worker in a cgroup, and a session that this one left."""

    def __init__(self, place: Path | str, out: Path, user: str = "", where: str = "") -> None:
        self.process = procs.start_script(HOST, str(place), str(out), user, where)
        assert self.process.stdout is not None
        self.worker, self.left, self.zygote = json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(delegated: Path) -> Iterator[MakeHost]:
    """Start hosts, which are gone before one looks at what is left in the cgroup."""
    hosts: list[Host] = []

    def make(*arguments: Any, **options: Any) -> Host:
        hosts.append(Host(*arguments, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@real
@as_root
@pytest.mark.parametrize("user", ["", "nobody"])
def test_kill_9_of_the_supervisor_leaves_no_session_and_no_cgroup(
    delegated: Path, make_host: MakeHost, user: str
) -> None:
    with limit_targets.directory_for_all() as place:
        host = make_host(delegated, place / "pid", user)
    status = Path(f"/proc/{host.left}/status").read_text()
    assert f"Uid:\t{65534 if user else 0}\t" in status
    host.process.kill()
    assert not procs.wait_dead({host.worker, host.left, host.zygote}, 2.0)
    assert not inside(delegated), "the zygote has removed them"


@real
async def test_what_dead_supervisors_have_left_is_ended_by_the_next_one(
    delegated: Path, make_host: MakeHost, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    """Supervisor and zygote die at once; a living one shares the directory, and is let alone."""
    host, living = make_host(delegated, tmp_path / "a"), make_host(delegated, tmp_path / "b")
    procs.stop(host.process.pid)  # or it would replace its zygote
    for pid in (host.zygote, host.process.pid):
        os.kill(pid, signal.SIGKILL)
        assert not procs.wait_dead({pid}, 2.0)
    assert not procs.wait_dead({host.worker}, 2.0)
    assert procs.is_alive(host.left), "nobody was left to end it"

    supervisor = await make_supervisor(cgroup=delegated)
    assert not procs.wait_dead({host.left}, 2.0)
    await until(lambda: len(inside(delegated)) == 2)
    assert procs.is_alive(living.left)
    (await run(supervisor, target=targets.nothing)).check()
    await supervisor.shutdown()
    assert len(inside(delegated)) == 1
    assert living.process.stdin is not None
    living.process.stdin.close()
    assert not procs.wait_dead({living.left, living.process.pid}, 5.0)
    assert not inside(delegated)


@real
async def test_an_abandoned_supervisor_leaves_nothing(
    delegated: Path, make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    path = tmp_path / "pid"
    target = limit_targets.stay_with_a_session
    await started(supervisor, target=target, args=(str(path),))
    left = await written(path)
    supervisor.abandon()
    assert not procs.wait_dead({left}, 1.0)
    assert not inside(delegated)


@real
def test_supervisors_that_start_at_the_same_time_do_not_take_each_other_for_dead(
    delegated: Path,
) -> None:
    """Race: made, but not locked yet.  Whoever comes in between removes it; another is made."""
    parent = os.open(delegated, os.O_RDONLY)
    lock, comers = cgroups._lock, iter(["remove", "hold", "nothing"])
    held = []

    def interfere(name: str, where: int) -> int:
        what = next(comers)
        if what == "remove":
            os.rmdir(name, dir_fd=where)
        elif what == "hold":
            held.append(os.open(delegated / name, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return lock(name, where)

    cgroups._lock = interfere
    try:
        with cgroups.ExitStack() as on_failure:
            name, _ = cgroups._make_own("aiobgw-a-0000000000000001", parent, on_failure)
            assert name == "aiobgw-a-0000000000000001.2"
            assert lock(name, parent) == -1, "it is locked"
            assert cgroups._OURS.fullmatch(name)
    finally:
        cgroups._lock = lock
    os.close(held[0])
    os.rmdir(delegated / "aiobgw-a-0000000000000001.1")
    os.close(parent)
    assert not inside(delegated), "what failed is undone"


@real
def test_a_directory_that_was_made_again_is_not_the_one_that_is_locked(
    delegated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Race: removed and made again by another one, between its opening and its lock."""
    name, flock = "aiobgw-a-0000000000000001", fcntl.flock

    def lock_late(fd: int, how: int) -> None:
        (delegated / name).rmdir()
        (delegated / name).mkdir()
        flock(fd, how)

    (delegated / name).mkdir()
    parent = os.open(delegated, os.O_RDONLY)
    monkeypatch.setattr(fcntl, "flock", lock_late)
    assert cgroups._lock(name, parent) == -1
    os.close(parent)
    (delegated / name).rmdir()


# Where, and with which right.


@real
@as_root
@pytest.mark.parametrize("is_marked", [False, True])
def test_true_means_ones_own_cgroup_or_the_delegated_one_above_it(
    delegated: Path, make_host: MakeHost, tmp_path: Path, is_marked: bool
) -> None:
    """systemd marks what it delegates; DelegateSubgroup= puts the service below that."""
    if is_marked:
        os.setxattr(delegated, "user.delegate", b"1")
    leaf = delegated / "leaf"
    leaf.mkdir()
    host = make_host("True", tmp_path / "pid", where=str(leaf / "cgroup.procs"))
    found = inside(delegated if is_marked else leaf)
    assert [name for name in found if name.startswith("aiobgw-host-")]
    host.process.kill()
    assert not procs.wait_dead({host.left, host.zygote}, 2.0)
    leaf.rmdir()


UNSUPPORTED = {
    "nothing there": ("/no/such/cgroup", "cgroup: /no/such/cgroup: No such file or directory"),
    "no directory": ("/etc/passwd", "Not a directory"),
    "no cgroup": (None, "there is no cgroup.kill"),
    "another file system": ("/proc", "No such file|not permitted"),
}


@pytest.mark.parametrize("where", UNSUPPORTED)
async def test_a_place_that_is_none_is_found_at_the_start(where: str, tmp_path: Path) -> None:
    path, text = UNSUPPORTED[where]
    with pytest.raises(aiobgw.Unsupported, match=text):
        async with aiobgw.Supervisor(name="test", cgroup=path or tmp_path):
            pass
    assert not inside(tmp_path)


@real
@as_root
def test_a_place_that_is_not_ours_is_found_at_the_start(delegated: Path) -> None:
    source = f"""
import asyncio, os, sys, aiobgw, aiobgw._supervisor.supervisor, aiobgw._supervisor.cgroups
os.setresuid(65534, 65534, 65534)
settings = aiobgw._supervisor.supervisor.Settings(cgroup={str(delegated)!r})
try:
    aiobgw._supervisor.cgroups.Cgroups(settings, 1).open()
except aiobgw.Unsupported as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", source], cwd=procs.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert ran.stdout == f"cgroup: {delegated}: Permission denied\n"


@real
async def test_a_worker_that_may_not_enter_its_cgroup_does_not_run(
    delegated: Path,
    make_supervisor: MakeSupervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = await make_supervisor(cgroup=delegated)
    make = cgroup.Cgroup.make

    def make_and_remove(name: str, parent: int, limits: Any) -> cgroup.Cgroup:
        made = make(name, parent, limits)
        cgroup.remove(name, parent)
        return made

    monkeypatch.setattr(cgroup.Cgroup, "make", make_and_remove)
    path = tmp_path / "report"
    for kind in limit_targets.KINDS:
        exit = await run(supervisor, **what_runs(kind, path))
        assert (exit.kind, exit.error) == (ExitKind.FAILED, "cgroup {}: No such device")
        assert not limit_targets.has_run(path)


async def test_a_spec_with_a_cgroup_needs_a_supervisor_that_has_a_place(
    make_supervisor: MakeSupervisor,
) -> None:
    supervisor = await make_supervisor()
    with pytest.raises(aiobgw.InvalidSpec, match="cgroup: this supervisor has no place"):
        await started(supervisor, target=targets.nothing)


async def test_a_fake_launcher_touches_no_cgroup() -> None:
    launcher = FakeLauncher()
    async with aiobgw.Supervisor(launcher=launcher, cgroup="/no/such/cgroup") as supervisor:
        await started(supervisor, target=targets.nothing, cgroup={"memory.max": 1})
        launcher["worker"].finish()


# Limits.


@pytest.fixture
def with_controller(delegated: Path) -> Iterator[Path]:
    """Give our cgroup a controller, if this machine has the one that nobody misses."""
    mounted = delegated.parent
    switch = mounted / "cgroup.subtree_control"
    if CONTROLLER not in (mounted / "cgroup.controllers").read_text().split():
        pytest.skip(f"there is no controller {CONTROLLER} in {mounted}")
    lock = os.open(mounted, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # beside other runs of this test
    was_on = CONTROLLER in switch.read_text().split()
    switch.write_text(f"+{CONTROLLER}")
    yield delegated
    _remove_all(delegated)
    (delegated / "cgroup.subtree_control").write_text(f"-{CONTROLLER}")
    if not was_on:
        switch.write_text(f"-{CONTROLLER}")
    os.close(lock)


@real
@as_root
async def test_limits_are_written_before_anybody_enters(
    with_controller: Path, make_supervisor: MakeSupervisor
) -> None:
    supervisor = await make_supervisor(cgroup=with_controller)
    handle = await started(supervisor, target=targets.sleep, cgroup={LIMIT: "4M"})
    await handle.wait_for_startup()
    (own,) = inside(with_controller)
    (worker,) = inside(with_controller / own)
    assert (with_controller / own / worker / LIMIT).read_text() == f"{4 * 2**20}\n"
    for limits, text in (
        ({LIMIT: "much"}, f"cgroup {LIMIT} 'much': Invalid argument"),
        ({LIMIT: "4M", "hugetlb.3MB.max": 1}, "cgroup hugetlb.3MB.max 1: the kernel has no such"),
        ({"memory.max": "1G"}, "cgroup memory.max '1G': there is no controller 'memory' (but huge"),
    ):
        exit = await run(supervisor, target=targets.nothing, cgroup=limits)
        assert exit.kind is ExitKind.FAILED
        assert (exit.error or "").startswith(text)
    handle.terminate()
    await handle
    await supervisor.shutdown()


@real
@as_root
def test_a_controller_that_processes_are_in_the_way_of_is_refused_with_a_hint(
    with_controller: Path,
) -> None:
    sleeper = subprocess.Popen(["/bin/sleep", "1000"])
    (with_controller / "cgroup.procs").write_text(str(sleeper.pid))
    (with_controller / "own").mkdir()
    own = os.open(with_controller / "own", os.O_RDONLY)
    with pytest.raises(CannotLimit, match="while processes are in the delegated cgroup itself"):
        cgroup.Cgroup.make("worker", own, {LIMIT: 1})
    assert not inside(with_controller / "own"), "and the worker's is removed"
    os.close(own)
    sleeper.kill()
    sleeper.wait()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[Path, int, int]]:
    """A worker's directory in a supervisor's in a delegated one, on an ordinary file system."""
    worker = tmp_path / "delegated" / "own" / "worker"
    worker.mkdir(parents=True)
    for folder in worker.parents[:2]:
        (folder / "cgroup.controllers").write_text("cpu memory\n")
        (folder / "cgroup.subtree_control").touch()
    opened = [os.open(path, os.O_RDONLY) for path in (worker, worker.parent)]
    yield worker, *opened
    for fd in opened:
        os.close(fd)


def test_a_limit_is_written_as_it_is(fake: tuple[Path, int, int]) -> None:
    worker, directory, parent = fake
    (worker / "memory.max").touch()
    (worker / "cpu.weight").touch()
    cgroup.set_limit(directory, parent, "memory.max", "512M")
    cgroup.set_limit(directory, parent, "cpu.weight", 50)
    assert (worker / "memory.max").read_text() == "512M"
    assert (worker / "cpu.weight").read_text() == "50"
    assert not (worker.parent / "cgroup.subtree_control").read_text(), "nothing to enable"


def test_a_limit_without_its_file_has_its_controller_enabled_from_the_top_down(
    fake: tuple[Path, int, int],
) -> None:
    worker, directory, parent = fake
    with pytest.raises(CannotLimit, match=r"cgroup memory\.max 1: the kernel has no such file"):
        cgroup.set_limit(directory, parent, "memory.max", 1)
    for folder in worker.parents[:2]:
        assert (folder / "cgroup.subtree_control").read_text() == "+memory"
    with pytest.raises(CannotLimit, match=r"there is no controller 'io' \(but cpu, memory\)"):
        cgroup.set_limit(directory, parent, "io.max", "8:0 rbps=1")


def test_what_is_scarce_is_waited_for_and_not_refused(
    fake: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*arguments: Any, **options: Any) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(os, "open", scarce)
    with pytest.raises(OSError, match="Too many open files"):
        cgroup.set_limit(fake[1], fake[2], "memory.max", 1)
    with pytest.raises(OSError, match="Too many open files"):
        cgroup.Cgroup.make("other", fake[2], {})
    assert inside(fake[0].parent) == ["worker"]
