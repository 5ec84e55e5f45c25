"""The aiohttp example, run as it says: workers are killed, and nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import examples.aiohttp_app as example
from examples import aiohttp_pipeline as pipeline

from . import procs

BOUND = 30.0
COMMANDS = re.findall(r"^    (python|curl) (.*)$", str(example.__doc__), re.MULTILINE)
TEXT = "Bees make honey. Bees like flowers, and flowers like bees, who make honey from flowers! "


class Service:
    """The example in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], database: str) -> None:
        self.process = process
        self.database = database
        assert process.stdout is not None
        found = re.search(r"http://127.0.0.1:\d+", process.stdout.readline())
        assert found
        self.address = found[0]

    def ask(self, path: str, body: bytes | None = None) -> Any:
        with urlopen(self.address + path, body, timeout=BOUND) as answer:
            return json.load(answer)

    def put(self, text: str) -> int:
        return int(self.ask("/documents", text.encode())["document"])

    def pid(self, worker: str) -> int:
        pid = self.ask("/")["workers"][worker]["pid"]
        assert pid is not None
        return int(pid)

    def is_done(self) -> bool:
        documents = self.ask("/")["documents"]
        return bool(documents["done"] == sum(documents.values()))


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "queue.db")


@contextmanager
def running(database: str, *options: str, code: int = 0) -> Iterator[Service]:
    """Run the command as printed, on any port; it leaves no file of its own, unless killed."""
    folder = Path(mkdtemp(dir=Path(database).parent))
    program, arguments = COMMANDS[0]
    assert program == "python"
    with subprocess.Popen(
        [sys.executable, *arguments.split(), "--port", "0", "--database", database, *options],
        cwd=procs.ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Service(process, database)
            assert process.wait(BOUND) == code
            assert code < 0 or list(folder.iterdir()) == []
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < give_up, f"not within {BOUND} s"
        time.sleep(0.01)


def kill_in_the_middle(service: Service, step: str) -> int:
    """Kill a worker that has a document in hand, for certain; return which document.

    It is stopped first, and only killed if it still has it in hand then.
    """
    give_up = time.monotonic() + BOUND
    while time.monotonic() < give_up:
        document = service.put(TEXT * 3000)
        worker = claimant(service.database, document, step)
        if worker is not None:
            pid = service.pid(worker)
            procs.stop(pid)
            caught = claimant(service.database, document, step) == worker
            os.kill(pid, signal.SIGKILL if caught else signal.SIGCONT)
            if caught:
                return document
    raise AssertionError(f"never caught while it did step {step!r}")


def claimant(database: str, document: int, step: str) -> str | None:
    """Wait until somebody does that step; return who, or None if it is over."""
    while True:
        found = pipeline.look_up(database, document)
        assert found is not None
        if found["stage"] == step and found["claimed_by"] is not None:
            return str(found["claimed_by"])
        if step in found["results"]:  # type: ignore[operator]
            return None


def test_every_document_is_done_once_although_workers_are_killed(database: str) -> None:
    with running(database) as service:
        below = procs.descendants(service.process.pid)
        killed = [kill_in_the_middle(service, step) for step in pipeline.STEPS]
        last = service.put("Only this. Nothing but words and more words: words! And that.")
        until(service.is_done)
        for document in range(1, last + 1):
            found = service.ask(f"/documents/{document}")
            assert found["claims"] == (3 if document in killed else 2), document
            assert found["stage"] == "done"
            assert set(found["results"]) == set(pipeline.STEPS)
            if document < last:
                assert found["results"]["extract"] == "bees flowers make honey like"
                assert found["results"]["summarise"].endswith("make honey from flowers!")
        assert found["results"]["summarise"] == "Nothing but words and more words: words!"

        workers = service.ask("/")["workers"]
        assert set(workers) == {"extract-1", "extract-2", "summarise-1", "summarise-2"}
        assert sum(worker["restarts"] for worker in workers.values()) == 2
        below |= procs.descendants(service.process.pid)
        service.process.send_signal(signal.SIGTERM)
    assert procs.wait_dead(below) == set()


def test_the_printed_requests_are_answered(database: str) -> None:
    printed = [arguments for program, arguments in COMMANDS if program == "curl"]
    posted, one, status, stop = (line.split("http://127.0.0.1:8080")[-1] for line in printed)
    with running(database) as service:
        text = (procs.ROOT / "README.md").read_bytes()
        assert service.ask(posted, text) == {"document": 1}
        until(service.is_done)
        assert service.ask(one)["results"]["extract"]
        assert service.ask(status)["documents"] == {"extract": 0, "summarise": 0, "done": 1}
        for path, body, code in (("/documents", b" \n", 400), ("/documents/2", None, 404)):
            with pytest.raises(HTTPError) as refused:
                service.ask(path, body)
            refused.value.close()
            assert refused.value.code == code
        with urlopen(service.address + stop, b"", timeout=BOUND) as answer:
            assert answer.read() == b"stopping\n"


def test_the_queue_outlives_a_service_that_is_killed(database: str) -> None:
    with running(database, "--workers", "0", code=-signal.SIGKILL) as service:
        document = service.put(TEXT)
        below = procs.descendants(service.process.pid)
        service.process.kill()
    assert procs.wait_dead(below) == set()
    with closing(pipeline.connect(database)) as db:
        assert pipeline.claim(db, "extract", "a worker that the next service does not have")
    with running(database, "--workers", "1") as service:
        until(service.is_done)
        assert service.ask(f"/documents/{document}")["claims"] == 3
        service.process.send_signal(signal.SIGINT)
