"""A service small enough to be tested in full: see test_my_service.py beside this file.

One worker turns every text of an inbox into capitals, and waits to be woken for more.  A text
is in the inbox until its capitals are complete in the outbox, so that no crash loses one.
"""

from __future__ import annotations

from pathlib import Path

import aiobgw

RETRY_DELAY = 30.0


def capitals(inbox: Path, outbox: Path, done: aiobgw.Latch | None = None) -> aiobgw.WorkerSpec:
    """Describe the worker; it sets *done* whenever the inbox is empty."""
    return aiobgw.WorkerSpec(
        name="capitals",
        target=work,
        args=(inbox, outbox),
        latches={"done": done} if done is not None else {},
        restart=aiobgw.Restart.ALWAYS,
        restart_delay=RETRY_DELAY,
        restart_backoff=1,  # and no jitter: the same pause each time, as in PostgreSQL
        restart_jitter=0,
    )


def work(inbox: Path, outbox: Path) -> None:
    """Run in the worker: convert what there is, say so, and wait for more."""
    worker = aiobgw.current_worker()
    while True:
        worker.latch.reset()  # before looking: a wake-up in between is not lost
        for text in sorted(inbox.iterdir()):
            convert(text, outbox / text.name)
        if "done" in worker.latches:
            worker.latches["done"].set()
        worker.latch.wait_blocking()


def convert(text: Path, result: Path) -> None:
    """Write the capitals under another name first: under its own it is complete."""
    draft = result.with_suffix(".draft")
    draft.write_text(text.read_text(encoding="utf-8").upper(), encoding="utf-8")
    draft.replace(result)
    text.unlink()
