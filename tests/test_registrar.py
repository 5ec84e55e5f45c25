"""The registrar example, run as it says, and cut short: it tells the truth, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import procs

BOUND = 30.0
LINE = re.compile(r" *(\d+\.\d{3}) s  (\S+) +(registered|started|exited)(?: +(.+))?")
COMMANDS = [["-m", "examples.registrar"], [str(Path("examples") / "registrar.py")]]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Have its files made where they can be counted; none may be left."""
    yield {**os.environ, "TMPDIR": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=procs.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_tells_what_happens(command: list[str], environment: dict[str, str]) -> None:
    with start(command, environment) as process:
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, err) == (0, "")

    told = [match.groups() for match in map(LINE.fullmatch, out.splitlines()) if match]
    assert [float(at) for at, *_ in told] == sorted(float(at) for at, *_ in told)
    seen = [(name, event) for _, name, event, _ in told]
    workers = ("outer", "inner-1", "inner-2")
    assert len(seen) == 9
    for name in workers:
        life = [event for who, event in seen if who == name]
        assert life == ["registered", "started", "exited"]
    assert seen[:2] == [("outer", "registered"), ("outer", "started")]
    assert seen[-1] == ("outer", "exited")

    pids = {detail for _, _, event, detail in told if event == "started"}
    assert len(pids) == 3 and all(re.fullmatch(r"as process \d+", pid) for pid in pids)
    ends = {detail for _, _, event, detail in told if event == "exited"}
    assert ends == {"clean with exit code 0"}

    died = re.search(r"^SupervisorDied after (\S+) ms: the supervisor is gone", out, re.M)
    gone = re.search(r"^sleeper was gone (\S+) ms after the kill$", out, re.M)
    assert died and float(died[1]) < 1000
    assert gone and float(gone[1]) < 1000
    supervisor = re.search(r"^attached to 'registrar', process (\d+)$", out, re.M)
    sleeper = re.search(
        r"^sleeper runs as process (\d+); killing its supervisor, (\d+)$", out, re.M
    )
    assert supervisor and sleeper and supervisor[1] == sleeper[2]
    assert procs.wait_dead({int(sleeper[1]), int(sleeper[2])}) == set()


def test_interrupted_it_cleans_up(environment: dict[str, str]) -> None:
    with start(COMMANDS[0], environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("attached")
        below = procs.descendants(process.pid)
        assert len(below) >= 2  # the supervisor, and its zygote
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=BOUND)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert procs.wait_dead(below) == set()


def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    with start(COMMANDS[0], {**os.environ, "TMPDIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("attached")
        below = procs.descendants(process.pid)
        process.kill()
        process.communicate(timeout=BOUND)
    assert procs.wait_dead(below) == set()
