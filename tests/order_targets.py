"""What members of groups run in tests: they write down when they start and end."""

from __future__ import annotations

import time

import aiobgw

from .targets import write


def trace(path: str) -> None:
    """Write "+name", be ready (with the latch "go": when it is set), write "-name" at the end."""
    worker = aiobgw.current_worker()
    write(path, f"+{worker.name}")
    try:
        if "go" in worker.latches:
            worker.latches["go"].wait_blocking()
        worker.ready()
        time.sleep(3600)
    finally:
        write(path, f"-{worker.name}")
