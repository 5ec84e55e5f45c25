"""Which event loop a test runs in, told by what the two plugins make public.

A loop is named by the fixture that returns it, and keeps it open: of ``pytest_plugin`` for
anyio, of ``_pytest_asyncio`` for pytest-asyncio.
"""

from __future__ import annotations

import asyncio

import pytest

ASYNCIO = "_aiobgw_asyncio_"
ANYIO = "_aiobgw_anyio"
ANYIO_SESSION = "_aiobgw_anyio_session"


def loop_of_test(request: pytest.FixtureRequest) -> str | None:
    """Return the fixture that has the loop of the test; None: it is the test's own affair.

    A marker decides: in its auto mode, pytest-asyncio sets it.
    """
    marker = request.node.get_closest_marker("asyncio")
    if marker is not None and _has_asyncio(request.config):
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
        return ASYNCIO + str(scope or _default_scope(request.config))
    return ANYIO if _has_anyio(request) else None


def loop_of_session(request: pytest.FixtureRequest) -> str | None:
    """Return the fixture that has the loop of the session, for whoever asks first."""
    if _has_anyio(request):
        return ANYIO_SESSION
    return f"{ASYNCIO}session" if _has_asyncio(request.config) else None


def outlives_test(loop: str) -> bool:
    return loop not in (f"{ASYNCIO}function", ANYIO)


def _has_asyncio(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("aiobgw_asyncio")


def _has_anyio(request: pytest.FixtureRequest) -> bool:
    plugins = request.config.pluginmanager
    active = plugins.hasplugin("anyio") or plugins.hasplugin("anyio.pytest_plugin")
    return active and "anyio_backend" in request.fixturenames


def _default_scope(config: pytest.Config) -> str:
    try:
        return str(config.getini("asyncio_default_test_loop_scope") or "function")
    except ValueError:
        return "function"  # a version that has no such option


def get_loop(request: pytest.FixtureRequest, name: str | None) -> asyncio.AbstractEventLoop | None:
    """Return the loop, made if need be."""
    if name is None:
        return None
    try:
        loop: asyncio.AbstractEventLoop = request.getfixturevalue(name)
    except pytest.fail.Exception as error:
        if "ScopeMismatch" not in str(error):
            raise
        pytest.fail(
            "aiobgw's session fixtures need one event loop for the session: override"
            f" anyio_backend with a fixture of scope='session'\n{error}",
            pytrace=False,
        )
    return loop


def running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pytest.fail("aiobgw needs asyncio, and this test runs on another library", pytrace=False)


def check_session(
    of_test: str | None, of_session: str | None, loop: asyncio.AbstractEventLoop | None
) -> None:
    """Fail a test that would wait for ever: nothing runs the session's loop meanwhile."""
    if loop is not None and loop.is_closed():
        pytest.fail(
            "the event loop of the session was closed, and its supervisors with it: aiobgw's"
            " session fixtures need an anyio_backend with one value",
            pytrace=False,
        )
    # anyio has one loop at a time, whatever asks for it.
    same = of_session in (of_test, f"{of_test}_session")
    if of_test is not None and of_session is not None and not same:
        pytest.fail(
            "the session's supervisors live in the event loop of the session, and this test"
            " runs in another one: with pytest-asyncio, mark it"
            " @pytest.mark.asyncio(loop_scope='session'); a session has pytest-asyncio's loop"
            " or anyio's, not both",
            pytrace=False,
        )
