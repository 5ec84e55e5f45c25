"""The control socket: who may attach, what each may do, and what becomes of bad clients."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiobgw
from aiobgw import Latch, WorkerSpec, WorkerState
from aiobgw._ipc import requests, rundir
from aiobgw._supervisor import control, peers

from .. import procs, targets
from ..client_targets import close_script, in_a_thread, until
from ..conftest import MakeSupervisor

pytestmark = pytest.mark.anyio

NOBODY = 65534
GROUP = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def open_place() -> Iterator[str]:
    """A runtime directory on a path that everybody may walk."""
    base = tempfile.mkdtemp(prefix="aiobgw-test-", dir="/tmp")
    os.chmod(base, 0o755)
    yield f"{base}/run"
    shutil.rmtree(base)


AS_SOMEBODY = """
import asyncio, json, os, sys
import aiobgw
from aiobgw import Latch, WorkerSpec
from tests import targets

place, who, steps = json.loads(sys.argv[1])
with_import = aiobgw.attach_blocking, aiobgw.BlockingClient, aiobgw.AccessDenied
os.setgroups(who["groups"])
os.setresgid(who["gid"], who["gid"], who["gid"])
os.setresuid(who["uid"], who["uid"], who["uid"])
SPEC = WorkerSpec(name="theirs", target="tests.targets:sleep")

def claim():
    "Say that this client may do everything: only the supervisor's own checks are left."
    client._connection.welcome.rights = 3

def latched():
    latches = {"l": Latch()}
    return client.register(WorkerSpec(name="l", target="tests.targets:sleep", latches=latches))

said = []
client = None
for step in ["aiobgw.attach_blocking(place)", *steps]:
    try:
        result = eval(step)
        if client is None:
            client = result
        said.append("ok" if not isinstance(result, (str, int, list)) else result)
    except aiobgw.AiobgwError as error:
        said.append(f"{type(error).__name__}: {error}")
        if client is None:
            break
if client is not None:
    client.close()
print(json.dumps(said), flush=True)
"""


async def as_somebody(place: str, *steps: str, groups: tuple[int, ...] = (), **who: int) -> Any:
    """Attach as somebody else, take *steps*, and return what came of each, attaching first."""
    identity = {"uid": NOBODY, "gid": NOBODY, "groups": groups, **who}
    script = procs.start_script(AS_SOMEBODY, json.dumps([place, identity, steps]))
    assert script.stdout is not None
    try:
        return json.loads(await in_a_thread(script.stdout.readline))
    finally:
        close_script(script)


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# Where it is.


async def test_alone_the_directory_and_the_socket_are_private(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place)
    assert mode(place) == 0o700
    assert mode(f"{place}/control") == 0o600
    assert mode(f"{place}/lock") == 0o600
    assert stat.S_ISSOCK(os.stat(f"{place}/control").st_mode)


@pytest.mark.parametrize("people", ["viewers", "operators", "administrators"])
async def test_with_others_the_directory_can_be_walked_and_the_socket_connected_to(
    make_supervisor: MakeSupervisor, place: str, people: str
) -> None:
    await make_supervisor(runtime_dir=place, **{people: (NOBODY,)})
    assert mode(place) == 0o711
    assert mode(f"{place}/control") == 0o666
    assert mode(f"{place}/lock") == 0o600


async def test_a_directory_that_was_too_open_is_closed(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    os.mkdir(place)
    os.chmod(place, 0o777)
    await make_supervisor(runtime_dir=place)
    assert mode(place) == 0o700


async def test_without_a_runtime_dir_there_is_nothing_to_attach_to(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    supervisor = await make_supervisor(viewers=(NOBODY,))
    assert supervisor._core.outside._control is None
    assert os.listdir(tmp_path) == []


async def test_a_symbolic_link_in_place_of_the_directory_is_refused(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    os.symlink(real, place)
    with pytest.raises(aiobgw.AccessDenied, match="no directory of ours"):
        await make_supervisor(runtime_dir=place)
    with pytest.raises(aiobgw.AccessDenied, match="no directory of ours"):
        await aiobgw.attach(place).__aenter__()
    assert os.listdir(real) == []


async def test_a_symbolic_link_in_place_of_the_lock_or_the_socket_leads_nowhere(
    make_supervisor: MakeSupervisor, place: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.mkdir(place, 0o700)
    os.symlink(victim, f"{place}/lock")
    with pytest.raises((aiobgw.AccessDenied, OSError)):
        await make_supervisor(runtime_dir=place)
    os.unlink(f"{place}/lock")
    os.symlink(victim, f"{place}/control")
    await make_supervisor(runtime_dir=place)
    assert stat.S_ISSOCK(os.lstat(f"{place}/control").st_mode)
    assert victim.read_text() == "untouched"


@as_root
async def test_a_directory_of_somebody_else_is_refused(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    os.mkdir(place, 0o700)
    os.chown(place, NOBODY, NOBODY)
    with pytest.raises(aiobgw.AccessDenied, match=f"uid {NOBODY}"):
        await make_supervisor(runtime_dir=place)
    with pytest.raises(aiobgw.AccessDenied):
        await aiobgw.attach(place).__aenter__()
    assert os.listdir(place) == []


async def test_a_client_does_not_trust_a_directory_that_others_can_write(place: str) -> None:
    os.mkdir(place)
    os.chmod(place, 0o777)
    with pytest.raises(aiobgw.AccessDenied, match="written by others"):
        await aiobgw.attach(place).__aenter__()


async def test_a_path_longer_than_a_socket_address_works(
    make_supervisor: MakeSupervisor, tmp_path: Path
) -> None:
    place = tmp_path / ("d" * 100) / ("e" * 200)
    supervisor = await make_supervisor(runtime_dir=place)
    async with aiobgw.attach(place) as client:
        assert client.epoch == supervisor.epoch


@as_root
async def test_the_default_place_of_root_is_below_run(
    make_supervisor: MakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOBGW_RUNTIME_DIR")
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        await make_supervisor(name=name, runtime_dir=True)
        assert mode(f"/run/aiobgw/{name}") == 0o700
        async with aiobgw.attach(name) as client:
            assert client.status().name == name
    finally:
        shutil.rmtree(f"/run/aiobgw/{name}")


def test_a_name_means_the_users_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOBGW_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    assert rundir.place("shop") == "/somewhere/aiobgw/shop"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.place("shop") == "/run/user/1234/aiobgw/shop"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    assert rundir.place("shop") == "/run/aiobgw/shop"


def test_tests_have_names_looked_for_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of whatever user; an empty variable is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIOBGW_RUNTIME_DIR", "here")
    for user in (0, 1234):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert rundir.place("shop") == str(tmp_path / "here" / "shop")
        assert rundir.place("/a/shop") == "/a/shop"
    monkeypatch.setenv("AIOBGW_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    assert rundir.place("shop") == "/somewhere/aiobgw/shop"


def test_whatever_has_a_slash_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert rundir.place("/a/b/../c") == "/a/c"
    assert rundir.place("./shop") == str(tmp_path / "shop")
    assert rundir.place(Path("/a/b")) == "/a/b"


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b"])
def test_what_is_neither_a_name_nor_a_path_is_refused(name: str) -> None:
    with pytest.raises(aiobgw.InvalidSpec, match="neither"):
        rundir.place(name)


# Who may do what.


@as_root
async def test_another_user_is_refused_by_default(
    make_supervisor: MakeSupervisor, open_place: str
) -> None:
    await make_supervisor(runtime_dir=open_place)
    [said] = await as_somebody(open_place, "client.status()")
    assert said.startswith("AccessDenied")


@as_root
async def test_who_is_on_no_list_is_refused_by_his_number(
    make_supervisor: MakeSupervisor, open_place: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make_supervisor(runtime_dir=open_place, viewers=(NOBODY + 1, "@daemon"))
    for _ in range(5):
        said = await as_somebody(open_place, "client.status()")
        assert said == [f"AccessDenied: uid {NOBODY} may not attach"]
    assert f"uid {NOBODY} tried to attach" in caplog.text


@as_root
async def test_a_viewer_sees_everything_and_changes_nothing(
    make_supervisor: MakeSupervisor, open_place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=open_place, viewers=("nobody",))
    ours = await supervisor.register(WorkerSpec(name="ours", target=targets.sleep))
    await ours.wait_for_startup()
    refused = "AccessDenied: this process may not"
    attached, name, names, events, state, *asked = await as_somebody(
        open_place,
        "client.status().name",
        "[handle.name for handle in client.handles()]",
        "client.events(1)",
        "client.get('ours').wait_for_startup(60).state.value",
        "client.register(SPEC)",
        "client.get('ours').terminate()",
        "client.get('ours').kill()",
        "client.get('ours').signal(9)",
        "client.get('ours').restart()",
        "client.get('ours').wake()",
        "claim()",
        "client.get('ours').kill()",
        "client.get('ours').terminate()",
        "client.register(SPEC)",
    )
    assert (attached, name, names, events) == ("ok", "test", ["ours"], "ok")
    assert state == "running"
    assert asked[0] == f"{refused} administrate here"
    assert asked[1:6] == [f"{refused} operate here"] * 5
    assert asked[6:9] == ["ok"] * 3, "it does not know that nothing will happen"
    assert asked[9] == f"{refused} administrate here", "the supervisor has read all by now"
    assert ours.status().state is WorkerState.RUNNING
    assert supervisor.handles() == [ours]


@as_root
async def test_a_viewer_hears_of_events(make_supervisor: MakeSupervisor, open_place: str) -> None:
    supervisor = await make_supervisor(runtime_dir=open_place, viewers=(NOBODY,))
    attached = asyncio.ensure_future(
        as_somebody(
            open_place,
            "globals().update(events=client.events(60))",
            "[type(next(events)).__name__ for _ in range(3)]",
        )
    )
    await until(lambda: len(supervisor._core.news._streams) > 1 or attached.done())
    ours = await supervisor.register(WorkerSpec(name="ours", target=targets.sleep))
    await ours.wait_for_startup()
    assert (await attached)[2:] == [["Registered", "Started", "Ready"]]


@as_root
async def test_an_operator_ends_workers_and_registers_none(
    make_supervisor: MakeSupervisor, open_place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=open_place, operators=(NOBODY,))
    ours = await supervisor.register(WorkerSpec(name="ours", target=targets.sleep))
    await ours.wait_for_startup()
    said = await as_somebody(
        open_place,
        "client.register(SPEC)",
        "client.get('ours').terminate()",
        "claim()",
        "client.register(SPEC)",
    )
    refused = "AccessDenied: this process may not administrate here"
    assert said == ["ok", refused, "ok", "ok", refused]
    exit = await ours
    assert exit is not None
    assert exit.kind is aiobgw.ExitKind.TERMINATED
    assert supervisor.handles() == []


@as_root
async def test_an_administrator_registers_workers_but_shares_no_latches(
    make_supervisor: MakeSupervisor, open_place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=open_place, administrators=(NOBODY,))
    said = await as_somebody(
        open_place,
        "client.register(SPEC).wait_for_startup(60).state.value",
        "latched()",
        "client.get('theirs').token",
    )
    assert said[:2] == ["ok", "running"]
    assert said[2].startswith("AccessDenied: latches")
    [left] = supervisor.handles()
    assert left.token == said[3], "it outlives who registered it"


@as_root
async def test_each_list_includes_what_the_weaker_ones_may(
    make_supervisor: MakeSupervisor, open_place: str
) -> None:
    """On several lists, the strongest counts."""
    supervisor = await make_supervisor(
        runtime_dir=open_place, viewers=(NOBODY,), operators=(NOBODY,), administrators=(NOBODY,)
    )
    said = await as_somebody(open_place, "client.register(SPEC).name")
    assert said == ["ok", "theirs"]
    assert len(supervisor.handles()) == 1


@as_root
@pytest.mark.parametrize("entry", [f"@{GROUP}", "@daemon"])
@pytest.mark.parametrize("supplementary", [False, True])
async def test_a_group_may_be_the_first_or_a_supplementary_one(
    make_supervisor: MakeSupervisor, open_place: str, entry: str, supplementary: bool
) -> None:
    await make_supervisor(runtime_dir=open_place, viewers=(entry,))
    number = GROUP if entry == f"@{GROUP}" else 1
    gid, groups = (NOBODY, (7, number)) if supplementary else (number, ())
    said = await as_somebody(open_place, "client.status().name", gid=gid, groups=groups)
    assert said == ["ok", "test"]
    said = await as_somebody(open_place, "client.status().name", groups=(7,))
    assert said == [f"AccessDenied: uid {NOBODY} may not attach"]


async def test_a_user_or_group_that_does_not_exist_is_refused_at_the_start(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    for entry in ("no-such-user", "@no-such-group"):
        with pytest.raises(aiobgw.InvalidSpec, match=entry):
            await make_supervisor(runtime_dir=place, viewers=(entry,))


async def test_the_same_user_shares_latches(make_supervisor: MakeSupervisor, place: str) -> None:
    await make_supervisor(runtime_dir=place)
    latch = Latch()
    async with aiobgw.attach(place) as client:
        handle = await client.register(
            WorkerSpec(name="w", target=targets.ignore_term, latches={"up": latch})
        )
        await latch.wait()
        handle.kill()
        await handle
    latch.close()


# How many, and how they speak.


async def test_when_all_places_are_taken_the_limit_is_named_and_a_place_comes_free(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place, max_clients=2)
    async with aiobgw.attach(place) as first:
        async with aiobgw.attach(place):
            for _ in range(5):
                with pytest.raises(aiobgw.AccessDenied, match="all 2 places") as caught:
                    await aiobgw.attach(place).__aenter__()
                assert any("max_clients" in note for note in caught.value.__notes__)
        async with aiobgw.attach(place) as second:
            assert second.epoch == first.epoch


async def test_without_places_nobody_attaches(make_supervisor: MakeSupervisor, place: str) -> None:
    await make_supervisor(runtime_dir=place, max_clients=0)
    with pytest.raises(aiobgw.AccessDenied, match="all 0 places"):
        await aiobgw.attach(place).__aenter__()


class Raw:
    """A client that says what it wants."""

    def __init__(self, place: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.connect(f"{place}/control")

    def say(self, data: bytes) -> None:
        self._socket.send(data)

    async def hear(self) -> Any:
        """Return the next answer; None at the end."""
        loop = asyncio.get_running_loop()
        data = await asyncio.wait_for(loop.sock_recv(self._socket, 40_000), 20)
        return requests.read_answer(data) if data else None

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def hello() -> bytes:
    return requests.pack(requests.Hello(requests.WIRE, aiobgw.__version__))


async def test_another_wire_version_is_refused_and_both_are_named(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place)
    with Raw(place) as raw:
        raw.say(requests.pack(requests.Hello(requests.WIRE + 98, "9.8.7")))
        refusal = await raw.hear()
        assert await raw.hear() is None
    error = requests.error_of(refusal)
    assert isinstance(error, aiobgw.ProtocolMismatch)
    assert f"aiobgw 9.8.7 (wire {requests.WIRE + 98})" in str(error)
    assert f"{aiobgw.__version__} (wire {requests.WIRE})" in str(error)


OLD = """
import sys
import aiobgw
from aiobgw._ipc import requests
requests.WIRE = 99
try:
    aiobgw.attach_blocking(sys.argv[1])
except aiobgw.ProtocolMismatch as error:
    print(f"ProtocolMismatch: {error}", flush=True)
"""


async def test_a_client_of_another_version_learns_why(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place)
    script = procs.start_script(OLD, place)
    assert script.stdout is not None
    said = await in_a_thread(script.stdout.readline)
    close_script(script)
    assert said.startswith("ProtocolMismatch")
    assert "wire 99" in said
    assert f"wire {requests.WIRE}" in said


async def test_who_never_says_hello_is_dropped_and_frees_its_place(
    make_supervisor: MakeSupervisor, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HELLO_TIMEOUT", 0.1)
    supervisor = await make_supervisor(runtime_dir=place, max_clients=1)
    with Raw(place) as raw:
        assert await raw.hear() is None
        async with aiobgw.attach(place) as client:
            assert client.epoch == supervisor.epoch
            await asyncio.sleep(0.2)  # longer than the time for hello: it has said it
            assert client.status() == supervisor.status()


async def test_a_request_before_hello_is_refused_and_ends_the_connection(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    supervisor = await make_supervisor(runtime_dir=place)
    ours = await supervisor.register(WorkerSpec(name="ours", target=targets.sleep))
    await ours.wait_for_startup()
    for request in (
        requests.Follow(),
        requests.Watch(ours.slot, ours.generation),
        requests.Ask(requests.Verb.KILL, ours.slot, ours.generation, 0),
    ):
        with Raw(place) as raw:
            raw.say(requests.pack(request))
            refusal = await raw.hear()
            assert isinstance(requests.error_of(refusal), aiobgw.ProtocolMismatch)
            assert "hello" in refusal.args[0]
            assert await raw.hear() is None
    assert ours.status().state is WorkerState.RUNNING


async def test_what_is_no_message_is_answered_and_the_client_goes_on(
    make_supervisor: MakeSupervisor, place: str
) -> None:
    await make_supervisor(runtime_dir=place)
    with Raw(place) as raw:
        raw.say(hello())
        assert isinstance(await raw.hear(), requests.Welcome)
        for garbage in (b"garbage", b"\x92\xa8unheard!\x01", b"\x91\xa8follow ", b"x" * 40_000):
            raw.say(garbage)
            refusal = await raw.hear()
            assert isinstance(requests.error_of(refusal), aiobgw.ProtocolMismatch)
        raw.say(requests.pack(requests.Watch(5, 7)))
        changed = await raw.hear()
        assert isinstance(changed, requests.Changed)
        assert changed.workers[0][:2] == (5, 7)


async def test_unasked_descriptors_are_closed(make_supervisor: MakeSupervisor, place: str) -> None:
    await make_supervisor(runtime_dir=place)
    with Raw(place) as raw:
        raw.say(hello())
        await raw.hear()
        before = len(procs.open_fds())
        for count in (1, 17, 30):
            socket.send_fds(raw._socket, [requests.pack(requests.Follow())], [0] * count)
            refusal = await raw.hear()
            assert isinstance(requests.error_of(refusal), aiobgw.ProtocolMismatch)
        await until(lambda: len(procs.open_fds()) == before)  # a thread closes some


# Too few descriptors.


class Exhausted:
    """A listening socket in a process that has no descriptor left, for some times."""

    def __init__(self, socket: Any, times: int) -> None:
        self._socket = socket
        self.left = times
        self.calls = 0

    def _accept(self) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return self._socket._accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


async def test_without_descriptors_nothing_spins_and_clients_attach_afterwards(
    make_supervisor: MakeSupervisor,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(control, "RETRY_DELAY", 0.1)
    supervisor = await make_supervisor(runtime_dir=place)
    listening = supervisor._core.outside._control
    assert listening is not None
    exhausted: Any = Exhausted(listening._socket, 5)
    listening._socket = exhausted
    began = time.monotonic()
    async with aiobgw.attach(place) as client:
        assert time.monotonic() - began >= 0.5
        assert exhausted.calls <= 5 + 2, "five that failed, the one, and nobody else there"
        assert client.epoch == supervisor.epoch
    lines = [record for record in caplog.records if "no client can attach" in record.message]
    assert len(lines) == 1
    assert "EMFILE" in lines[0].message


async def test_a_client_that_cannot_be_welcomed_is_not_left_waiting(
    make_supervisor: MakeSupervisor, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last descriptor was the client's own: none is left for the pidfd in its welcome."""
    supervisor = await make_supervisor(runtime_dir=place, max_clients=1)
    opened = os.pidfd_open
    failures = [OSError(errno.EMFILE, "too many open files")]

    def pidfd_open(pid: int, flags: int = 0) -> int:
        if failures and pid == os.getpid():
            raise failures.pop()
        return opened(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    try:
        async with aiobgw.attach(place) as client:
            assert client.epoch == supervisor.epoch  # it was tried again
    except aiobgw.AiobgwError:
        pass  # it was told; whoever tries again finds a place
    assert not failures
    async with aiobgw.attach(place) as client:
        assert client.epoch == supervisor.epoch


FEW = """
import asyncio, logging, os, resource, sys, time
import aiobgw

class Say(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)

async def main():
    logging.getLogger("aiobgw").addHandler(Say())
    loop = asyncio.get_running_loop()
    async with aiobgw.Supervisor(name="few", spares=0, runtime_dir=sys.argv[1]):
        async with aiobgw.attach(sys.argv[1]):
            pass
        await loop.run_in_executor(None, int)
        lowest = os.dup(0)
        os.close(lowest)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        before = time.process_time()
        print("low", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        used = time.process_time() - before
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print("used", used, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_host_at_its_limit_says_so_once_and_lets_the_client_in_later(
    place: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOBGW_TEST_LOOP", loop)
    script = procs.start_script(FEW, place)
    assert script.stdin is not None
    assert script.stdout is not None
    everybody = set()
    try:
        assert script.stdout.readline() == "low\n"
        everybody = procs.descendants(script.pid)
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with waiting:
            waiting.connect(f"{place}/control")
            waiting.send(hello())
            assert script.stdout.readline() == "no client can attach: EMFILE\n"
            waiting.settimeout(1.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)  # while it waits, the host tries again, and says nothing
            script.stdin.write("raise the limit\n")
            script.stdin.flush()
            word, used = script.stdout.readline().split()
            assert word == "used"
            assert float(used) < 0.5, "it spins"
            waiting.settimeout(20)
            answer = requests.read_answer(waiting.recv(40_000))
            assert isinstance(answer, requests.Welcome)
        with aiobgw.attach_blocking(place) as client:
            assert client.status().name == "few"
    finally:
        close_script(script)
        procs.wait_dead(everybody)


async def test_the_clients_of_a_supervisor_are_let_go_of_when_they_end(
    make_supervisor: MakeSupervisor, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the one that watches, follows, and never reads."""
    caplog.set_level(logging.WARNING)
    supervisor = await make_supervisor(runtime_dir=place)
    ours = await supervisor.register(WorkerSpec(name="ours", target=targets.sleep))
    await ours.wait_for_startup()
    streams = len(supervisor._core.news._streams)
    before = len(procs.open_fds())
    with Raw(place) as raw:
        raw.say(hello())
        raw.say(requests.pack(requests.Follow()))
        raw.say(requests.pack(requests.Watch(ours.slot, ours.generation)))
        await raw.hear()
        await until(lambda: len(supervisor._core.news._streams) > streams)
    async with aiobgw.attach(place):
        pass
    all_peers = supervisor._core.outside._peers
    assert all_peers is not None
    await until(lambda: not all_peers.clients)
    assert len(procs.open_fds()) == before
    assert len(supervisor._core.news._streams) == streams
    ours.terminate()
    await ours
    assert caplog.text.count("failed") == 0
