"""The FastAPI example under two server processes, and the README's; real ones, killed."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from . import procs
from .integrations.servers import UVICORN, serving

COMMANDS = {
    "uvicorn": [*UVICORN, "--workers", "2", "examples.fastapi_app:app"],
    "module": ["examples.fastapi_app"],
}


def housekeeper(seen: Any) -> int | None:
    [one] = [worker for worker in seen["workers"] if worker["name"] == "housekeeper"]
    pid: int | None = one["pid"]
    return pid if one["state"] == "running" else None  # before that it has no title


def housekeepers(server: int) -> set[int]:
    """Return those that really run, below a server."""
    below = procs.descendants(server)
    return {pid for pid in below if procs.title(pid) == "aiobgw: reports worker housekeeper"}


@pytest.mark.parametrize("command", COMMANDS)
def test_both_processes_show_the_same_and_one_takes_over_from_the_other(
    command: str, tmp_path: Path
) -> None:
    reports = str(tmp_path / "reports")
    with serving(tmp_path, *COMMANDS[command], REPORTS=reports) as server:
        server.ask_until(housekeeper, "/workers")
        answers = server.processes(2, "/workers")
        [owner] = {seen["owner"] for seen in answers.values()}
        assert owner in answers
        [old] = {housekeeper(seen) for seen in answers.values()}
        assert housekeepers(server.process.pid) == {old}

        report = server.ask("/reports", {"text": "A rose is a rose."})["report"]
        written = server.ask_until(lambda answer: answer["words"], report)
        assert (written["words"], written["most"][:2]) == (5, [["a", 2], ["rose", 2]])
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.ask("/reports/0123456789abcdef")
        caught.value.close()
        assert caught.value.code == 404

        os.kill(owner, signal.SIGKILL)
        seen = server.ask_until(
            lambda seen: seen["owner"] != owner and housekeeper(seen), "/workers"
        )
        assert seen["owner"] in answers, "the one that was there, not the one that replaces"
        assert housekeeper(seen) != old
        assert housekeepers(server.process.pid) == {housekeeper(seen)}
        again = server.processes(2, "/workers")
        assert {one["owner"] for one in again.values()} == {seen["owner"]}
        assert {housekeeper(one) for one in again.values()} == {housekeeper(seen)}
        assert server.stop() == 0


def test_the_readmes_application_runs_as_printed(tmp_path: Path) -> None:
    """Except for where its processes meet: parallel runs must not share a supervisor."""
    section = (procs.ROOT / "README.md").read_text().partition("## In a FastAPI app\n")[2]
    found = re.search(r"```py\n(.*?)```", section, re.DOTALL)
    assert found is not None
    source = found[1].replace('name="shop"', f'name="shop", runtime_dir="{tmp_path}/run"')
    assert source.count("runtime_dir") == 1
    (tmp_path / "shop.py").write_text(source)
    (tmp_path / "shop_tasks.py").write_text(
        "import time\ndef sweep(): time.sleep(3600)\ndef resize(name): time.sleep(3600)\n"
    )
    command = [*UVICORN, "--workers", "4", "--app-dir", str(tmp_path), "shop:app"]
    with serving(tmp_path, *command) as server:
        running = {"sweep": "running"}
        server.ask_until(lambda seen: seen == running, "/workers")
        token = server.ask("/pictures/a.png", {})
        assert token.startswith("aiobgw1:")
        running["resize a.png"] = "running"
        server.ask_until(lambda seen: seen == running, "/workers")
        assert server.stop() == 0
