"""The architecture, over the syntax trees: imports point down, and workers stay lean."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .procs import ROOT

PACKAGE = ROOT / "aiobgw"


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: nothing here holds any."""


# ARCHITECTURE.md, "Layout": who is above whom.
TIERS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "__main__"}),
    frozenset({"integrations", "web"}),
    frozenset({"_supervisor", "testing"}),
    frozenset({"_process", "_worker", "_client"}),
    frozenset({"_policy", "_ipc"}),
    frozenset(
        {"spec", "status", "settings", "_names", "_choices", "_spec_checks", "_spec_options"}
    ),
    frozenset({"errors"}),
    frozenset({"_inject", ""}),  # "": the root package's __init__
)
TIER = {name: number for number, names in enumerate(TIERS) for name in names}
BESIDE_EACH_OTHER = TIERS[5]
"""Only these may import others of their own tier."""

PURE = "_policy"
IMPURE = {"asyncio", "time", "os", "socket", "_socket", "threading", "random", "logging", "select"}
LEAN = ("_worker", "_process/zygote_main", "_process/spare", "_process/lifeline", "_process/wire")
HEAVY = {"asyncio", "logging", "threading", "dataclasses", "typing"}
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    """One name that a module imports; ``at_import`` unless inside a function."""

    module: str
    line: int
    name: str
    at_import: bool


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return the name of a module: "aiobgw._ipc.board", "aiobgw._ipc" for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in modules()}


def imports(module: str) -> list[Import]:
    """Return what a module imports, except for type checkers."""
    return list(_imports(module, ast.parse(MODULES[module].read_text()), at_import=True))


def _imports(module: str, node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        ):
            for other in child.orelse:
                yield from _imports(module, ast.Module([other], []), at_import=at_import)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, child.lineno, alias.name, at_import)
        elif isinstance(child, ast.ImportFrom):
            for name in _imported_from(module, child):
                yield Import(module, child.lineno, name, at_import)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(module, child, at_import=at_import and not inside)


def _imported_from(module: str, node: ast.ImportFrom) -> Iterator[str]:
    """Return the modules meant, submodules named after the ``import`` included."""
    base = node.module or ""
    if node.level:
        package = module.split(".")
        is_package = MODULES[module].name == "__init__.py"
        package = package[: len(package) - node.level + is_package]
        base = ".".join([*package, base] if base else package)
    for alias in node.names:
        whole = f"{base}.{alias.name}"
        yield whole if whole in MODULES else base


def part(module: str) -> str:
    """Return what of the package a module belongs to: "_ipc", "errors"; "" is its root."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def ours(found: Import) -> bool:
    return found.name.split(".")[0] == "aiobgw"


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer in BESIDE_EACH_OTHER and imported in BESIDE_EACH_OTHER:
        return True
    return TIER[importer] < TIER[imported]


def test_every_part_of_the_package_has_its_tier() -> None:
    unknown = {part(module) for module in MODULES} - set(TIER)
    assert not unknown, "put it into TIERS, and into ARCHITECTURE.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module: str) -> None:
    wrong = [
        f"{dotted(MODULES[module])}:{found.line} imports {found.name}"
        for found in imports(module)
        if ours(found) and not may_import(part(module), part(found.name))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("_supervisor", "_process", True),
        ("_process", "_ipc", True),
        ("_process", "_worker", False),
        ("_worker", "_client", False),
        ("_worker", "_policy", True),
        ("_policy", "_ipc", False),
        ("_ipc", "_policy", False),
        ("_ipc", "_supervisor", False),
        ("_policy", "status", True),
        ("settings", "spec", True),
        ("spec", "status", True),
        ("spec", "_ipc", False),
        ("errors", "status", False),
        ("errors", "_inject", True),
        ("_inject", "errors", False),
        ("", "spec", False),
    ],
)
def test_the_layers_are_those_of_the_architecture(
    importer: str, imported: str, allowed: bool
) -> None:
    assert may_import(importer, imported) is allowed


def test_rules_read_no_clock_and_touch_nothing() -> None:
    pure = [module for module in MODULES if part(module) == PURE]
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in pure
        for found in imports(module)
        if found.name.split(".")[0] in IMPURE
    ]
    assert pure
    assert not wrong


def lean_modules() -> list[str]:
    names = [f"aiobgw.{name.replace('/', '.')}" for name in LEAN]
    found = [m for m in MODULES if any(m == name or m.startswith(f"{name}.") for name in names)]
    assert len(found) > len(LEAN)
    return found


@pytest.mark.parametrize("module", lean_modules())
def test_what_every_worker_imports_names_nothing_heavy(module: str) -> None:
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for found in imports(module)
        if found.at_import and found.name.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_what_every_worker_imports_leads_to_nothing_heavy() -> None:
    """Follow the imports, also through modules that are not on the list."""
    source = f"""
import sys
sys.path.insert(0, {os.fspath(ROOT)!r})
before = set(sys.modules)
import aiobgw._process.zygote_main, aiobgw._worker.main
print(*sorted(set(sys.modules) - before))
"""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True, check=True
    )
    imported = set(ran.stdout.split())
    assert {"aiobgw._process.zygote_main", "aiobgw._worker.main"} <= imported
    assert not HEAVY & imported


@pytest.mark.parametrize("module", MODULES)
def test_no_file_swallows_the_rest(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


def test_an_import_is_found_wherever_it_hides() -> None:
    """Guard the test itself: it must see what it is to forbid."""
    tree = ast.parse(
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "def f():\n    from .errors import AiobgwError\n"
        "class C:\n    import c\n"
        "try:\n    from . import errors\nexcept ImportError:\n    import d.e\n"
    )
    found = {(i.name, i.at_import) for i in _imports("aiobgw", tree, at_import=True)}
    assert found == {
        ("b", True),
        ("aiobgw.errors", False),
        ("c", True),
        ("aiobgw.errors", True),
        ("d.e", True),
    }
