"""The database: the files, their texts, and which shards are done.

The planner owns the schema and the list of files, an indexing worker the files of its shard,
the watcher everything after that.  They meet in SQLite's write lock, and take it only when
all they want to write is in memory.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from .tree import Source, Stamp

LOCK_TIMEOUT = 30.0
ATTEMPT_TIMEOUT = 0.2  # of LOCK_TIMEOUT, in one go

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trees (root TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS shards (id INTEGER PRIMARY KEY, done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY,    -- the rowid of its text
    path BLOB NOT NULL UNIQUE,
    shard INTEGER,             -- NULL if no shard has it: found by the watcher, or kept
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    lines INTEGER              -- NULL until it is indexed
);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (text);
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the index is."""

    shards: int
    shards_done: int
    files: int
    files_done: int
    lines: int


def create(path: str) -> None:
    """Make the database, unless it is there already."""
    with closing(connect(path)) as db:
        # Stays with the file; set here once, since changing it needs the file for itself.
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)


def connect(path: str) -> sqlite3.Connection:
    """Open the database; transactions are begun by ``writing`` only."""
    db = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
    # In WAL mode a crash of the machine may undo the last commits, but breaks nothing.
    db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextmanager
def writing(db: sqlite3.Connection, patience: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the write lock; commit at the end, undo everything if there is an error."""
    _lock(db, time.monotonic() + patience)
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _lock(db: sqlite3.Connection, give_up: float) -> None:
    """Take the write lock, in short attempts.

    No Python handler runs while SQLite waits: in one long wait, SIGTERM would go unheard.
    """
    db.execute(f"PRAGMA busy_timeout = {ATTEMPT_TIMEOUT * 1000:.0f}")
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
    db.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000:.0f}")


# What the planner does.


def use_root(db: sqlite3.Connection, root: str) -> None:
    """Forget everything that came from another tree."""
    if db.execute("SELECT root FROM trees").fetchall() != [(root,)]:
        for table in ("trees", "files", "texts"):
            db.execute(f"DELETE FROM {table}")
        db.execute("INSERT INTO trees VALUES (?)", (root,))


def write_plan(db: sqlite3.Connection, shards: list[dict[bytes, Stamp]]) -> None:
    """Write down what is to do, in place of what was."""
    db.execute("DELETE FROM shards")
    db.execute("UPDATE files SET shard = NULL")
    for shard, files in enumerate(shards, 1):
        db.execute("INSERT INTO shards (id) VALUES (?)", (shard,))
        db.executemany(
            "INSERT INTO files (path, shard, size, mtime_ns) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (path) DO UPDATE SET shard = excluded.shard, size = excluded.size,"
            " mtime_ns = excluded.mtime_ns, lines = NULL",
            ((path, shard, stamp.size, stamp.mtime_ns) for path, stamp in files.items()),
        )


def stamps(db: sqlite3.Connection) -> dict[bytes, Stamp]:
    """Return the indexed files, and how they were then."""
    rows = db.execute("SELECT path, size, mtime_ns FROM files WHERE lines IS NOT NULL")
    return {path: Stamp(size, mtime_ns) for path, size, mtime_ns in rows}


def paths(db: sqlite3.Connection) -> set[bytes]:
    """Return all files of the index, done or not."""
    return {path for (path,) in db.execute("SELECT path FROM files")}


# What an indexing worker does.


def shards_to_do(path: str) -> list[int]:
    with closing(connect(path)) as db:
        return [shard for (shard,) in db.execute("SELECT id FROM shards WHERE NOT done")]


def is_done(db: sqlite3.Connection, shard: int) -> bool:
    return bool(db.execute("SELECT done FROM shards WHERE id = ?", (shard,)).fetchone()[0])


def mark_done(db: sqlite3.Connection, shard: int) -> None:
    db.execute("UPDATE shards SET done = 1 WHERE id = ?", (shard,))


def shard_paths(db: sqlite3.Connection, shard: int) -> list[bytes]:
    rows = db.execute("SELECT path FROM files WHERE shard = ? ORDER BY path", (shard,))
    return [path for (path,) in rows]


# What an indexing worker and the watcher do, with the write lock.


def put(db: sqlite3.Connection, sources: Mapping[bytes, Source | None]) -> None:
    """Index files in place of what was known of them; None removes one."""
    remove(db, (path for path, source in sources.items() if source is None))
    for source in sources.values():
        if source is not None:
            _put(db, source)


def _put(db: sqlite3.Connection, source: Source) -> None:
    stamp = source.stamp
    ((file,),) = db.execute(
        "INSERT INTO files (path, size, mtime_ns, lines) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns,"
        " lines = excluded.lines RETURNING id",
        (source.path, stamp.size, stamp.mtime_ns, source.lines),
    ).fetchall()
    db.execute("DELETE FROM texts WHERE rowid = ?", (file,))
    db.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (file, source.text))


def remove(db: sqlite3.Connection, gone: Iterable[bytes]) -> None:
    for path in gone:
        db.execute("DELETE FROM texts WHERE rowid = (SELECT id FROM files WHERE path = ?)", (path,))
        db.execute("DELETE FROM files WHERE path = ?", (path,))


# What the service asks.


def progress(path: str) -> Progress:
    with closing(connect(path)) as db:
        row = db.execute(
            "SELECT (SELECT count(*) FROM shards), (SELECT count(*) FROM shards WHERE done),"
            " count(*), count(lines), coalesce(sum(lines), 0) FROM files"
        ).fetchone()
        return Progress(*row)
