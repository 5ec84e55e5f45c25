"""Names of supervisors in tests, and the directory where they are looked for.

Tests that run at the same time, and services of the machine, may use the same names: each test
has a directory of its own for them.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VARIABLE = "AIOBGW_RUNTIME_DIR"
NAME_BYTES = 95

_parent = pytest.StashKey[str]()
_numbers = itertools.count(1)


def unique_name(name: str, number: int) -> str:
    """Return a supervisor's name made of a test's: fit to be a directory, at most 95 bytes."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    suffix = (f"-{number}" if number > 1 else "") + (f"-{worker}" if worker else "")
    clean = "".join(c if c.isprintable() and c != "/" else "_" for c in name)
    room = NAME_BYTES - len(suffix.encode())
    return clean.encode("utf-8", "replace")[:room].decode("utf-8", "ignore") + suffix


@contextmanager
def own_directory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have names looked for in a fresh directory, which is removed at the end."""
    stash = request.config.stash
    if _parent not in stash:
        stash[_parent] = str(request.getfixturevalue("tmp_path_factory").mktemp("aiobgw"))
    path = os.path.join(stash[_parent], str(next(_numbers)))
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = path
    try:
        yield
    finally:
        _restore(before)
        if os.path.exists(path):
            shutil.rmtree(path, ignore_errors=True)


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before
