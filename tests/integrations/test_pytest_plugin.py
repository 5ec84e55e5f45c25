"""The pytest plugin, as projects use it: each test runs a small suite in another process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aiobgw
from aiobgw._supervisor import census
from aiobgw.integrations._pytest_names import unique_name

from .. import procs
from ..conftest import MakeSupervisor, NewLatch

RUN = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
UNUSED = ("-p", "no:faker", "-p", "no:xdist", "-p", "no:pytest_cov")  # half of a start
INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
SHOP = """
import asyncio, os, sys, time
import aiobgw

def write(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")

def nap(path):
    try:
        write(path, str(os.getpid()))
        time.sleep(3600)
    except SystemExit:
        write(path, "ended in order")
        raise

async def is_there(path):
    async with asyncio.timeout(30):
        while not os.path.exists(path) or not os.path.getsize(path):
            await asyncio.sleep(0.01)

async def napping(start, path):
    handle = await start(nap, path)
    await is_there(path)
    return handle

def say(text, stream="stdout"):
    print(text, file=getattr(sys, stream))
    write("said", text)
    time.sleep(3600)

async def said(start, *args):
    handle = await start(say, *args)
    await is_there("said")
    os.remove("said")
    return handle

def fail(text, when=""):
    while when and not os.path.exists(when):
        time.sleep(0.01)
    raise ValueError(text)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a module for workers, shop.py."""
    for name in ("PYTHONUNBUFFERED", "PYTEST_XDIST_WORKER", "AIOBGW_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    pytester.makefile(".ini", pytest=INI)
    pytester.makepyfile(shop=SHOP)
    return pytester


def run(project: pytest.Pytester, *args: str, unused: tuple[str, ...] = UNUSED) -> pytest.RunResult:
    return project.run(*RUN, *unused, *args, timeout=60)


def start(project: pytest.Pytester, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RUN, *UNUSED, *args], cwd=project.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for_file(path: Path, seconds: float = 30.0) -> None:
    """Wait until it is there: who writes it can tell nobody else."""
    give_up = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < give_up, f"{path} does not appear"
        time.sleep(0.01)


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    """Return how many tests ended how; another suite's shared memory may lead to warnings."""
    found = result.parseoutcomes()
    found.pop("warnings", None)
    return found


def passed(result: pytest.RunResult, number: int) -> None:
    assert outcomes(result) == {"passed": number}, result.stdout.str()


# Projects that do not use it.


def test_a_project_that_does_not_use_it_is_told_nothing_and_imports_nothing(
    project: pytest.Pytester,
) -> None:
    project.makeconftest("""
        import sys
        def pytest_sessionfinish():
            mine = sorted(name for name in sys.modules if name.split(".")[0] == "aiobgw")
            print("\\nMODULES", *[name.rpartition(".")[2] for name in mine])
            print("OTHERS", "pytest_asyncio" in sys.modules, "asyncio" in sys.modules)
    """)
    project.makepyfile(test_sync="def test_it(): pass")
    alone = ["anyio", "asyncio", "timeout"]
    for plugins, mine, others in (
        ((), "aiobgw integrations _pytest_asyncio pytest_plugin", "True True"),
        (alone, "aiobgw integrations pytest_plugin", "False False"),
    ):
        project.makefile(".ini", pytest="[pytest]" if plugins else INI)  # an unknown option warns
        result = run(project, "-W", "error", "-s", *(f"-pno:{name}" for name in plugins))
        passed(result, 1)
        result.stdout.fnmatch_lines([f"MODULES {mine}", f"OTHERS {others}"])
        result.stdout.no_fnmatch_line("*warning*")


# Fixtures.

HEAD = """
import asyncio, os
import pytest, aiobgw, shop

@pytest.fixture(scope="session")
def aiobgw_options():
    return {"max_workers": 5}
"""
TESTS = """
@async_test
async def test_a_worker(aiobgw_worker, aiobgw_supervisor, request):
    name = request.node.name
    assert aiobgw_supervisor.name == name
    handle = await shop.napping(aiobgw_worker, f"{name}.worker")
    spec = aiobgw.WorkerSpec(name="other", target="time:sleep", args=(3600,))
    other = await aiobgw_worker(spec, restart=aiobgw.Restart.NEVER)
    command = await aiobgw_worker(command=["sleep", "3600"])
    assert [one.name for one in (handle, other, command)] == ["nap", "other", "sleep"]
    assert all(one.status().pid for one in (handle, other, command))
    assert aiobgw_supervisor.handles() == [handle, other, command]
    with pytest.raises(aiobgw.NeverStarted, match="no_such_module"):
        await aiobgw_worker("no_such_module:main")

@async_test
async def test_supervisors(make_supervisor, mine):
    spec = aiobgw.WorkerSpec(name="first", target="time:sleep", args=(3600,))
    first = await make_supervisor(spec, max_workers=3, runtime_dir=True)
    await first.get("first").wait_for_startup()
    second = await make_supervisor(runtime_dir=True)
    third = await make_supervisor()
    made = [mine, first, second, third]
    assert [one.status().max_workers for one in made] == [5, 3, 5, 5]
    assert len({one.name for one in made}) == 4
    async with aiobgw.attach(second.name) as client:
        assert client.epoch == second.epoch
    shop.write("directories", os.environ["AIOBGW_RUNTIME_DIR"])
    second.abandon()
    await third.shutdown()

@session_test
async def test_the_session_begins(
    aiobgw_session_worker, make_session_supervisor, aiobgw_worker, request
):
    handle = await shop.napping(aiobgw_session_worker, f"{request.node.name}.worker")
    nap = aiobgw.WorkerSpec(name="nap", target=shop.nap, args=("session.worker",))
    supervisor = await make_session_supervisor(nap, name="shop", runtime_dir=True)
    await shop.is_there("session.worker")
    shop.write("directories", os.environ["AIOBGW_RUNTIME_DIR"])
    await aiobgw_worker("time:sleep", 3600)
    handle.terminate()
    await handle

@session_test
async def test_the_session_goes_on(aiobgw_session_supervisor):
    assert not aiobgw_session_supervisor.handles()
    async with aiobgw.attach("shop") as client:
        assert client.epoch != aiobgw_session_supervisor.epoch

@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

def test_a_plain_test_with_a_loop_of_its_own(loop, make_supervisor, request):
    async def main():
        supervisor = await make_supervisor()
        async def start(target, *args):
            return await supervisor.register(aiobgw.WorkerSpec(name="w", target=target, args=args))
        await shop.napping(start, f"{request.node.name}.worker")
    loop.run_until_complete(main())

def test_a_plain_test_whose_loop_is_closed(make_supervisor):
    async def main():
        supervisor = await make_supervisor()
        spec = aiobgw.WorkerSpec(name="w", target="shop:nap", args=("abandoned",))
        await (await supervisor.register(spec)).wait_for_startup()
    asyncio.run(main())
"""
ASYNCIO = """
import pytest_asyncio
session_test = pytest.mark.asyncio(loop_scope="session")

@pytest_asyncio.fixture
async def mine(make_supervisor):
    return await make_supervisor()

class TestOtherLoops:
    @pytest.mark.asyncio(loop_scope="module")
    async def test_of_the_module(self, aiobgw_worker):
        await shop.napping(aiobgw_worker, "module.worker")

    @pytest.mark.asyncio(loop_scope="class")
    async def test_of_the_class(self, aiobgw_worker):
        await shop.napping(aiobgw_worker, "class.worker")
"""
ANYIO = """
async_test = session_test = pytest.mark.anyio

@pytest.fixture(scope="session")
def anyio_backend(request):
    return "asyncio", {"use_uvloop": UVLOOP}

@pytest.fixture
async def mine(make_supervisor):
    return await make_supervisor()
"""


@pytest.mark.parametrize(
    ("runner", "args", "tests", "workers"),
    [
        (f"{ASYNCIO}\nasync_test = pytest.mark.asyncio\n", (), 8, 6),
        (f"{ASYNCIO}\nasync_test = lambda test: test\n", ("--asyncio-mode=auto",), 8, 6),
        (f"UVLOOP = False\n{ANYIO}", (), 6, 4),
        (f"UVLOOP = True\n{ANYIO}", (), 6, 4),
    ],
    ids=["strict", "auto", "anyio", "uvloop"],
)
def test_the_fixtures_end_their_workers_in_order_in_the_loop_of_the_test(
    project: pytest.Pytester, runner: str, args: tuple[str, ...], tests: int, workers: int
) -> None:
    project.makepyfile(test_it=HEAD + runner + TESTS)
    passed(run(project, *args), tests)
    said = {path.name: lines(path) for path in project.path.glob("*.worker")}
    assert len(said) == workers
    assert {tuple(rest) for _, *rest in said.values()} == {("ended in order",)}
    assert not procs.wait_dead({int(pid) for pid, *_ in said.values()})
    assert "ended in order" not in lines(project.path / "abandoned")
    directories = lines(project.path / "directories")
    assert len(set(directories)) == 2
    assert not any(map(os.path.exists, directories))


def test_who_cannot_have_a_supervisor_is_told_why(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_plain="""
        def test_it(aiobgw_worker): pass
        """,
        test_loop="""
        import pytest
        @pytest.mark.asyncio
        async def test_it(aiobgw_session_worker): pass
        """,
        test_scope="""
        import pytest
        @pytest.mark.anyio
        async def test_it(aiobgw_session_worker): pass
        @pytest.mark.aiobgw(leak=False)
        def test_marker(): pass
        """,
        test_two="""
        import pytest
        @pytest.fixture(scope="session", params=[False, True])
        def anyio_backend(request):
            return "asyncio", {"use_uvloop": request.param}
        @pytest.mark.anyio
        async def test_it(aiobgw_session_worker):
            await (await aiobgw_session_worker("time:time"))
        """,
    )
    for file, ended, told in (
        ("test_plain.py", {"errors": 1}, ["*has none*mark it*make_supervisor*"]),
        ("test_loop.py", {"errors": 1}, ["*in another one*loop_scope='session'*"]),
        (
            "test_scope.py",
            {"errors": 2},
            ["*override anyio_backend*scope='session'*", "*takes leaks=True or leaks=False*"],
        ),
        ("test_two.py", {"passed": 1, "errors": 1}, ["*need an anyio_backend with one value*"]),
    ):
        result = run(project, file)
        assert outcomes(result) == ended
        result.stdout.fnmatch_lines(told)
    assert run(project, "-o", "aiobgw_leaks=perhaps").ret == pytest.ExitCode.USAGE_ERROR


# What is left behind.

LEAKS = """
import asyncio, gc, multiprocessing, os, subprocess, sys
from multiprocessing.shared_memory import SharedMemory
import pytest, aiobgw, shop

kept = []  # what is not referred to any more might be gone

@pytest.fixture(scope="module")
def of_the_module():
    kept.extend(os.pipe())
    file = f"/dev/shm/aiobgw-module-{os.getpid()}"
    with open(file, "w"), subprocess.Popen(["sleep", "3600"]) as process:
        yield
        process.kill()
    os.unlink(file)

@pytest.mark.aiobgw
def test_what_a_module_owns_does_not_count(of_the_module): pass

@pytest.mark.aiobgw
@pytest.mark.asyncio
async def test_supervisor():
    supervisor = aiobgw.Supervisor(name="lost")
    kept.append(await supervisor.__aenter__())
    handle = await supervisor.register(aiobgw.WorkerSpec(name="w", target=shop.nap, args=("p",)))
    shop.write("pids", str((await handle.wait_for_startup()).pid))

@pytest.mark.asyncio(loop_scope="session")
async def test_worker(aiobgw_session_worker):
    handle = await aiobgw_session_worker("time:sleep", 3600, name="left")
    shop.write("pids", str(handle.status().pid))

@pytest.mark.asyncio(loop_scope="session")
async def test_worker_again(aiobgw_session_worker, aiobgw_session_supervisor):
    assert not aiobgw_session_supervisor.handles()
    handle = await aiobgw_session_worker("time:sleep", 3600)
    handle.terminate()  # nobody waits, and yet it is about to end

@pytest.mark.aiobgw
def test_processes():
    script = "sleep 3601 & echo $!; wait"
    kept.append(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE))
    shop.write("pids", str(kept[-1].pid))
    shop.write("pids", kept[-1].stdout.readline().decode().strip())

@pytest.mark.aiobgw
def test_descriptor():
    kept.append(open(os.devnull))

@pytest.mark.aiobgw
def test_shared_memory():
    kept.append(SharedMemory(create=True, size=10))
    shop.write("files", kept[-1].name)

@pytest.mark.aiobgw
def test_what_multiprocessing_keeps_does_not_count():
    shared = SharedMemory(create=True, size=10)
    shared.close()
    shared.unlink()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=os.getpid)
    process.start()
    process.join()
    process.close()

@pytest.mark.aiobgw
def test_what_is_in_a_cycle_does_not_count():
    gc.disable()
    cycle = [open(os.devnull)]
    cycle.append(cycle)

@pytest.mark.aiobgw(leaks=False)
def test_unmarked():
    kept.append(open(os.devnull))

def test_not_used():
    kept.append(open(os.devnull))
"""


def test_what_a_test_leaves_behind_fails_it_and_is_named_and_ended(
    project: pytest.Pytester,
) -> None:
    project.makefile(".ini", pytest=INI + "    ignore::ResourceWarning")
    project.makepyfile(test_leaks=LEAKS)
    result = run(project)
    assert outcomes(result) == {"passed": 11, "errors": 5}
    pids = lines(project.path / "pids")
    [file] = lines(project.path / "files")
    for told in (
        ["test_supervisor left behind:", f"  *'lost' ('w' running, pid {pids[0]}): ended"],
        ["test_worker left behind:", f"  worker 'left' running, pid {pids[1]}*'session': killed"],
        [f"  process {pids[2]} (sh -c sleep*): killed", "  descriptor * (pipe:*): left open"],
        [f"  process {pids[3]} (sleep 3601): killed"],
        ["test_descriptor left behind:", "  descriptor * (/dev/null): left open", "What is st*"],
        ["test_shared_memory left behind:", f"  shared memory /dev/shm/{file}: unlinked"],
    ):
        result.stdout.fnmatch_lines(told)
    assert not procs.wait_dead(set(map(int, pids)))
    assert not os.path.exists(f"/dev/shm/{file}")


def test_which_tests_are_looked_at_is_configured(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import os, pytest
        kept = []
        def test_unmarked(): kept.extend(os.pipe())
        @pytest.mark.aiobgw
        def test_marked(): kept.extend(os.pipe())
        """
    )
    for mode, names in (("off", []), ("used", ["test_marked"]), ("all", ["test_unmarked", "t*"])):
        result = run(project, "-o", f"aiobgw_leaks={mode}")
        assert outcomes(result) == {"passed": 2} | ({"errors": len(names)} if names else {})
        if names:
            result.stdout.fnmatch_lines([f"{name} left behind:" for name in names])


STRANGER = """
import fcntl, os, sys
from aiobgw.integrations import _pytest_leaks as leaks
from aiobgw.integrations import _pytest_processes as processes

leaks.SHARED_MEMORY, pid = sys.argv[1], int(sys.argv[2])
leaks.make_ready()

def look():
    mine, unknown = leaks._by_holder({"file"})
    print(*mine, "|", *unknown, flush=True)
    input()

look()
look()
os.environ["PYTEST_XDIST_WORKER"] = "gw0"
look()
del os.environ["PYTEST_XDIST_WORKER"]
other = os.open(leaks.SHARED_MEMORY, os.O_RDONLY)
fcntl.flock(other, fcntl.LOCK_SH)
look()
file = open(f"{leaks.SHARED_MEMORY}/file")
look()
print(processes.kill([pid]), pid in processes.descendants())
"""


def test_what_may_be_a_strangers_is_left_alone(tmp_path: Path) -> None:
    """A file that a stranger holds is the stranger's; one that nobody holds may be.

    In this order: held by us, by nobody, by nobody under xdist, by nobody while another test
    process looks for leaks, by the one who asks.
    """
    said = []
    with subprocess.Popen(["sleep", "3600"]) as stranger:
        ours = (tmp_path / "file").open("w")
        with procs.start_script(STRANGER, str(tmp_path), str(stranger.pid)) as looking:
            assert looking.stdout is not None and looking.stdin is not None
            for _ in range(5):
                said.append(looking.stdout.readline().strip())
                ours.close()
                print(file=looking.stdin, flush=True)
            said.append(looking.stdout.readline().strip())
        assert stranger.poll() is None
        stranger.kill()
    assert said == ["|", "file |", "| file", "| file", "file |", "set() False"]


# Failure reports.

REPORTS = """
import asyncio, os, subprocess
import pytest, pytest_asyncio, aiobgw, shop

@pytest.mark.asyncio
async def test_fails(aiobgw_worker):
    fails = await aiobgw_worker(shop.fail, "no such picture")
    await fails.wait_for_exit()
    await shop.said(aiobgw_worker, "out of the worker")
    await shop.said(aiobgw_worker, "err of the worker", "stderr")
    crashes = await aiobgw_worker(os.abort, restart=aiobgw.Restart.NEVER)
    await crashes
    global left
    left = subprocess.Popen(["sleep", "3600"])
    assert 0, "its own failure"

@pytest_asyncio.fixture
async def late(aiobgw_worker):
    handle = await aiobgw_worker(shop.fail, "too late", "go")
    yield
    shop.write("go", "")
    await handle.wait_for_exit()

@pytest.mark.asyncio
async def test_late(late):
    assert 0

@pytest.mark.asyncio(loop_scope="session")
async def test_session_begins(aiobgw_session_worker):
    for args in (shop.fail, "of an earlier test"), ("time:sleep", 3600):
        handle = await aiobgw_session_worker(*args, name="early")
        handle.kill()
        await handle

@pytest.mark.asyncio(loop_scope="session")
async def test_session_fails(aiobgw_session_worker, aiobgw_session_supervisor):
    handle = await shop.said(aiobgw_session_worker, "out of the session")
    handle.kill()
    await handle
    assert 0
"""


def test_a_failure_report_tells_what_workers_did_and_said(project: pytest.Pytester) -> None:
    project.makefile(".ini", pytest=INI + "    ignore::ResourceWarning")
    project.makepyfile(test_it=REPORTS)
    result = run(project)
    assert outcomes(result) == {"failed": 3, "passed": 1}
    result.stdout.fnmatch_lines(
        [
            "*= FAILURES =*",
            "*_ test_fails _*",
            "E * its own failure",
            "*- Captured stdout call -*",
            "out of the worker",
            "*- Captured stderr call -*",
            "ValueError: no such picture",
            "err of the worker",
            "Fatal Python error: Aborted",
            "*- aiobgw workers -*",
            "supervisor 'test_fails': running",
            "  worker 'fail': back-off, pid *",
            "    incarnation 1: failed with exit code 1",
            "      ValueError: no such picture",
            "  worker 'say': running, pid *",
            "  worker 'abort': stopped, pid *",
            "    incarnation 1: crashed by SIGABRT*",
            "*- left behind, found at teardown -*",
            "process * (sleep 3600): killed",
            "*_ test_late _*",
            "  worker 'fail': running, pid *",
            "*- aiobgw workers, until teardown -*",
            "    incarnation 1: failed with exit code 1",
            "      ValueError: too late",
            "*_ test_session_fails _*",
            "*- Captured stdout call -*",
            "out of the session",
            "*- aiobgw workers -*",
            "supervisor 'session': running",
            "  worker 'say': stopped, pid *, killed",
        ]
    )
    result.stdout.no_fnmatch_line("*early*")

    result = run(project, "--capture=sys", "-k", "session_fails")
    result.stdout.no_fnmatch_line("*Captured stdout*")
    result.stdout.fnmatch_lines(["*out of the session", "*= FAILURES =*"])


# Ends.

ENDS = """
import asyncio, os, signal, threading
import pytest, aiobgw, shop
pytestmark = pytest.mark.asyncio

@pytest.mark.timeout(60, method="signal")
async def test_timeout(aiobgw_worker):
    handle = await shop.napping(aiobgw_worker, "timeout.worker")
    # As if the time were over: pytest-timeout's own handler, while the loop waits.
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGALRM)).start()
    await handle

async def test_cancelled(aiobgw_worker):
    await shop.napping(aiobgw_worker, "cancelled.worker")
    asyncio.current_task().cancel()
    await asyncio.sleep(0)

async def test_stubborn(aiobgw_worker):
    command = ["sh", "-c", "trap '' TERM; echo $$ > stubborn; while :; do sleep 3600; done"]
    await aiobgw_worker(command=command, stop_timeout=0.1)
    await shop.is_there("stubborn")

async def gives_up(make_supervisor):
    supervisor = await make_supervisor(restart_after_crash=False)
    spec = aiobgw.WorkerSpec(
        name="member", target="time:sleep", args=(3600,),
        flags=aiobgw.Flags.SHMEM_ACCESS, crash_scope=aiobgw.CrashScope.ALL,
    )
    events = supervisor.events()
    handle = await supervisor.register(spec)
    await handle.wait_for_startup()
    handle.kill()
    assert isinstance([event async for event in events][-1], aiobgw.Closed)
    return supervisor

async def test_gives_up_unheard(make_supervisor):
    await gives_up(make_supervisor)

async def test_gives_up_heard(make_supervisor):
    supervisor = await gives_up(make_supervisor)
    with pytest.raises(aiobgw.SupervisorFailed):
        await supervisor.wait_closed()
"""


def test_whatever_the_end_of_a_test_its_workers_end(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=ENDS)
    result = run(project)
    assert outcomes(result) == {"failed": 2, "passed": 3, "errors": 1}
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_gives_up_unheard*",
            "a supervisor gave up, and nobody asked it why:",
            "*SupervisorFailed: *member*",
            "*awaits wait_closed()*",
            "*FAILURES*",
            "*Timeout*from pytest-timeout*",
            "*CancelledError*",
        ]
    )
    for name in ("timeout", "cancelled"):
        assert lines(project.path / f"{name}.worker")[1:] == ["ended in order"]
    assert not procs.wait_dead({int(pid) for pid in lines(project.path / "stubborn")})


HANGS = """
import os, time
import pytest, shop

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it(aiobgw_worker, aiobgw_supervisor):
    shop.write("pids", str(os.getpid()))
    shop.write("pids", str((await shop.napping(aiobgw_worker, "worker")).status().pid))
    shop.write("pids", str(aiobgw_supervisor.status().zygote_pid))
    os.rename("pids", "all")
    time.sleep(3600)
"""


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_nothing_outlives_a_pytest_that_is_ended_by_force(
    project: pytest.Pytester, how: str
) -> None:
    """pytest-timeout's "thread" method ends in os._exit; kill -9 is what CI does."""
    project.makepyfile(test_it=HANGS)
    args = ("--timeout=6", "--timeout-method=thread") if how == "timeout" else ()
    with start(project, *args) as process:
        if how == "kill":
            wait_for_file(project.path / "all")
            process.kill()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == (1 if how == "timeout" else -9), output
    pids = set(map(int, lines(project.path / "all")))
    assert len(pids) == 3
    assert not procs.wait_dead(pids)


# Beside other plugins.

TWICE = """
import asyncio, os
import pytest, aiobgw, shop
me = os.environ["PYTEST_XDIST_WORKER"]

async def meet(where):
    shop.write(f"{where}-{me}", "")
    for worker in ("gw0", "gw1"):
        await shop.is_there(f"{where}-{worker}")

@pytest.mark.asyncio(loop_scope="session")
async def test_it(make_supervisor, aiobgw_supervisor):
    assert aiobgw_supervisor.name == f"test_it-{me}"
    supervisor = await make_supervisor(name="shop", runtime_dir=True)
    await meet("up")
    async with aiobgw.attach("shop") as client:
        assert client.epoch == supervisor.epoch
    await meet("done")

@pytest.mark.asyncio(loop_scope="session")
async def test_session(make_session_supervisor, aiobgw_session_supervisor):
    assert aiobgw_session_supervisor.name == f"session-{me}"
    supervisor = await make_session_supervisor(name="shop", runtime_dir=True)
    await meet("session-up")
    async with aiobgw.attach("shop") as client:
        assert client.epoch == supervisor.epoch
    await meet("session-done")

@pytest.mark.aiobgw
def test_files():
    shop.write(f"/dev/shm/{os.getcwd().replace('/', '-')}-{me}", "")
    held = f"/dev/shm/{os.getcwd().replace('/', '-')}-{me}-held"
    test_files.held = open(held, "w")
"""


def test_test_processes_side_by_side_do_not_meet(project: pytest.Pytester) -> None:
    """And shared memory that another one of them may have made is no more than a warning."""
    project.makepyfile(test_it=TWICE)
    name = f"/dev/shm/{str(project.path).replace('/', '-')}"
    try:
        result = run(project, "--dist=each", "--tx=2*popen", unused=())
        assert outcomes(result) == {"passed": 6, "errors": 2}
        for worker in ("gw0", "gw1"):
            result.stdout.fnmatch_lines([f"*shared memory {name}-{worker}-held: unlinked"])
            result.stdout.fnmatch_lines([f"*left behind by this test or by others: *{name}*"])
            assert os.path.exists(f"{name}-{worker}")
    finally:
        for worker in ("gw0", "gw1"):
            Path(f"{name}-{worker}").unlink(missing_ok=True)


def test_what_runs_in_workers_is_measured_with_the_two_patches(project: pytest.Pytester) -> None:
    project.makepyfile(
        work="def work():\n    one = 1\n    return one + 1\n",
        test_it="""
        import pytest, work
        @pytest.mark.asyncio
        async def test_it(aiobgw_worker):
            await (await aiobgw_worker(work.work))
        """,
    )
    for patch, covered in (('patch = ["subprocess", "_exit"]', "100%"), ("", "33%")):
        project.makepyprojecttoml(f"[tool.coverage.run]\nparallel = true\n{patch}\n")
        result = run(project, "--cov=work", "--cov-report=term", unused=())
        assert outcomes(result)["passed"] == 1
        result.stdout.fnmatch_lines([f"work.py *{covered}*"])


# Its parts.


@pytest.mark.anyio
async def test_a_supervisor_knows_its_descriptors(
    make_supervisor: MakeSupervisor, new_latch: NewLatch, place: str
) -> None:
    """All of them: those that are not its own are somebody's leak."""
    latch, before = new_latch(), procs.open_fds()
    supervisor = await make_supervisor(runtime_dir=place, spares=1)
    register = supervisor.register
    sleeps = {"name": "w", "target": "tests.targets:sleep", "latches": {"go": latch}}
    await (await register(aiobgw.WorkerSpec(**sleeps))).wait_for_startup()
    member = aiobgw.WorkerSpec(
        name="member", target="tests.targets:sleep", flags=aiobgw.Flags.SHMEM_ACCESS
    )
    await (await register(member)).wait_for_startup()
    large = aiobgw.WorkerSpec(name="large", target="tests.targets:echo", args=("x" * 10_000,))
    await (await register(large)).wait_for_exit()  # no such path: it is to be started again
    held = census.descriptors(census.core_of(supervisor))
    assert held == {fd for fd, what in procs.open_fds().items() if before.get(fd) != what}


def test_a_supervisors_name_is_made_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert unique_name("test_it[a/b\n]", 1) == "test_it[a_b_]"
    assert unique_name("test_it", 2) == "test_it-2"
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw12")
    name = unique_name("\u00e4" * 100, 1)
    assert name == "\u00e4" * 45 + "-gw12"
    assert aiobgw.Settings(name=name).name == name


def test_the_readmes_snippets_run_as_printed(project: pytest.Pytester) -> None:
    text = (procs.ROOT / "README.md").read_text()
    section = text.partition("## In your tests\n")[2].partition("\n## ")[0]
    shop, tests, rules = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
    [options] = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    Path(project.path / "pytest.ini").unlink()
    (project.path / "shop.py").write_text(shop)
    (project.path / "test_shop.py").write_text(tests)
    (project.path / "test_rules.py").write_text(rules)
    (project.path / "pyproject.toml").write_text(options)
    result = run(project, "--cov=shop", "--cov-report=term", unused=())
    assert outcomes(result)["passed"] == (tests + rules).count("def test_")
    # Of five statements; a worker may be ended before it comes to the last one.
    assert re.search(r"^shop\.py +5 +[01] ", result.stdout.str(), re.MULTILINE)
