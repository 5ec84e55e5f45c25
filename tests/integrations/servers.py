"""Servers of ASGI applications, as processes of their own, and requests to them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import procs
from .ear import BOUND

UVICORN = ["uvicorn", "--log-level", "warning", "--port", "{port}"]
GUNICORN = ["gunicorn", "--log-level", "warning", "--bind", "127.0.0.1:{port}"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Server:
    """A server, and all the processes that it runs the application in."""

    def __init__(self, directory: Path, *command: str, **environment: str) -> None:
        self._port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *(word.format(port=self._port) for word in command)],
            cwd=procs.ROOT,
            env={
                **os.environ,
                "AIOBGW_TEST_DIRECTORY": str(directory),
                "PORT": str(self._port),
                **environment,
            },
        )

    def ask(self, path: str = "/", data: Any = None) -> Any:
        """Return what one of the processes answers, on a connection of its own."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"Connection": "close", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=BOUND) as response:
            return json.load(response)

    def ask_until(self, wanted: Callable[[Any], object], path: str = "/") -> Any:
        """Ask until the answer is as wanted: who answers, nobody can choose."""
        give_up = time.monotonic() + BOUND
        while True:
            answer = None
            try:
                answer = self.ask(path)
            except (OSError, urllib.error.URLError):
                assert self.process.poll() is None, "the server has ended"
            if answer is not None and wanted(answer):
                return answer
            assert time.monotonic() < give_up, f"not within {BOUND} s: {answer}"
            time.sleep(0.01)

    def processes(self, number: int, path: str = "/") -> dict[int, Any]:
        """Return an answer of each of so many processes."""
        answers: dict[int, Any] = {}
        while len(answers) < number:
            answer = self.ask_until(lambda answer: answer["process"] not in answers, path)
            answers[answer["process"]] = answer
        return answers

    def stop(self) -> int:
        """End it as a service manager does; everything below has ended then."""
        below = procs.descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(BOUND)
        assert not procs.wait_dead(below)
        return code

    def close(self) -> None:
        below = procs.descendants(self.process.pid)
        for pid in (self.process.pid, *below):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


@contextmanager
def serving(directory: Path, *command: str, **environment: str) -> Iterator[Server]:
    server = Server(directory, *command, **environment)
    try:
        yield server
    finally:
        server.close()
