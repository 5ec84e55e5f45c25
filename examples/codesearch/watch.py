"""The watcher: keeps the index like the tree."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import closing

import aiobgw

from . import store, tree

BATCH = 100
# Nobody else writes by now.  Less than the worker's stop_timeout: the event loop, and with it
# SIGTERM, has to wait, too.
LOCK_TIMEOUT = 5.0


async def run(db_path: str, root: str, every: float) -> None:
    """Look for changes every so many seconds, until asked to end.

    It remembers nothing: what changed is the difference between the tree and the database, so
    that one that was killed goes on where it was.
    """
    worker = aiobgw.current_worker()
    while not worker.stop_requested:
        refresh(db_path, root)
        try:
            async with asyncio.timeout(every):
                await worker.wait_for_stop()
        except TimeoutError:
            pass


def refresh(db_path: str, root: str) -> None:
    """Re-index what is new, has changed, or is gone."""
    with closing(store.connect(db_path)) as db:
        known, found = store.stamps(db), dict(tree.walk(root))
        differing = sorted(path for path, _ in known.items() ^ found.items())
        for batch in _batches(dict.fromkeys(differing)):
            sources = {path: tree.read(root, path) for path in batch}
            with store.writing(db, LOCK_TIMEOUT):
                store.put(db, sources)


def _batches(paths: dict[bytes, None]) -> Iterator[list[bytes]]:
    """Cut into lists that may be in memory at once, and that hold the lock for a moment."""
    rest = iter(paths)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch
