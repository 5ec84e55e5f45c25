"""What users may import: the list, what it costs, and errors that cross processes."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys

import pytest

import aiobgw
from aiobgw import errors
from aiobgw.status import ExitKind, ExitStatus

from .procs import ROOT


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: nothing here holds any."""


PUBLIC = [
    "AccessDenied",
    "After",
    "AiobgwError",
    "AlreadyRegistered",
    "AlreadyRunning",
    "BlockingClient",
    "BlockingHandle",
    "Client",
    "Closed",
    "CrashCycle",
    "CrashScope",
    "CurrentWorker",
    "Escalate",
    "Event",
    "EventsLost",
    "ExitKind",
    "ExitStatus",
    "Exited",
    "Flags",
    "Interrupted",
    "InvalidSpec",
    "Latch",
    "NeverStarted",
    "NoFreeSlot",
    "NotAttached",
    "PayloadTooLarge",
    "Phase",
    "PhaseChanged",
    "ProtocolMismatch",
    "Readiness",
    "Ready",
    "Registered",
    "Restart",
    "Restarting",
    "Retired",
    "Settings",
    "ShutdownMode",
    "ShuttingDown",
    "Started",
    "Stopping",
    "Strategy",
    "Supervisor",
    "SupervisorDied",
    "SupervisorFailed",
    "SupervisorStatus",
    "Terminated",
    "TooManyParallelWorkers",
    "Unsupported",
    "WorkerEvent",
    "WorkerFailed",
    "WorkerGroup",
    "WorkerHandle",
    "WorkerSpec",
    "WorkerState",
    "WorkerStatus",
    "WrongProcess",
    "ZygoteRestarted",
    "attach",
    "attach_blocking",
    "current_worker",
]


def run(source: str) -> str:
    """Run *source* in a fresh interpreter, without site-packages and what they import."""
    preamble = f"import sys; sys.path.insert(0, {os.fspath(ROOT)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", preamble + source]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_these() -> None:
    assert list(aiobgw.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_what_its_home_calls_so(name: str) -> None:
    value = getattr(aiobgw, name)
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert value.__doc__, f"{name} has no docstring"


def test_every_public_name_is_listed_for_whoever_explores() -> None:
    assert set(PUBLIC) <= set(dir(aiobgw))
    assert "__version__" in dir(aiobgw)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"module 'aiobgw' has no attribute 'Postmaster'"):
        aiobgw.Postmaster  # noqa: B018
    assert not hasattr(aiobgw, "Postmaster")


def test_a_star_import_brings_the_public_names_and_nothing_else() -> None:
    namespace: dict[str, object] = {}
    exec("from aiobgw import *", namespace)
    namespace.pop("__builtins__")
    assert sorted(namespace) == sorted(PUBLIC)


def test_importing_the_package_imports_nothing_but_the_package() -> None:
    source = """
before = set(sys.modules)
import aiobgw
print(*sorted(set(sys.modules) - before - {"__future__"}))
"""
    assert run(source).split() == ["aiobgw"]


def test_a_name_imports_only_the_way_to_its_home() -> None:
    source = """
import aiobgw
aiobgw.WorkerSpec
print(*sorted(name for name in sys.modules if name.startswith("aiobgw") or name == "asyncio"))
"""
    own = ("_choices", "_names", "_spec_checks", "_spec_options", "errors", "spec")
    assert run(source).split() == ["aiobgw", *(f"aiobgw.{name}" for name in own)]


@pytest.mark.parametrize("name", ["Latch", "NoFreeSlot", "current_worker", "WorkerStatus"])
def test_a_name_that_workers_use_imports_no_asyncio(name: str) -> None:
    assert run(f"import aiobgw; aiobgw.{name}; print('asyncio' in sys.modules)") == "False\n"


def test_every_error_is_public() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == {name for name in PUBLIC if hasattr(errors, name)}


EXIT = ExitStatus(
    incarnation=2, kind=ExitKind.FAILED, code=3, error="ValueError: no\n", name="mailer"
)
ERRORS: list[errors.AiobgwError] = [
    errors.AiobgwError("plain", hint="do something"),
    errors.InvalidSpec.of("mailer", "extra", b"x", "must be shorter"),
    errors.NoFreeSlot(64),
    errors.TooManyParallelWorkers(8),
    errors.PayloadTooLarge(20, 10),
    errors.ShuttingDown("it stops"),
    errors.AlreadyRegistered("twice", hint="use get()"),
    errors.NeverStarted("mailer", "no module", error="Traceback: x\n", next_start_at=12.5),
    errors.NeverStarted("mailer", "terminated before it started"),
    errors.WorkerFailed("mailer", EXIT),
    errors.SupervisorDied("gone"),
    errors.SupervisorFailed("gave up"),
    errors.NotAttached("nobody there"),
    errors.AccessDenied("not yours"),
    errors.AlreadyRunning("busy"),
    errors.WrongProcess("a handle"),
    errors.ProtocolMismatch("1, not 2"),
    errors.Unsupported("memfd"),
    errors.Interrupted(),
]


def test_every_error_of_the_package_is_tried() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    wanted = {kind for kind in kinds if issubclass(kind, errors.AiobgwError)}
    assert {type(error) for error in ERRORS} == wanted


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_with_its_attributes_and_notes(
    error: errors.AiobgwError, protocol: int
) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_copied_without_sharing_its_notes(error: errors.AiobgwError) -> None:
    again = copy.deepcopy(error)
    again.add_note("another")
    assert vars(again)["__notes__"][:-1] == getattr(error, "__notes__", [])


def test_what_to_do_is_in_a_note_and_not_in_the_message() -> None:
    error = errors.NoFreeSlot(64)
    assert str(error) == "all 64 worker slots are in use"
    assert error.limit == 64
    assert error.__notes__ == [
        "hint: a worker in its restart delay holds its slot; raise Supervisor(max_workers=...)"
    ]


def test_the_message_of_a_payload_that_is_too_large_has_both_numbers() -> None:
    error = errors.PayloadTooLarge(20, 10)
    assert str(error) == "the pickled arguments take 20 bytes, 10 are allowed"
    assert (error.size, error.limit) == (20, 10)


def test_a_failed_worker_carries_its_traceback_as_a_note() -> None:
    error = errors.WorkerFailed("mailer", EXIT)
    assert str(error) == "worker 'mailer' failed with exit code 3"
    assert error.__notes__ == ["ValueError: no"]
    assert error.exit is EXIT


def test_errors_can_be_caught_by_what_they_are() -> None:
    assert issubclass(errors.InvalidSpec, ValueError)
    assert issubclass(errors.WrongProcess, RuntimeError)
    assert issubclass(errors.Unsupported, RuntimeError)
    assert not issubclass(errors.Terminated, Exception)
    assert errors.Terminated().code == 1


def test_the_version_is_that_of_the_distribution() -> None:
    source = "import aiobgw, json; print(json.dumps(aiobgw.__version__))"
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{json.loads(run(source))}"' in pyproject
