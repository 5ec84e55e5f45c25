"""The queue, the steps that a document goes through, and the loop of the workers that do them.

What makes it sound when anybody dies between any two lines:

* A job is claimed in one statement, in the name of a worker.
* Its result and its next stage are written in one transaction.
* A worker that dies leaves its claim behind.  Two lives of one worker never overlap: so its
  next life gives back what it finds claimed in its own name, before it takes anything.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import aiobgw

KEYWORDS = 5
LOCK_TIMEOUT = 5.0  # less than stop_timeout: SIGTERM is not heard while SQLite waits

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    stage TEXT NOT NULL,                -- the step that is next, or "done"
    claimed_by TEXT,                    -- the worker that has it in hand
    claims INTEGER NOT NULL DEFAULT 0   -- more than there are steps: somebody died
);
CREATE INDEX IF NOT EXISTS waiting ON documents (stage, claimed_by);
CREATE TABLE IF NOT EXISTS results (
    document INTEGER NOT NULL,
    step TEXT NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (document, step)        -- a job that is done twice would be an error
);
"""


# The steps.


class Job(NamedTuple):
    document: int
    text: str
    keywords: list[str]


def extract(job: Job) -> str:
    return " ".join(word for word, _ in Counter(words(job.text)).most_common(KEYWORDS))


def summarise(job: Job) -> str:
    sentences = re.split(r"(?<=[.!?])\s+|\n\s*\n", job.text)
    keywords = set(job.keywords)
    # The shortest of the best: not the longest list that mentions everything.
    best = max(sentences, key=lambda text: (len(keywords & set(words(text))), -len(text)))
    return " ".join(best.split())


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{4,}", text.lower())


STEPS: dict[str, Callable[[Job], str]] = {"extract": extract, "summarise": summarise}
FIRST = "extract"
NEXT = {"extract": "summarise", "summarise": "done"}


# What workers run.


def work(step: str, path: str) -> None:
    """Do one step of every document that waits for it; then wait to be woken."""
    worker = aiobgw.current_worker()
    there_is_work = worker.latches["there_is_work"]
    more_for_the_next = worker.latches.get("more_for_the_next")
    with closing(connect(path)) as db:
        give_back(db, worker.name)
        while True:
            # Ordering: before looking, so that a wake-up that comes meanwhile is not lost.
            there_is_work.reset()
            while (job := claim(db, step, worker.name)) is not None:
                finish(db, job, step, STEPS[step](job))
                if more_for_the_next is not None:
                    more_for_the_next.set()
            there_is_work.wait_blocking()


# The queue.


def create(path: str) -> None:
    """Make the tables; what a service of before had in hand, nobody has any more."""
    with closing(connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")  # readers do not wait for writers
        db.executescript(_SCHEMA)
        db.execute("UPDATE documents SET claimed_by = NULL")


def connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=LOCK_TIMEOUT)


def put(path: str, text: str) -> int:
    with closing(connect(path)) as db, db:
        row = db.execute("INSERT INTO documents (text, stage) VALUES (?, ?)", (text, FIRST))
        assert row.lastrowid is not None
        return row.lastrowid


def give_back(db: sqlite3.Connection, worker: str) -> None:
    with db:
        db.execute("UPDATE documents SET claimed_by = NULL WHERE claimed_by = ?", (worker,))


def claim(db: sqlite3.Connection, step: str, worker: str) -> Job | None:
    """Take the oldest document that waits for *step*; None if there is none."""
    with db:
        found = db.execute(
            "UPDATE documents SET claimed_by = ?, claims = claims + 1 WHERE id = ("
            " SELECT id FROM documents WHERE stage = ? AND claimed_by IS NULL"
            " ORDER BY id LIMIT 1) RETURNING id, text",
            (worker, step),
        ).fetchall()
    if not found:
        return None
    ((document, text),) = found
    return Job(document, text, results(db, document).get("extract", "").split())


def finish(db: sqlite3.Connection, job: Job, step: str, result: str) -> None:
    with db:
        db.execute("INSERT INTO results VALUES (?, ?, ?)", (job.document, step, result))
        db.execute(
            "UPDATE documents SET stage = ?, claimed_by = NULL WHERE id = ?",
            (NEXT[step], job.document),
        )


def results(db: sqlite3.Connection, document: int) -> dict[str, str]:
    return dict(db.execute("SELECT step, result FROM results WHERE document = ?", (document,)))


def look_up(path: str, document: int) -> dict[str, object] | None:
    """Return how far a document is; None if there is no such document."""
    with closing(connect(path)) as db:
        db.execute("BEGIN")  # all of it as it was at one moment
        row = db.execute(
            "SELECT stage, claimed_by, claims FROM documents WHERE id = ?", (document,)
        ).fetchone()
        if row is None:
            return None
        stage, claimed_by, claims = row
        found = {"stage": stage, "claimed_by": claimed_by, "claims": claims}
        return {**found, "results": results(db, document)}


def counts(path: str) -> dict[str, int]:
    """Return how many documents there are in each stage."""
    with closing(connect(path)) as db:
        found = dict(db.execute("SELECT stage, count(*) FROM documents GROUP BY stage"))
    return {stage: found.get(stage, 0) for stage in (*STEPS, "done")}
