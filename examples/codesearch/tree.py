"""The tree of source files: what belongs to it, and what is in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

SUFFIX = b".py"
SKIPPED = {b"__pycache__", b"site-packages", b"dist-packages", b"node_modules"}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a changed file from an unchanged one, without reading it."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Source:
    """A file, read; its path is relative to the root, in bytes, as Linux has it."""

    path: bytes
    stamp: Stamp
    text: str

    @property
    def lines(self) -> int:
        unfinished = self.text != "" and not self.text.endswith("\n")
        return self.text.count("\n") + unfinished


def walk(root: str) -> Iterator[tuple[bytes, Stamp]]:
    """Yield the files that belong to the tree.

    A root that is missing raises OSError: it may be a disk that is not mounted, and must not
    look like a tree from which everything was removed.
    """
    top = os.fsencode(root)
    os.stat(top)
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(SUFFIX) and os.path.isfile(path):
                yield from _stamped(top, path)


def _is_skipped(folder: bytes) -> bool:
    return folder in SKIPPED or folder.startswith(b".")


def _stamped(top: bytes, path: bytes) -> Iterator[tuple[bytes, Stamp]]:
    try:
        yield os.path.relpath(path, top), _stamp(os.stat(path))
    except FileNotFoundError:
        pass  # removed since its folder was listed


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns)


def read(root: str, path: bytes) -> Source | None:
    """Read a file; None if it is gone, or may not be read."""
    try:
        with open(
            os.path.join(os.fsencode(root), path), encoding="utf-8", errors="replace"
        ) as file:
            # Race: the stamp is taken before the text, so that a change in between makes the
            # file look changed at the next scan, never unchanged.
            stamp = _stamp(os.fstat(file.fileno()))
            return Source(path, stamp, file.read())
    except OSError:
        return None
