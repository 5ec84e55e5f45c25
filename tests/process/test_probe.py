"""What a machine lacks is found out at the start, and named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import pytest

import aiobgw
from aiobgw._process import lifeline, probe

from .. import procs

pytestmark = pytest.mark.anyio


def refuse(number: int) -> Any:
    def call(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


async def refusal(**options: Any) -> str:
    with pytest.raises(aiobgw.Unsupported) as caught:
        await aiobgw.Supervisor(name="probe", **options).__aenter__()
    return " ".join((str(caught.value), *caught.value.__notes__))


@pytest.mark.parametrize(
    ("owner", "name", "number", "named"),
    [
        (os, "pidfd_open", errno.ENOSYS, "pidfd_open"),
        (os, "pidfd_open", errno.EPERM, "pidfd_open"),
        (os, "memfd_create", errno.ENOSYS, "sealed memfd"),
        (os, "eventfd", errno.ENOSYS, "eventfd"),
        (lifeline, "reopen", errno.ENOENT, "/proc/self/fd"),
    ],
    ids=["old kernel", "seccomp", "no memfd", "no eventfd", "no proc"],
)
async def test_a_machine_that_lacks_something_is_told_what(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, named: str
) -> None:
    monkeypatch.setattr(owner, name, refuse(number))
    told = await refusal()
    assert f"{named}" in told.split(" does not work here")[0]
    assert os.strerror(number) in told
    assert "needs Linux" in told


async def test_a_frozen_executable_needs_to_be_given_an_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "Supervisor(python=...)" in await refusal()
    async with aiobgw.Supervisor(name="given", spares=0, python=sys.executable):
        pass


@pytest.mark.parametrize("executable", ["", "/nonexistent/uwsgi"])
async def test_a_host_without_an_interpreter_of_its_own_says_so(
    monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    assert "no interpreter" in await refusal()


async def test_descriptors_are_counted_and_the_limit_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(256, 4096)]
    monkeypatch.setattr(probe.resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(probe.resource, "setrlimit", lambda which, pair: limits.append(pair))
    assert probe.make_room(10, 0, 0) is None
    assert probe.make_room(1000, 2, 0) == 256
    soft, hard = limits[-1]
    assert 3000 < soft <= hard == 4096
    with pytest.raises(aiobgw.Unsupported, match=r"2000 workers .* need 6\d\d\d .* 4096 are"):
        probe.make_room(2000, 2, 128)


def test_elsewhere_the_package_imports_and_says_what_it_needs() -> None:
    source = """
import sys
sys.platform = "darwin"
import aiobgw
spec = aiobgw.WorkerSpec(name="w", target="a:b")
try:
    aiobgw.Supervisor
except aiobgw.Unsupported as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", source],
        cwd=procs.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ran.stdout == "aiobgw.Supervisor needs Linux, this is darwin\n"
