"""The indexing worker: reads the files of one shard and writes them into the index."""

from __future__ import annotations

from contextlib import closing

from . import store, tree


def run(db_path: str, root: str, shard: int) -> None:
    """Index a shard; once, however often this is run and killed.

    All files are read before the write lock is taken, so that others wait for the writing
    only.  The transaction that writes the files also marks the shard done.
    """
    with closing(store.connect(db_path)) as db:
        sources = {path: tree.read(root, path) for path in store.shard_paths(db, shard)}
        with store.writing(db):
            # Race: an earlier incarnation may have died between its commit and its end.
            if not store.is_done(db, shard):
                store.put(db, sources)
                store.mark_done(db, shard)
