"""Queries: the lines that have all words of the query, the beginning of each word is enough.

The index knows which files have a word, not where.  It narrows the search down to a few files,
whose texts are then searched line by line.  Words that it would not understand as we do
(only punctuation, or not ASCII) narrow nothing, and are looked for everywhere.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from . import store

WORDS = 16
LIMIT = 50
PER_FILE = 8


@dataclass(frozen=True, slots=True)
class Hit:
    """A line, and where in it the words are: pairs of offsets."""

    path: str
    line: int
    text: str
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Result:
    """The best hits; ``more`` tells that the limits left some out."""

    hits: list[Hit]
    more: bool
    seconds: float


def search(db_path: str, query: str, *, limit: int = LIMIT, per_file: int = PER_FILE) -> Result:
    """Return the hits, those in the files that are most about the words first."""
    began = time.perf_counter()
    words = query.split()[:WORDS]
    hits: list[Hit] = []
    more = False
    with closing(store.connect(db_path)) as db:
        for path, text in _texts(db, words) if words else ():
            found = list(islice(hits_in(path, text, words), per_file + 1))
            hits += found[:per_file]
            more = more or len(found) > per_file
            if len(hits) > limit:
                more = True
                break
    return Result(hits[:limit], more, time.perf_counter() - began)


def _texts(db: sqlite3.Connection, words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the files that may have all words."""
    match = match_expression(words)
    where = "WHERE texts MATCH :match ORDER BY rank" if match else "ORDER BY path"
    rows = db.execute(
        f"SELECT path, text FROM texts JOIN files ON files.id = texts.rowid {where}",
        {"match": match},
    )
    for path, text in rows:
        yield path.decode(errors="replace"), text


def match_expression(words: list[str]) -> str:
    """Return the query in FTS5's language, made of quoted ASCII letters and digits only.

    ``get_event`` is two tokens to FTS5: a phrase, whose last token may go on.
    """
    phrases = [re.findall("[a-z0-9]+", word.lower()) for word in words if word.isascii()]
    return " AND ".join(f'"{" ".join(phrase)}"*' for phrase in phrases if phrase)


def _pattern(word: str) -> re.Pattern[str]:
    """Match a word as it is, in any case, where no other word goes on into it."""
    begins = r"(?<![^\W_])" if word[0].isalnum() else ""
    return re.compile(begins + re.escape(word), re.IGNORECASE)


def hits_in(path: str, text: str, words: list[str]) -> Iterator[Hit]:
    """Yield the lines that have all words; looks for the longest one first."""
    lowered = text.lower()  # ten times as fast as a pattern at finding nothing
    if not all(word.lower() in lowered for word in words):
        return
    patterns = [_pattern(word) for word in sorted(set(words), key=len, reverse=True)]
    number, counted, position = 1, 0, 0
    while (match := patterns[0].search(text, position)) is not None:
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        position = end = len(text) if end < 0 else end
        number, counted = number + text.count("\n", counted, start), start
        spans = _spans(text[start:end], patterns)
        if spans:
            yield Hit(path, number, text[start:end], spans)


def _spans(line: str, patterns: list[re.Pattern[str]]) -> list[tuple[int, int]]:
    """Return where the words are, without overlaps; nothing unless all are there."""
    found = [[match.span() for match in pattern.finditer(line)] for pattern in patterns]
    if not all(found):
        return []
    merged: list[tuple[int, int]] = []
    for start, end in sorted(span for spans in found for span in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
