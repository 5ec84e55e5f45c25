"""The example of a user's test file: it passes as printed, and its leak is caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from . import procs


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the example's docstring."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "examples/test_my_service.py"],
        cwd=procs.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_example_passes() -> None:
    ran = run()
    assert ran.returncode == 0, ran.stdout
    assert "4 passed, 1 skipped" in ran.stdout


def test_its_leak_is_named_and_ended() -> None:
    ran = run(SHOW_LEAK="1")
    assert ran.returncode == 1, ran.stdout
    assert "5 passed, 1 error" in ran.stdout
    named = re.search(
        r"left_behind_is_caught left behind:\n  process (\d+) \(sleep 3600\): killed", ran.stdout
    )
    assert named is not None, ran.stdout
    assert not procs.is_alive(int(named[1]))
    assert re.search(
        r"aiobgw workers -+\n.*\n  worker 'detach': stopped, pid \d+, clean exit", ran.stdout
    )
