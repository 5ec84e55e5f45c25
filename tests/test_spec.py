"""A spec refuses nonsense at birth, and stores its target by a name that a worker can find."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import subprocess
import sys
import zipapp
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from aiobgw import (
    CrashScope,
    Flags,
    InvalidSpec,
    Latch,
    Phase,
    Restart,
    ShutdownMode,
    WorkerSpec,
)

from . import targets
from .procs import ROOT


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: specs hold none."""


SHMEM, DATABASE, PARALLEL = Flags.SHMEM_ACCESS, Flags.DATABASE_CONNECTION, Flags.CLASS_PARALLEL


def spec(**fields: Any) -> WorkerSpec:
    """Make a spec that is good but for *fields*."""
    if "target" not in fields and "command" not in fields:
        fields["target"] = "shop.tasks:resize"
    return WorkerSpec(**{"name": "resize", **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidSpec) as raised:
        spec(**fields)
    return str(raised.value)


# Defaults.


def test_a_spec_needs_a_name_and_a_target_only() -> None:
    given = spec()
    assert given.type == "resize"
    assert given.restart is Restart.ON_FAILURE
    assert given.restart_delay == 1.0
    assert given.stop_timeout == 10.0
    assert given.start_when is Phase.RUNNING
    assert given.flags == Flags.NONE
    assert given.loop == "asyncio"
    assert (given.args, given.kwargs, given.extra) == ((), {}, b"")
    assert not given.unique
    assert given.user is None
    assert given.main is None


def test_a_worker_of_the_parallel_class_is_never_restarted_by_default() -> None:
    assert spec(flags=PARALLEL).restart is Restart.NEVER
    assert spec(flags=PARALLEL | SHMEM).restart is Restart.NEVER


def test_a_type_and_a_rule_that_were_given_are_kept() -> None:
    given = spec(type="images", restart=Restart.ALWAYS)
    assert (given.type, given.restart) == ("images", Restart.ALWAYS)


def test_a_spec_says_what_it_runs() -> None:
    assert spec().runs == "shop.tasks:resize"
    assert spec(command=["sleep", "60"]).runs == "sleep 60"


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        spec().name = "other"  # type: ignore[misc]


def test_a_spec_takes_its_fields_by_name_only() -> None:
    with pytest.raises(TypeError):
        WorkerSpec("resize", "shop.tasks:resize")  # type: ignore[misc]


def test_lists_are_stored_as_tuples() -> None:
    words = ["sleep", "60"]
    given = spec(command=words)
    words.append("!")
    assert given.command == ("sleep", "60")
    assert spec(args=["a", "b"]).args == ("a", "b")


def test_a_spec_survives_pickling() -> None:
    given = spec(args=(1, "x"), kwargs={"y": 2}, flags=SHMEM, extra=b"\0\xff")
    assert pickle.loads(pickle.dumps(given)) == given


def test_phases_and_modes_have_the_order_of_the_architecture() -> None:
    assert Phase.SUPERVISOR_START < Phase.CONSISTENT_STATE < Phase.RUNNING
    assert ShutdownMode.SMART < ShutdownMode.FAST < ShutdownMode.IMMEDIATE


# Every check, with its message.

REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"flags": DATABASE},
        "flags with DATABASE_CONNECTION must have SHMEM_ACCESS too, not"
        " <Flags.DATABASE_CONNECTION: 2>",
    ),
    (
        {"flags": DATABASE | SHMEM, "start_when": Phase.SUPERVISOR_START},
        "start_when of a worker with DATABASE_CONNECTION must be a later phase, not"
        " <Phase.SUPERVISOR_START: 1>",
    ),
    ({"restart_delay": -0.001}, "restart_delay must be 0 to 86400 seconds, not -0.001"),
    ({"restart_delay": 86_400.5}, "restart_delay must be 0 to 86400 seconds, not 86400.5"),
    ({"restart_delay": float("nan")}, "restart_delay must be 0 to 86400 seconds, not nan"),
    ({"restart_delay": "1"}, "restart_delay must be 0 to 86400 seconds, not '1'"),
    ({"restart_delay": True}, "restart_delay must be 0 to 86400 seconds, not True"),
    ({"stop_timeout": float("inf")}, "stop_timeout must be 0 to 86400 seconds, not inf"),
    ({"stop_timeout": None}, "stop_timeout must be 0 to 86400 seconds, not None"),
    (
        {"flags": PARALLEL, "restart": Restart.ALWAYS},
        "restart of a CLASS_PARALLEL worker must be Restart.NEVER, not <Restart.ALWAYS: 'always'>",
    ),
    (
        {"flags": PARALLEL, "restart": Restart.ON_FAILURE},
        "restart of a CLASS_PARALLEL worker must be Restart.NEVER, not"
        " <Restart.ON_FAILURE: 'on-failure'>",
    ),
    (
        {"crash_scope": CrashScope.ALL},
        "crash_scope of a worker without SHMEM_ACCESS must be CrashScope.WORKER, not"
        " <CrashScope.ALL: 'all'>",
    ),
    (
        {"crash_scope": CrashScope.ALL, "flags": SHMEM, "command": ["true"]},
        "crash_scope of a command must be CrashScope.WORKER, not <CrashScope.ALL: 'all'>",
    ),
    ({"crash_scope": "all"}, "crash_scope must be an aiobgw.CrashScope, not 'all'"),
    ({"type": "a\x7f"}, "type must have no control characters, not 'a\\x7f'"),
    ({"type": "x" * 96}, f"type must be 1 to 95 bytes of UTF-8, not {'x' * 96!r}"),
    ({"type": 7}, "type must be text, not 7"),
    ({"target": None}, "target, command must be one of the two, not (None, None)"),
    (
        {"target": "a:b", "command": ("c",)},
        "target, command must be one of the two, not ('a:b', ('c',))",
    ),
    (
        {"command": ["c"], "flags": SHMEM | DATABASE},
        "flags of a command must not have DATABASE_CONNECTION: nobody would connect, not"
        " <Flags.SHMEM_ACCESS|DATABASE_CONNECTION: 3>",
    ),
    (
        {"command": "sleep 60"},
        "command must be a list of words: the program, then its arguments, not 'sleep 60'",
    ),
    ({"command": []}, "command must be a list of words: the program, then its arguments, not []"),
    (
        {"command": ["a", b"b"]},
        "command must be a list of words: the program, then its arguments, not ['a', b'b']",
    ),
    (
        {"command": ["a\0b"]},
        "command must be a list of words: the program, then its arguments, not ['a\\x00b']",
    ),
    (
        {"command": ["sleep"], "args": ("60",)},
        "command takes its arguments as words, not ['args']",
    ),
    (
        {"command": ["sleep"], "kwargs": {"s": 60}},
        "command takes its arguments as words, not ['kwargs']",
    ),
    ({"flags": Flags(0x4)}, "flags must be made of aiobgw.Flags, not '0x4'"),
    ({"flags": 0x9}, "flags must be made of aiobgw.Flags, not '0x8'"),
    ({"start_when": 3}, "start_when must be an aiobgw.Phase, not 3"),
    ({"restart": "always"}, "restart must be an aiobgw.Restart, not 'always'"),
    ({"loop": "trio"}, "loop must be 'asyncio' or 'uvloop', not 'trio'"),
    ({"extra": b"x" * 129}, f"extra must be up to 128 bytes, not {b'x' * 129!r}"),
    ({"extra": "text"}, "extra must be up to 128 bytes, not 'text'"),
    ({"kwargs": [1]}, "kwargs must be a mapping of names, not [1]"),
    ({"kwargs": {1: 2}}, "kwargs must be a mapping of names, not {1: 2}"),
    ({"target": "shop"}, "target must look like 'package.module:function', not 'shop'"),
    ({"user": 1.5}, "user must be a user's name or number, not 1.5"),
    ({"user": "www", "flags": SHMEM}, "user must not be set with SHMEM_ACCESS, not 'www'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSALS)
def test_a_refusal_names_the_worker_the_field_what_is_allowed_and_what_was_given(
    fields: dict[str, Any], message: str
) -> None:
    assert refusal(**fields) == f"worker 'resize': {message}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "must be 1 to 95 bytes of UTF-8"),
        ("x" * 96, "must be 1 to 95 bytes of UTF-8"),
        ("ä" * 48, "must be 1 to 95 bytes of UTF-8"),
        ("a\nb", "must have no control characters"),
        ("a\0", "must have no control characters"),
        ("\x1b[2J", "must have no control characters"),
        ("a\x85", "must have no control characters"),
        ("a\u2028", "must have no control characters"),
        ("\udcff", "must have no control characters"),
        ("aiobgw1:x", "must not begin like a token"),
        (b"bytes", "must be text"),
        (None, "must be text"),
    ],
)
def test_a_name_that_cannot_be_shown_listed_or_looked_up_is_refused(name: Any, why: str) -> None:
    message = refusal(name=name)
    assert message.startswith(f"worker {name!r}: name {why}")
    assert message.endswith(f", not {name!r}")


@pytest.mark.parametrize("name", ["x", "x" * 95, "ä" * 47, "größe 日本 🐘", "a b/c:d"])
def test_a_name_may_be_any_text_that_can_be_shown(name: str) -> None:
    assert spec(name=name).type == name


@pytest.mark.parametrize("seconds", [0, 0.0, 86_400, 12.5])
def test_the_ends_of_the_range_of_seconds_are_allowed(seconds: float) -> None:
    assert spec(restart_delay=seconds, stop_timeout=seconds).restart_delay == seconds


def test_up_to_128_bytes_of_extra_are_allowed() -> None:
    assert spec(extra=b"\0" * 128).extra == b"\0" * 128


def test_up_to_16_latches_go_along_by_name() -> None:
    latches = {str(number): Latch() for number in range(17)}
    assert "latches must be up to 16 latches by name" in refusal(latches=latches)
    latches.pop("16")
    assert len(spec(latches=latches).latches) == 16
    assert "latches must be text" in refusal(latches={1: latches["1"]})
    assert refusal(command=["sleep"], latches=latches).endswith("as words, not ['latches']")


def test_all_flags_together_are_allowed_in_a_later_phase() -> None:
    flags = SHMEM | DATABASE | PARALLEL
    assert spec(flags=flags, start_when=Phase.CONSISTENT_STATE).flags == flags


# PostgreSQL's order: of two broken rules the one further up is reported.

IN_ORDER: list[tuple[str, dict[str, Any]]] = [
    ("flags with DATABASE_CONNECTION", {"flags": DATABASE}),
    (
        "start_when of a worker with DATABASE",
        {"flags": DATABASE | SHMEM, "start_when": Phase.SUPERVISOR_START},
    ),
    ("restart_delay", {"restart_delay": -1}),
    ("stop_timeout", {"stop_timeout": -1}),
    ("restart of a CLASS_PARALLEL", {"flags": PARALLEL, "restart": Restart.ALWAYS}),
    ("name", {"name": ""}),
    ("type", {"type": "\n"}),
    ("target, command", {"target": None}),
    ("command must", {"command": []}),
    ("flags must", {"flags": 0x4}),
    ("start_when must", {"start_when": 9}),
    ("loop", {"loop": "trio"}),
    ("extra", {"extra": "x"}),
    ("kwargs", {"kwargs": {1: 1}}),
    ("target must", {"target": "nonsense"}),
    ("user", {"user": 1.5}),
]


def _combined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """Return both faults in one spec; None if they cannot be had at once."""
    both = {**second, **first}
    if "flags" in first and "flags" in second:
        both["flags"] = first["flags"] | second["flags"]
    same = {"target", "command", "start_when"}
    clash = any(key in second and key in same for key in first)
    return None if clash or {"target", "command"} <= both.keys() else both


PAIRS = [
    (before, fields)
    for at, (before, first) in enumerate(IN_ORDER)
    for after, second in IN_ORDER[at + 1 :]
    if (fields := _combined(first, second)) is not None and "DATABASE" not in after
]


@pytest.mark.parametrize(("first", "fields"), PAIRS)
def test_of_two_broken_rules_the_first_one_in_postgresqls_order_is_reported(
    first: str, fields: dict[str, Any]
) -> None:
    given = fields.get("name", "resize")
    assert refusal(**fields).startswith(f"worker {given!r}: {first}")


# Targets.


@pytest.mark.parametrize("text", ["a:b", "a.b.c:d", "a:B.c", "_x1:_y2", "größe:ä", "__main__x:f"])
def test_a_target_may_be_given_by_its_name(text: str) -> None:
    assert spec(target=text).target == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ":b",
        "a:",
        "a.b",
        "a:b:c",
        "a..b:c",
        ".a:b",
        "a:b.",
        "a:b()",
        "a b:c",
        "1a:b",
        "a:b\n",
        "a:<lambda>",
        "a/b:c",
        "a-b:c",
    ],
)
def test_a_text_that_is_no_name_of_a_function_is_refused(text: str) -> None:
    assert "target must look like 'package.module:function'" in refusal(target=text)


class Holder:
    """A class at module level: its functions can be found by name, too."""

    @staticmethod
    def run() -> None: ...

    @classmethod
    def make(cls) -> None: ...

    def method(self) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (targets.nothing, f"{targets.__name__}:nothing"),
        (targets.nothing_async, f"{targets.__name__}:nothing_async"),
        (asyncio.sleep, "asyncio.tasks:sleep"),
        (os.path.join, f"{os.path.__name__}:join"),
        (Holder.run, f"{__name__}:Holder.run"),
        (Holder, f"{__name__}:Holder"),
    ],
)
def test_a_function_is_stored_by_its_name(function: Callable[..., object], name: str) -> None:
    assert spec(target=function).target == name
    assert spec(target=function).main is None


def _nested() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


def _decorated(function: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(function)
    def wrapper() -> None: ...

    return wrapper


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        _nested(),
        functools.partial(targets.sleep, 1),
        _decorated(targets.nothing),
        Holder().method,
        Holder.make,
        Holder(),
        targets,
        42,
    ],
    ids=[
        "lambda",
        "nested",
        "partial",
        "wrapper of another",
        "method",
        "classmethod",
        "callable object",
        "module",
        "number",
    ],
)
def test_what_a_worker_could_not_find_by_name_is_refused(function: Any) -> None:
    message = refusal(target=function)
    assert "target must be importable by name" in message
    assert message.endswith(f"not {function!r}")


# Functions of a main script.

APP = """
import aiobgw

def work():
    pass

class Box:
    @staticmethod
    def work():
        pass

if __name__ == "__main__":
    for target in (work, Box.work, "__main__:work", "json:dumps"):
        spec = aiobgw.WorkerSpec(name="w", target=target)
        print(spec.target, spec.main)
"""


def run(*words: str | Path, cwd: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def expected(main: str) -> list[str]:
    return [
        f"__main__:work {main}",
        f"__main__:Box.work {main}",
        f"__main__:work {main}",
        "json:dumps None",
    ]


def test_a_function_of_a_script_is_found_by_the_scripts_path(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert run("app.py", cwd=tmp_path) == expected(f"path:{tmp_path}/app.py")


def test_a_function_of_a_module_run_with_m_is_found_by_the_modules_name(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert run("-m", "app", cwd=tmp_path) == expected("module:app")


def test_a_function_of_a_package_run_with_m_is_found_in_its_main_module(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "__main__.py").write_text(APP)
    assert run("-m", "shop", cwd=tmp_path) == expected("module:shop.__main__")


def test_a_function_of_a_zipapp_is_found_by_the_archives_path(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(APP)
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    assert run("app.pyz", cwd=tmp_path) == expected(f"path:{tmp_path}/app.pyz")


REFUSED = """
import aiobgw

def work():
    pass

try:
    aiobgw.WorkerSpec(name="w", target=work)
except aiobgw.InvalidSpec as error:
    print(error)
    print(*error.__notes__)
"""


def test_a_function_of_a_main_script_without_a_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    message, hint = run("-c", REFUSED, cwd=tmp_path)
    assert message == "worker 'w': target is a function of a main script that has no file"
    assert hint.startswith("hint: with -c")
    assert "put it into a module" in hint


def test_a_target_elsewhere_needs_no_main_script(tmp_path: Path) -> None:
    source = "import aiobgw; print(aiobgw.WorkerSpec(name='w', target='json:dumps').main)"
    assert run("-c", source, cwd=tmp_path) == ["None"]
