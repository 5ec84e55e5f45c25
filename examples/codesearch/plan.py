"""The planner: divides the tree into shards of about the same size.

Only what is new or has changed is to do; a database that is kept costs a walk.
"""

from __future__ import annotations

import heapq
from contextlib import closing

from . import store, tree
from .tree import Stamp

SHARD_BYTES = 2 * 1024 * 1024


def run(db_path: str, root: str, workers: int) -> None:
    """Write down the work to be done.

    One transaction: killed at any moment, it is done again from the start.  The supervisor's
    process starts no indexing worker before this one has ended for good.
    """
    found = dict(tree.walk(root))
    with closing(store.connect(db_path)) as db, store.writing(db):
        store.use_root(db, root)
        store.remove(db, store.paths(db) - found.keys())
        known = store.stamps(db)
        todo = {path: stamp for path, stamp in found.items() if known.get(path) != stamp}
        store.write_plan(db, divide(todo, workers))


def divide(files: dict[bytes, Stamp], workers: int) -> list[dict[bytes, Stamp]]:
    """Deal the files out, the largest first, each to the shard that has the least.

    There are enough shards to keep all workers busy, and none without a file.
    """
    size = sum(stamp.size for stamp in files.values())
    count = min(len(files), max(workers, -(-size // SHARD_BYTES)))
    shards: list[dict[bytes, Stamp]] = [{} for _ in range(count)]
    lightest = [(0, shard) for shard in range(count)]
    for path in sorted(files, key=lambda path: (-files[path].size, path)):
        weight, shard = heapq.heappop(lightest)
        shards[shard][path] = files[path]
        # An empty file weighs something, too: it must not all go to one shard.
        heapq.heappush(lightest, (weight + files[path].size + 1, shard))
    return shards
