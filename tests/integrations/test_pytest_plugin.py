"""The pytest plugin, as projects use it: each test runs a small suite in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .. import procs

RUN = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
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

async def napping(start, path):
    handle = await start(nap, path)
    async with asyncio.timeout(30):
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
    return handle

def say(text, stream="stdout"):
    print(text, file=getattr(sys, stream))
    write("said", text)
    time.sleep(3600)

async def said(start, *args):
    handle = await start(say, *args)
    async with asyncio.timeout(30):
        while not os.path.exists("said"):
            await asyncio.sleep(0.01)
    os.remove("said")
    return handle

def fail(text):
    raise ValueError(text)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a module for workers, shop.py."""
    pytester.makefile(".ini", pytest=INI)
    pytester.makepyfile(shop=SHOP)
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    return project.run(*RUN, *args, timeout=60)


def start(project: pytest.Pytester, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RUN, *args], cwd=project.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def passed(result: pytest.RunResult, number: int) -> None:
    assert result.parseoutcomes() == {"passed": number}, result.stdout.str()


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
    alone = ["anyio", "asyncio", "xdist", "timeout", "Faker", "pytest_cov"]
    for plugins, mine, others in (
        ((), "aiobgw integrations _pytest_asyncio pytest_plugin", "True True"),
        (alone, "aiobgw integrations pytest_plugin", "False False"),
    ):
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
    second.abandon()
    await third.shutdown()

@session_test
async def test_the_session_begins(
    aiobgw_session_worker, make_session_supervisor, aiobgw_worker, request
):
    handle = await shop.napping(aiobgw_session_worker, f"{request.node.name}.worker")
    await make_session_supervisor(name="shop", runtime_dir=True)
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
        (f"{ASYNCIO}\nasync_test = pytest.mark.asyncio\n", (), 8, 5),
        (f"{ASYNCIO}\nasync_test = lambda test: test\n", ("--asyncio-mode=auto",), 8, 5),
        (f"UVLOOP = False\n{ANYIO}", (), 6, 3),
        (f"UVLOOP = True\n{ANYIO}", (), 6, 3),
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
    for file, outcomes, told in (
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
        assert result.parseoutcomes() == outcomes
        result.stdout.fnmatch_lines(told)
    assert run(project, "-o", "aiobgw_leaks=perhaps").ret == pytest.ExitCode.USAGE_ERROR
