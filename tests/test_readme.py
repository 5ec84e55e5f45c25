"""The README's example and commands, as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from . import procs

README = (procs.ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    (example,) = blocks("python")
    script = tmp_path / "example.py"
    script.write_text(example)
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert re.fullmatch(r"worker resize runs as process \d+", lines[0])
    assert "resize: a.png done by process" in lines[1]
    assert lines[2] == "it was clean with exit code 0"


def test_the_two_commands_are_those_that_ci_runs() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    ci = (procs.ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert command.replace("pip install", "pip install -q") in ci


def test_every_public_name_of_the_table_exists() -> None:
    import aiobgw

    for name in ("Supervisor", "WorkerSpec", "Phase", "ExitKind", "ShutdownMode", "Latch", "Flags"):
        assert f"`{name}" in README
        assert hasattr(aiobgw, name)
