"""Who a worker is, and what it may take: as its spec says, or nothing of it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import ExitKind, Restart, WorkerSpec
from aiobgw._worker.identity import Identity

from .. import limit_targets, procs, targets
from ..conftest import MakeSupervisor
from ..limit_targets import KINDS, Report, what_runs

pytestmark = pytest.mark.anyio

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
with_setpriv = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, and setpriv, to start a supervisor with fewer rights",
)

PRELOAD = ("tests.limit_targets",)
LOWER = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
OWN_GROUPS = set(os.getgroups())
NOBODY, STRANGE = 65534, 54321
FEW = os.sched_getaffinity(0)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory of a test in which other users may write."""
    with limit_targets.directory_for_all() as path:
        yield path


async def run(supervisor: aiobgw.Supervisor, **options: Any) -> aiobgw.ExitStatus:
    options.setdefault("name", "worker")
    options.setdefault("restart", Restart.NEVER)
    handle = await supervisor.register(WorkerSpec(**options))
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    return exit


async def refused(supervisor: aiobgw.Supervisor, path: Path, kind: str, **options: Any) -> str:
    """Return why a worker could not begin; nothing of it may have run."""
    spec = WorkerSpec(name="worker", restart=Restart.NEVER, **what_runs(kind, path), **options)
    handle = await supervisor.register(spec)
    with pytest.raises(aiobgw.NeverStarted) as caught:
        await handle.wait_for_startup()
    exit = await handle.wait_for_shutdown()
    assert exit is not None
    assert (exit.kind, exit.code) == (ExitKind.FAILED, 127)
    assert not limit_targets.has_run(path)
    assert exit.error in str(caught.value)
    return exit.error or ""


IDENTITIES: dict[str, tuple[dict[str, Any], int, int, set[int]]] = {
    "a user, with its groups": ({"user": "nobody"}, NOBODY, NOBODY, {NOBODY}),
    "by number": ({"user": NOBODY}, NOBODY, NOBODY, {NOBODY}),
    "in no other group": ({"user": "nobody", "supplementary_groups": ()}, NOBODY, NOBODY, set()),
    "in other groups": (
        {"user": "nobody", "user_group": "daemon", "supplementary_groups": ["bin", 7_777]},
        NOBODY,
        1,
        {2, 7_777},
    ),
    "its group changes its own ones": (
        {"user": "nobody", "user_group": 7_777},
        NOBODY,
        7_777,
        {7_777},
    ),
    "a number that has no entry": ({"user": STRANGE, "user_group": 9_999}, STRANGE, 9_999, set()),
    "groups only": ({"user_group": 7, "supplementary_groups": [8]}, 0, 7, {8}),
    "one's own group only": ({"user_group": "daemon"}, 0, 1, OWN_GROUPS),
    "other groups only": ({"supplementary_groups": [8, 9]}, 0, 0, {8, 9}),
}


@as_root
async def test_s16_a_worker_is_who_its_spec_says_and_has_no_right_more(
    make_supervisor: MakeSupervisor, open_place: Path
) -> None:
    supervisor = await make_supervisor(preload=PRELOAD)
    for about, (options, uid, gid, groups) in IDENTITIES.items():
        for kind in KINDS:
            path = open_place / f"{about} {kind}".replace(" ", "_").replace("'", "")
            (await run(supervisor, **what_runs(kind, path), **options)).check()
            seen, case = Report(path), f"{about}: {kind}"
            assert seen["Uid"] == [str(uid)] * 4, case
            assert seen["Gid"] == [str(gid)] * 4, case
            assert seen.groups == groups, case
            dropped = "user" in options
            assert (seen.capabilities == {0}) == dropped, case
            assert seen["NoNewPrivs"] == [str(int(dropped))], case


@as_root
async def test_s16_there_is_no_way_back(make_supervisor: MakeSupervisor, open_place: Path) -> None:
    supervisor = await make_supervisor(preload=PRELOAD)
    path = open_place / "ways"
    target = limit_targets.become_root_again
    (await run(supervisor, target=target, args=(str(path),), user="nobody")).check()
    assert json.loads(path.read_text()) == {"worked": []}


@as_root
async def test_root_as_the_user_keeps_its_rights_but_gains_none(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    path = tmp_path / "root"
    (await run(supervisor, **what_runs("plain", path), user="root")).check()
    seen = Report(path)
    assert seen["Uid"] == ["0"] * 4
    assert seen["NoNewPrivs"] == ["1"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such user": ({"user": "no-such-user"}, "cannot become user 'no-such-user': there is no"),
    "a number without a group": ({"user": STRANGE}, f"user {STRANGE}: .* user_group must be given"),
    "no such group": ({"user_group": "no-such"}, "user_group 'no-such': there is no such group"),
    "no such other group": (
        {"supplementary_groups": ["no-such"]},
        "supplementary_groups 'no-such': there is no such group",
    ),
    "no such directory": ({"cwd": "/no/such"}, "cwd '/no/such': No such file or directory"),
    "no directory": ({"cwd": "/etc/passwd"}, "cwd '/etc/passwd': Not a directory"),
    "no such processor": (
        {"cpus": [min(FEW), 4_095]},
        rf"cpus \({min(FEW)}, 4095\): of these there are only \[{min(FEW)}\]",
    ),
    "only strange processors": ({"cpus": [4_095]}, r"cpus \(4095,\): Invalid argument"),
    "more than anybody may have": (
        {"rlimits": {"nproc": 10, "nofile": 2**40}},
        "rlimits .*: nofile: not allowed to raise maximum limit",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_not_there_ends_the_launch_and_names_the_field(
    make_supervisor: MakeSupervisor, tmp_path: Path, kind: str
) -> None:
    supervisor = await make_supervisor()
    for about, (options, text) in REFUSED.items():
        why = await refused(supervisor, tmp_path / "report", kind, **options)
        assert re.match(text, why), (about, why)


STEPS = {
    "cwd": "cwd '/'",
    "umask": "umask 63",
    "nice": "nice 3",
    "cpus": "cpus ",
    "rlimits": "rlimits ",
    "setgroups": "supplementary_groups [7]",
    "setresgid": "user_group: gid 7",
    "setresuid": "cannot become user 'nobody'",
    "capset": "user 'nobody': capabilities",
    "verify": "user 'nobody'",
    "no_new_privs": "user 'nobody': PR_SET_NO_NEW_PRIVS",
    "rearm": "user 'nobody': lifeline",
    "env": "env",
}
EVERYTHING: dict[str, Any] = {
    "cwd": "/",
    "umask": 0o077,
    "nice": 3,
    "cpus": sorted(FEW),
    "rlimits": {"nofile": 100},
    "supplementary_groups": [7],
    "user_group": 7,
    "user": "nobody",
    "env": {"A": "secret"},
}


@as_root
@pytest.mark.parametrize("kind", KINDS)
async def test_s16_whatever_step_fails_nothing_of_the_worker_runs(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    open_place: Path,
    kind: str,
) -> None:
    tokens = {step: open_place / f"token-{step}" for step in STEPS}
    marks = [f"{step}:fail=11@{token}" for step, token in tokens.items()]
    monkeypatch.setenv("AIOBGW_INJECT", ",".join(marks))
    supervisor = await make_supervisor(preload=PRELOAD)
    for step, what in STEPS.items():
        tokens[step].touch()
        why = await refused(supervisor, open_place / "report", kind, **EVERYTHING)
        assert why.startswith(what), step
        assert why.endswith("Resource temporarily unavailable"), step
        assert "secret" not in why
        assert not tokens[step].exists(), step
    (await run(supervisor, **what_runs(kind, open_place / "report"), **EVERYTHING)).check()
    assert Report(open_place / "report").env["A"] == "secret", "and nothing is left of the failures"


@as_root
async def test_a_member_that_cannot_begin_begins_no_crash_cycle(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor()
    events = supervisor.events()
    member: dict[str, Any] = {
        "flags": aiobgw.Flags.SHMEM_ACCESS,
        "crash_scope": aiobgw.CrashScope.ALL,
    }
    other = await supervisor.register(WorkerSpec(name="other", target=targets.sleep, **member))
    await other.wait_for_startup()
    await refused(supervisor, tmp_path / "report", "plain", cwd="/no/such", **member)
    await supervisor.shutdown()
    told = [event async for event in events]
    assert not [event for event in told if isinstance(event, aiobgw.CrashCycle)]
    exit = other.status().exit
    assert exit is not None
    assert (exit.kind, exit.reason) == (ExitKind.TERMINATED, "the supervisor is stopping")


class Told(Identity):
    """An identity to which the kernel tells what a test wants."""

    def __init__(self, uid: int, told: dict[str, str]) -> None:
        super().__init__(uid, uid, ())
        os.close(self._status)
        self._told = told

    def _says(self, name: str) -> list[str]:
        return self._told[name].split()


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        ({"Uid": "7 7 0 7"}, "Uid is .*, not 7"),
        ({"Uid": "0 7 7 7"}, "Uid is .*, not 7"),
        ({"Gid": "7 7 0 7"}, "Gid is .*, not 7"),
        ({"CapInh": "1"}, "CapInh is not empty"),
        ({"CapPrm": "80"}, "CapPrm is not empty"),
        ({"CapEff": "ff"}, "CapEff is not empty"),
        ({"CapAmb": "1"}, "CapAmb is not empty"),
        ({"groups": [0]}, r"groups are \[0\], not \[\]"),
        ({"gids": (7, 7, 0)}, "gids are .*, not 7"),
        ({}, "it could become root again"),
    ],
)
def test_s16_the_last_look_finds_whatever_is_left(
    monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any], text: str
) -> None:
    told = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0000000000000000")
    told |= {"Uid": "7 7 7 7", "Gid": "7 7 7 7"}
    identity = Told(7, {**told, **lie})
    monkeypatch.setattr(os, "getgroups", lambda: lie.get("groups", []))
    monkeypatch.setattr(os, "getresgid", lambda: lie.get("gids", (7, 7, 7)))
    monkeypatch.setattr(os, "setuid", lambda uid: None)
    with pytest.raises(ValueError, match=text):
        identity._verify()


HOST = """
import asyncio, json, pathlib, sys
import aiobgw
from aiobgw import Restart, WorkerSpec
from tests.limit_targets import what_runs

async def main():
    place, cases = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    async with aiobgw.Supervisor(
        name="host", preload=("tests.limit_targets",), python=sys.executable
    ) as supervisor:
        for number, options in enumerate(cases):
            runs = what_runs("plain", place / str(number))
            spec = WorkerSpec(name="w", restart=Restart.NEVER, **runs, **options)
            exit = await (await supervisor.register(spec)).wait_for_shutdown()
            print(json.dumps([exit.kind.value, exit.error]), flush=True)

asyncio.run(main())
"""


def run_host(place: Path, rights: list[str], cases: list[dict[str, Any]]) -> list[list[str]]:
    """Run workers under a supervisor with other rights; return how each ended, and why."""
    words = ["setpriv", *rights, sys.executable, "-c", HOST, str(place), json.dumps(cases)]
    ran = subprocess.run(
        words, cwd=procs.ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


NO_RIGHTS: list[tuple[dict[str, Any], str | None]] = [
    ({"user": NOBODY}, "user 65534: groups: Operation not permitted"),
    ({"user": NOBODY, "supplementary_groups": []}, "Operation not permitted"),
    ({"user_group": 7}, "user_group: gid 7: Operation not permitted"),
    ({"supplementary_groups": [7]}, "supplementary_groups [7]: Operation not permitted"),
    ({"nice": -5}, "nice -5: Permission denied"),
    ({"rlimits": {"nofile": 2**19}}, "not allowed to raise maximum limit"),
    ({"user": 0, "user_group": 0, "supplementary_groups": sorted(OWN_GROUPS)}, None),
    (
        {
            "nice": min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5),
            "rlimits": {"nofile": 64},
            "umask": 0o077,
            "cwd": "/",
        },
        None,
    ),
]


@with_setpriv
def test_a_supervisor_without_rights_gives_what_it_has_and_refuses_the_rest(tmp_path: Path) -> None:
    rights = ["--bounding-set=-all", "--inh-caps=-all"]
    ended = run_host(tmp_path, rights, [options for options, _ in NO_RIGHTS])
    for number, ((kind, error), (options, text)) in enumerate(zip(ended, NO_RIGHTS, strict=True)):
        assert (text is None) == (kind == "clean"), (options, error)
        assert (text or "") in (error or ""), options
        assert (tmp_path / str(number)).exists() == (text is None), options


@with_setpriv
def test_s16_capabilities_go_also_where_no_uid_was_0(open_place: Path) -> None:
    """The kernel drops them by itself only when the uid was 0 before."""
    capabilities = "+setuid,+setgid,+dac_read_search"
    rights = [
        "--reuid=1",
        "--regid=1",
        "--clear-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    ]
    kept, other = run_host(open_place, rights, [{}, {"user": "nobody"}])
    assert kept == other == ["clean", None]
    before, after = Report(open_place / "0"), Report(open_place / "1")
    assert before["Uid"] == ["1"] * 4
    assert before.capabilities != {0}
    assert after["Uid"] == ["65534"] * 4
    assert after.groups == {NOBODY}
    assert after.capabilities == {0}


@as_root
async def test_s13_a_worker_with_all_of_it_has_no_descriptor_more(
    make_supervisor: MakeSupervisor, open_place: Path
) -> None:
    supervisor = await make_supervisor(preload=PRELOAD)
    path = open_place / "fds"
    target = limit_targets.descriptors
    (await run(supervisor, target=target, args=(str(path),), **EVERYTHING)).check()
    found = json.loads(path.read_text())["descriptors"]
    kinds = sorted(what.split(":")[0] for what in found[3:])
    assert kinds == ["pipe", "socket"]
