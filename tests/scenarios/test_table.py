"""The table of scenarios is complete, and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {*(f"T{number:02}" for number in range(1, 87)), "T30b"}


def functions_in(path: Path) -> set[str]:
    """Return the names of the tests in a file, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node.name for node in tree.body if isinstance(node, kinds)]
    return {name for name in functions if name.startswith("test_")}


def numbers_of(test: str) -> list[str]:
    """Return the scenarios that a test has in its name, in either spelling."""
    found = re.match(r"test_((?:t\d+b?_)+)", test, re.IGNORECASE)
    return [f"T{number[1:].lower()}" for number in found[1].split("_")[:-1]] if found else []


@pytest.mark.parametrize(
    ("test", "numbers"),
    [
        ("test_T01_a_client", ["T01"]),
        ("test_t26_t27_with_a_quota", ["T26", "T27"]),
        ("test_T30b_no_freeze", ["T30b"]),
        ("test_two_hundred_starts", []),
        ("test_T99_nothing", ["T99"]),
    ],
)
def test_numbers_are_found_in_names(test: str, numbers: list[str]) -> None:
    assert numbers_of(test) == numbers


def test_every_scenario_is_in_the_table_and_nothing_else() -> None:
    assert set(SCENARIOS) == NUMBERS
    assert list(SCENARIOS) == sorted(SCENARIOS), "in order"


@pytest.mark.parametrize("number", sorted(NUMBERS))
def test_a_scenario_names_tests_that_exist_or_says_why_not(number: str) -> None:
    entry = SCENARIOS[number]
    if isinstance(entry, str):
        assert entry.startswith(("later work: ", "impossible: ")), entry
        return

    assert entry, "a list without a test is no answer"
    for named in entry:
        path, _, test = named.partition("::")
        assert (ROOT / path).is_file(), named
        assert test in functions_in(ROOT / path), named


def test_every_test_with_a_number_is_in_the_table() -> None:
    missing = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in sorted(functions_in(path)):
            named = f"{path.relative_to(ROOT)}::{test}"
            for number in numbers_of(test):
                if named not in SCENARIOS.get(number, []):
                    missing.append(f"{number}: {named}")
    assert not missing, "add these to scenarios.py"
