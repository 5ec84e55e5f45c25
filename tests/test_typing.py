"""What type checkers see of the public API."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from . import procs

FOLDER = Path(__file__).parent / "typing"


def refused_lines(path: Path, cache: Path) -> set[int]:
    """Return the lines that mypy --strict refuses."""
    pytest.importorskip("mypy")
    import subprocess

    options = ["--strict", "--cache-dir", str(cache), "--no-error-summary"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(path)],
        cwd=procs.ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return {int(line) for line in re.findall(r"^[^:]+:(\d+): error", ran.stdout, re.MULTILINE)}


def test_type_checkers_accept_good_programs_and_refuse_bad_lines(tmp_path: Path) -> None:
    bad = (FOLDER / "bad.py").read_text().splitlines()
    marked = {number for number, line in enumerate(bad, 1) if line.endswith("# refused")}
    assert refused_lines(FOLDER / "good.py", tmp_path) == set()
    assert refused_lines(FOLDER / "bad.py", tmp_path) == marked
