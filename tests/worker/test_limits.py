"""What a worker may take, and which environment it has: its own, and nobody else's."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import Restart, WorkerSpec
from aiobgw._ipc import launch as protocol

from .. import limit_targets, procs, targets
from ..conftest import MakeSupervisor
from ..limit_targets import KINDS, Report, what_runs

pytestmark = pytest.mark.anyio

ONE_CPU = min(os.sched_getaffinity(0))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory of a test in which other users may write."""
    with limit_targets.directory_for_all() as path:
        yield path


async def run(supervisor: aiobgw.Supervisor, path: Path, kind: str, **options: Any) -> Report:
    spec = WorkerSpec(name="worker", restart=Restart.NEVER, **what_runs(kind, path), **options)
    exit = await (await supervisor.register(spec)).wait_for_shutdown()
    assert exit is not None
    exit.check()
    return Report(path)


async def all_spares_of(supervisor: aiobgw.Supervisor) -> None:
    """Wait until spares are ready; no event tells of them."""
    while supervisor.status().spares < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def facts(seen: Report) -> dict[str, object]:
    """Return all that these tests change."""
    return {
        "cwd": seen.cwd,
        "umask": seen["Umask"],
        "nice": seen.nice,
        "cpus": seen["Cpus_allowed_list"],
        "nofile": seen.limit("Max open files"),
        "fsize": seen.limit("Max file size"),
        "nproc": seen.limit("Max processes"),
        "core": seen.limit("Max core file size"),
        "env": seen.env,
    }


async def test_limits_are_those_of_the_spec_and_of_no_other_worker(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    """Spares are prepared before anybody knows for whom; each is used once."""
    supervisor = await make_supervisor(spares=2)
    for kind in KINDS:
        await all_spares_of(supervisor)
        ordinary = facts(await run(supervisor, tmp_path / f"before {kind}".replace(" ", "-"), kind))
        await all_spares_of(supervisor)
        seen = await run(
            supervisor,
            tmp_path / f"limited-{kind}",
            kind,
            cwd="/usr/lib",
            umask=0o027,
            nice=7,
            cpus=[ONE_CPU],
            rlimits={"nofile": (100, 200), "fsize": 1_000_000, "core": (5, -1)},
            env={"ONLY": "this"},
        )
        limited = facts(seen)
        assert limited.pop("env") == {**base(), "ONLY": "this"}
        assert limited == {
            "cwd": "/usr/lib",
            "umask": ["0027"],
            "nice": 7,
            "cpus": [str(ONE_CPU)],
            "nofile": ["100", "200"],
            "fsize": ["1000000", "1000000"],
            "nproc": ordinary["nproc"],
            "core": ["5", "unlimited"],
        }
        for number in range(3):
            after = await run(supervisor, tmp_path / f"after-{kind}-{number}", kind)
            assert facts(after) == ordinary


def base() -> dict[str, str]:
    """Return what a worker with an environment of its own has of ours."""
    names = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ")
    return {n: v for n, v in os.environ.items() if n in names or n.startswith("LC_")}


async def test_targets_write_no_core_files_unless_their_limit_says_so(
    make_supervisor: MakeSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard if hard >= 0 else 4_096, hard))
    try:
        supervisor = await make_supervisor(spares=1)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    for kind in ("plain", "async"):
        (none, _) = (await run(supervisor, tmp_path / f"{kind}-0", kind)).limit(
            "Max core file size"
        )
        other = await run(supervisor, tmp_path / f"{kind}-1", kind, rlimits={"core": 77})
        assert none == "0"
        assert other.limit("Max core file size") == ["77", "77"]


# Environment.

ODD = {f"ODD_{number}": f"value {number}" for number in range(100)}
DANGEROUS = {
    "LD_LIBRARY_PATH": "/no/such/library",
    "PYTHONSTARTUP": "/no/such/startup",
    "PYTHONPATH": str(procs.ROOT),
}
HOSTS = {
    "NOTIFY_SOCKET": "/no/such/socket",
    "WATCHDOG_USEC": "5000000",
    "WATCHDOG_PID": str(os.getpid()),
    "LISTEN_FDS": "1",
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDNAMES": "http",
}
OF_THE_SERVICE = {"INVOCATION_ID": "0" * 32, "JOURNAL_STREAM": "8:1"}
LOCALE = {"LANG": "C.UTF-8", "LC_TIME": "C", "TZ": "Europe/Vienna", "HOME": "/home/of/host"}


@pytest.fixture
def full_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ODD, **DANGEROUS, **HOSTS, **OF_THE_SERVICE, **LOCALE}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("full_environment")
async def test_s18_an_environment_is_a_clean_base_and_what_is_listed(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    asked: dict[str, str | None] = {
        "ODD_7": None,
        "PYTHONSTARTUP": "mine",
        "NOTIFY_SOCKET": None,
        "NOT_THERE": None,
        "EMPTY": "",
        "HOME": "/elsewhere",
        "TZ": "Asia/Tokyo",
    }
    for kind in KINDS:
        bare = await run(supervisor, tmp_path / f"{kind}-bare", kind, env={})
        assert bare.env == base()
        assert bare.env["TZ"] == "Europe/Vienna"
        listed = await run(supervisor, tmp_path / f"{kind}-listed", kind, env=asked)
        assert listed.env == {
            **base(),
            "ODD_7": "value 7",
            "PYTHONSTARTUP": "mine",
            "NOTIFY_SOCKET": HOSTS["NOTIFY_SOCKET"],
            "EMPTY": "",
            "HOME": "/elsewhere",
            "TZ": "Asia/Tokyo",
        }


@pytest.mark.usefixtures("full_environment")
async def test_s18_nobody_speaks_to_the_service_manager_of_the_host(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    """Without an environment of its own a worker has the host's, but for what is the host's."""
    expected = {n: v for n, v in os.environ.items() if n not in HOSTS and n != "LD_BIND_NOW"}
    supervisor = await make_supervisor(preload=("tests.limit_targets",))
    for kind in KINDS:
        seen = await run(supervisor, tmp_path / kind, kind)
        expected_here = {n: v for n, v in expected.items() if n not in limit_targets.OF_SHELL}
        assert {n: v for n, v in seen.env.items() if n not in limit_targets.OF_SHELL} == (
            expected_here
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.usefixtures("full_environment")
async def test_a_user_has_the_home_and_the_names_of_that_user(
    make_supervisor: MakeSupervisor, open_place: Path
) -> None:
    supervisor = await make_supervisor(preload=("tests.limit_targets",))
    own = {
        "HOME": "/nonexistent",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": "/usr/sbin/nologin",
    }
    for kind in KINDS:
        seen = await run(supervisor, open_place / f"{kind}-all", kind, user="nobody")
        assert {name: seen.env[name] for name in own} == own
        assert seen.env["ODD_3"] == "value 3"
        seen = await run(
            supervisor, open_place / f"{kind}-env", kind, user="nobody", env={"HOME": "/x"}
        )
        assert seen.env == {**base(), **own, "HOME": "/x"}
        options: dict[str, Any] = {"user": 54321, "user_group": 54321}
        seen = await run(supervisor, open_place / f"{kind}-strange", kind, **options)
        assert not own.keys() & seen.env.keys()


async def test_what_the_supervisor_adds_to_an_order_comes_last(
    make_supervisor: MakeSupervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = protocol.pack_order
    ours = {"NOTIFY_SOCKET": "@ours", "ODD": "ours"}
    monkeypatch.setattr(protocol, "pack_order", lambda order: pack({**order, "environ": ours}))
    supervisor = await make_supervisor()
    for kind in KINDS:
        seen = await run(supervisor, tmp_path / f"{kind}-env", kind, env={"ODD": "theirs"})
        assert seen.env == {**base(), **ours}
        seen = await run(supervisor, tmp_path / f"{kind}-all", kind)
        assert {**seen.env, **ours} == seen.env


def local_hour(path: str) -> None:
    import time

    targets.write(path, time.strftime("%z", time.localtime(0)))


async def test_c_code_sees_the_new_environment_too(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    path = tmp_path / "zone"
    spec = WorkerSpec(name="w", target=local_hour, args=(str(path),), env={"TZ": "XXX-5:30"})
    await (await supervisor.register(spec))
    assert path.read_text() == "+0530\n"


CANARY = "canary-5f3a"


async def test_s17_what_an_environment_says_is_shown_nowhere(
    make_supervisor: MakeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong: dict[str, Any] = {"SECRET": CANARY, "BAD": 3}
    with pytest.raises(aiobgw.InvalidSpec, match=r"not \['SECRET', 'BAD'\]") as caught:
        WorkerSpec(name="w", target=targets.sleep, env=wrong)
    shown = ["".join(traceback.format_exception(caught.value, limit=0))]

    supervisor = await make_supervisor()
    events = supervisor.events()
    spec = WorkerSpec(
        name="w", target=targets.sleep, env={"SECRET": CANARY}, cwd="/", restart=Restart.NEVER
    )
    handle = await supervisor.register(spec)
    status = await handle.wait_for_startup()
    assert status.pid is not None
    for pid in (status.pid, supervisor.status().zygote_pid):
        shown.append(procs.title(pid or 0))
    shown += [repr(spec), repr(handle), repr(status), repr(supervisor.status())]
    handle.terminate()
    shown.append(repr(await handle))
    failing = WorkerSpec(
        name="f", target=targets.sleep, env={"SECRET": CANARY}, cwd="/no", restart=Restart.NEVER
    )
    shown.append(repr(await (await supervisor.register(failing))))
    await supervisor.shutdown()
    shown += [repr(event) async for event in events]
    shown += [f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records]
    assert len(shown) > 15
    assert not [text for text in shown if CANARY in text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": 2**32 - 1}, "user must be a user's name or number, not 4294967295"),
        ({"user": 2**32}, "user must be"),
        ({"user": True}, "user must be"),
        ({"user": "a\0b"}, "user must be"),
        ({"user_group": 2**32 - 1}, "user_group must be"),
        ({"supplementary_groups": [2**32 - 1]}, "supplementary_groups must be"),
        ({"env": [("SECRET", CANARY)]}, "env must be a mapping of texts, .* not <class 'list'>"),
    ],
)
def test_numbers_that_mean_as_it_is_to_the_kernel_are_nobody(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match=message):
        WorkerSpec(name="w", target=targets.nothing, **options)


async def test_a_worker_with_limits_may_take_what_it_may_and_not_more(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    path = tmp_path / "opened"
    spec = WorkerSpec(name="w", target=open_many, args=(str(path),), rlimits={"nofile": 20}, nice=1)
    await (await supervisor.register(spec))
    opened = json.loads(path.read_text())
    assert 10 < opened < 20


def open_many(path: str) -> None:
    fds: list[int] = []
    try:
        while True:
            fds.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    for fd in fds:
        os.close(fd)
    targets.write(path, str(len(fds)))
