"""The stack example, run as it says: it tells the truth, ends well, and leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import procs

BOUND = 60.0
LINE = re.compile(r" *(\d+\.\d{3}) s  (\S+) +(is ready|started|ended|is killed|have done)(?:.*)")


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of its docstring; its files are made where they can be counted."""
    ran = subprocess.run(
        [sys.executable, "-m", "examples.stack"],
        cwd=procs.ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert list(tmp_path.iterdir()) == []
    return ran


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_stack_survives_the_death_of_what_it_is_built_on(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    told = [match.groups() for match in map(LINE.fullmatch, ran.stdout.splitlines()) if match]
    seen = [(name, what) for _, name, what in told]
    killed = seen.index(("redis", "is killed"))
    for part in (seen[:killed], seen[killed:]):
        order = [part.index(("redis", "is ready")), part.index(("dispatcher", "is ready"))]
        order += [part.index((f"consumer-{number}", "started")) for number in (1, 2)]
        assert order[:2] == sorted(order[:2]), ran.stdout
        assert order[1] < min(order[2:]), ran.stdout
    assert ran.stdout.splitlines()[-3:] == [
        "60 of 60 results are there and right; 0 jobs were done twice",
        "1 restart of redis",
        "the others were started only when redis was ready",
    ]


def test_without_redis_it_says_what_to_install(tmp_path: Path) -> None:
    ran = run(tmp_path, PATH=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("redis-server is not installed")
    assert "apt-get install redis-server" in ran.stderr
