"""A target whose import waits for the latch "go", and says so: its worker has not started."""

from __future__ import annotations

import time

import aiobgw

aiobgw.current_worker().latches["up"].set()
aiobgw.current_worker().latches["go"].wait_blocking()


def run() -> None:
    time.sleep(3600)
