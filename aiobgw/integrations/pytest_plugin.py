"""The pytest plugin: supervisors and workers as fixtures, and a look at what was left behind.

Loaded by its entry point, ``aiobgw``; imports the rest of aiobgw in its fixtures only.

    make_supervisor      await make_supervisor(*specs, **options): a started Supervisor
    aiobgw_supervisor    a started Supervisor
    aiobgw_worker        await aiobgw_worker(target_or_spec, *args, **fields): its handle, started
    make_session_supervisor, aiobgw_session_supervisor, aiobgw_session_worker
                         the same, for the whole session: tests must run in its event loop
    aiobgw_options       override it: what all supervisors of the fixtures are made with

With pytest-asyncio (both modes, every ``loop_scope``) and anyio's plugin on asyncio.  Plain
tests have ``make_supervisor``, for use inside ``asyncio.run``.  At the end of its scope every
supervisor is shut down (FAST) in its own loop, also after a failure or a timeout; one whose loop
is closed is abandoned, and the kernel ends its workers.

**Left behind.**  After a test that uses a fixture or is marked ``aiobgw``, what it has left is
named, ended where it is ours to end, and fails the test: supervisors, workers of a session's
supervisor, processes, descriptors, files in /dev/shm.  ``aiobgw_leaks`` in the configuration:
"used", "all" tests, "off"; for one test ``@pytest.mark.aiobgw(leaks=False)``.  What
multiprocessing keeps for the life of the process does not count.

**Reports.**  A failed test has a section "aiobgw workers": states, pids, exits, tracebacks.  What
workers print is in pytest's "Captured stdout"; with ``-s`` and ``--capture=sys`` it goes to
the terminal, since those do not redirect descriptors.

**Names.**  Each such test has a base directory of its own for ``runtime_dir=True`` and
``attach(name)`` (AIOBGW_RUNTIME_DIR), and tests that use the session's supervisors have the
session's: nobody meets another test, or a service of the machine.

**Coverage** of what runs in workers needs two patches of coverage.py: "subprocess" (the zygote
is a new interpreter) and "_exit" (workers end by ``os._exit``); SIGKILL loses the data::

    [tool.coverage.run]
    parallel = true
    patch = ["subprocess", "_exit"]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import asyncio

    from .._client.handle import WorkerHandle
    from .._supervisor.supervisor import Supervisor
    from ..spec import WorkerSpec
    from ._pytest_leaks import Watch
    from ._pytest_maker import Maker

_ASYNCIO = ("asyncio", "pytest_asyncio", "pytest_asyncio.plugin")
_WORKERS = "aiobgw workers"
_LEFT = "left behind, found at teardown"

_maker = pytest.StashKey["Maker"]()
_failed = pytest.StashKey[bool]()
_left = pytest.StashKey[str]()
_session_maker = pytest.StashKey["Maker"]()
_session_loop = pytest.StashKey["str | None"]()


class MakeSupervisor(Protocol):
    """What ``make_supervisor`` is."""

    async def __call__(self, *specs: WorkerSpec, **options: Any) -> Supervisor:
        """Start a supervisor, with static workers; its end is the fixture's."""


class StartWorker(Protocol):
    """What ``aiobgw_worker`` is."""

    async def __call__(self, target: Any = None, /, *args: Any, **fields: Any) -> WorkerHandle:
        """Register a worker and wait until it has started.

        *target* is a function, its name or a WorkerSpec; *args* are the target's, *fields*
        those of WorkerSpec (``kwargs``, ``command``, ``restart`` ...); the name is the target's.
        """


# What pytest asks.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "aiobgw_leaks",
        default="used",
        help='after which tests aiobgw looks for what is left behind: "used" (those that use'
        ' its fixtures or its marker), "all" or "off"',
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "aiobgw(leaks=True): have aiobgw look for what the test leaves behind, or not",
    )
    if config.getini("aiobgw_leaks") not in ("used", "all", "off"):
        raise pytest.UsageError('aiobgw_leaks must be "used", "all" or "off"')
    if any(config.pluginmanager.hasplugin(name) for name in _ASYNCIO):
        try:
            from . import _pytest_asyncio as loops
        except (ImportError, TypeError):
            return  # a version that knows no loop_scope: as if it were not there
        config.pluginmanager.register(loops, "aiobgw_asyncio")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed:
        _add_section(report, _WORKERS, _workers(item))
        item.stash[_failed] = True
    elif report.when == "teardown" and item.stash.get(_failed, False):
        _add_section(report, f"{_WORKERS}, until teardown", _workers(item, only_failed=True))
    if report.when == "teardown":
        _add_section(report, _LEFT, item.stash.get(_left, ""))
        _forget(item.stash)


def _add_section(report: pytest.TestReport, name: str, text: str) -> None:
    if text:
        report.sections.append((name, text))


def _forget(stash: pytest.Stash) -> None:
    """Forget a test; it may be run again."""
    if _maker in stash:
        del stash[_maker]
    stash[_failed], stash[_left] = False, ""


def _workers(item: pytest.Item, *, only_failed: bool = False) -> str:
    """Return what is to be told of the workers of a test, and of the session's if it has them."""
    maker = item.stash.get(_maker, None)
    session = item.config.stash.get(_session_maker, None) if _has_session(item) else None
    texts = [m.report(only_failed=only_failed) for m in (maker, session) if m is not None]
    return "\n".join(filter(None, texts))


def _has_session(asking: Any) -> bool:
    return "_aiobgw_session_maker" in getattr(asking, "fixturenames", ())


# The event loop of a test, or of the session, if anyio runs it.


@pytest.fixture
async def _aiobgw_anyio(anyio_backend: Any) -> asyncio.AbstractEventLoop:
    from ._pytest_loops import running_loop

    return running_loop()


@pytest.fixture(scope="session")
async def _aiobgw_anyio_session(anyio_backend: Any) -> asyncio.AbstractEventLoop:
    from ._pytest_loops import running_loop

    return running_loop()


# Who makes supervisors.


@pytest.fixture(scope="session")
def aiobgw_options() -> dict[str, Any]:
    """Options for all supervisors that the fixtures make; override it with your own."""
    return {}


@pytest.fixture
def _aiobgw_maker(
    request: pytest.FixtureRequest, aiobgw_options: dict[str, Any]
) -> Iterator[Maker]:
    from ._pytest_loops import get_loop, loop_of_test
    from ._pytest_maker import Maker

    loop = get_loop(request, loop_of_test(request))
    maker = request.node.stash[_maker] = Maker(request.node.name, aiobgw_options, loop)
    yield maker
    _end(maker, failed=request.node.stash.get(_failed, False))


@pytest.fixture(scope="session")
def _aiobgw_session_maker(
    request: pytest.FixtureRequest, aiobgw_options: dict[str, Any]
) -> Iterator[Maker]:
    from ._pytest_loops import get_loop, loop_of_session
    from ._pytest_maker import Maker
    from ._pytest_names import own_directory

    stash = request.config.stash
    name = stash[_session_loop] = loop_of_session(request)
    loop = get_loop(request, name)
    with own_directory(request):
        maker = stash[_session_maker] = Maker("session", aiobgw_options, loop, many_tests=True)
        yield maker
        _end(maker, failed=False)


def _end(maker: Maker, *, failed: bool) -> None:
    """End what a maker has made; what gave up fails the test, unless it has failed before."""
    failures = maker.close()
    if failures and not failed:
        from traceback import format_exception

        told = "".join(text for failure in failures for text in format_exception(failure))
        hint = "a test that expects it awaits wait_closed() in pytest.raises(SupervisorFailed)"
        pytest.fail(f"a supervisor gave up, and nobody asked it why:\n{told}{hint}", pytrace=False)


# What is left behind.


@pytest.fixture(autouse=True)
def _aiobgw_watch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before all other fixtures of the test's own scope, so torn down after them."""
    marker = request.node.get_closest_marker("aiobgw")
    session = _has_session(request)
    used = marker is not None or session or "_aiobgw_maker" in request.fixturenames
    looks = request.config.getini("aiobgw_leaks") in (("used", "all") if used else ("all",))
    looks = looks and (marker is None or _leaks_of(marker))
    if sys.platform != "linux" or not (used or looks):
        yield
        return
    _set_up_loops(request, session=session)
    with _names_of(request) if used and not session else nullcontext():
        if looks:
            yield from _watched(request)
        else:
            yield


def _leaks_of(marker: pytest.Mark) -> bool:
    if marker.args or set(marker.kwargs) - {"leaks"}:
        pytest.fail("the marker aiobgw takes leaks=True or leaks=False, and nothing else")
    return bool(marker.kwargs.get("leaks", True))


def _set_up_loops(request: pytest.FixtureRequest, *, session: bool) -> None:
    """Have what outlives the test set up before the first look at what there is."""
    from . import _pytest_loops as loops

    loop = loops.loop_of_test(request)
    if loop is not None and loops.outlives_test(loop):
        request.getfixturevalue(loop)
    if session:
        maker = request.getfixturevalue("_aiobgw_session_maker")
        maker.all_was_told()
        loops.check_session(loop, request.config.stash[_session_loop], maker.loop)


def _names_of(request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    from ._pytest_names import own_directory

    return own_directory(request)


def _watched(request: pytest.FixtureRequest) -> Iterator[None]:
    from ._pytest_leaks import Watch, make_ready
    from ._pytest_processes import adopting

    make_ready()
    with adopting():
        watch = Watch()
        yield
        _tell_what_is_left(request, watch)


def _tell_what_is_left(request: pytest.FixtureRequest, watch: Watch) -> None:
    from ._pytest_leaks import warn_of_unknown

    failed = request.node.stash.get(_failed, False)
    session = request.config.stash.get(_session_maker, None)
    stay = session.static_workers() if session is not None else {}
    left = watch.left(look_at_descriptors=not failed, stay=stay)
    warn_of_unknown(request.node, watch.unknown)
    if left and failed:
        request.node.stash[_left] = "\n".join(left)  # its own failure stays the first thing shown
    elif left:
        pytest.fail(
            "\n  ".join((f"{request.node.name} left behind:", *left)) + _HINT, pytrace=False
        )


_HINT = """
What is started is to be ended: "async with aiobgw.Supervisor(...)" or one of the fixtures;
handle.terminate() and await handle.wait_for_shutdown(); close() what was opened.
@pytest.mark.aiobgw(leaks=False) switches this check off."""


# The fixtures.


@pytest.fixture
def make_supervisor(_aiobgw_maker: Maker) -> MakeSupervisor:
    """Start supervisors: await make_supervisor(*specs, **options)."""
    return _aiobgw_maker.make


@pytest.fixture
def aiobgw_supervisor(_aiobgw_maker: Maker) -> Supervisor:
    """A started aiobgw.Supervisor, shut down at the end of the test."""
    return _started(_aiobgw_maker, "make_supervisor")


@pytest.fixture
def aiobgw_worker(aiobgw_supervisor: Supervisor) -> StartWorker:
    """Start workers: await aiobgw_worker(target_or_spec, *args, **fields)."""
    return _starter(aiobgw_supervisor)


@pytest.fixture(scope="session")
def make_session_supervisor(_aiobgw_session_maker: Maker) -> MakeSupervisor:
    """Start supervisors that run until the end of the session."""
    return _aiobgw_session_maker.make


@pytest.fixture(scope="session")
def aiobgw_session_supervisor(_aiobgw_session_maker: Maker) -> Supervisor:
    """A started aiobgw.Supervisor, shut down at the end of the session."""
    return _started(_aiobgw_session_maker, "make_session_supervisor")


@pytest.fixture(scope="session")
def aiobgw_session_worker(aiobgw_session_supervisor: Supervisor) -> StartWorker:
    """Start workers of the session's supervisor."""
    return _starter(aiobgw_session_supervisor)


def _started(maker: Maker, instead: str) -> Supervisor:
    if maker.loop is None:
        pytest.fail(
            "a supervisor lives in an event loop, and this test has none: mark it for"
            f" pytest-asyncio or anyio, or use {instead} inside asyncio.run()",
            pytrace=False,
        )
    return maker.make_now()


def _starter(supervisor: Supervisor) -> StartWorker:
    async def start(target: Any = None, /, *args: Any, **fields: Any) -> WorkerHandle:
        from ._pytest_maker import spec_of

        handle = await supervisor.register(spec_of(target, args, fields))
        await handle.wait_for_startup()
        return handle

    return start
