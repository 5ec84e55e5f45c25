"""The benchmark of registrations runs, tells every figure, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import procs

BOUND = 60.0


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    figures = tmp_path / "figures.json"
    words = ["--quick", "--slots", "300", "--json", str(figures)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.register", *words],
        cwd=procs.ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 slots, all but 128 taken" in done.stdout
    assert list(temporary.iterdir()) == []

    found = json.loads(figures.read_text())
    assert len(found["latencies"]) == 4
    for row in found["latencies"].values():
        assert row.keys() == {"register", "blocking", "wake-up", "bl. wake-up"}
        assert all(0 < figure["median"] <= figure["p99"] for figure in row.values())
    assert [(one["name"], one["clients"]) for one in found["rates"]].count(("8 slots", 1)) == 1
    assert {one["clients"] for one in found["rates"]} == {1, 4, 16}
    assert all(each["per_second"] > 0 for one in found["rates"] for each in one["rounds"])
    assert found["growth"]
