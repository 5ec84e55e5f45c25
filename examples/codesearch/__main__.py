"""The command line: index and serve, or index and answer one query."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence

from aiobgw import AiobgwError

from . import once, service
from .options import Options, default_root, default_workers

MOST_WORKERS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not os.path.isdir(given.root):
        parser.error(f"--root: no such directory: {given.root}")
    try:
        # Left last: by then the supervisor has ended, and with it all who use the database.
        with tempfile.TemporaryDirectory(prefix="codesearch-") as folder:
            return asyncio.run(_run(given, _options(given, folder)))
    except (AiobgwError, OSError, sqlite3.Error) as error:
        print(f"codesearch: failed: {_line(error)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.codesearch",
        description="Index a tree of Python source code with background workers, and search it.",
    )
    add = parser.add_argument
    add("--once", action="store_true", help="index, run one query, print, and end")
    add("--query", default="async def", help="what --once looks for (default: %(default)s)")
    add("--root", default=default_root(), help="the tree (default: the standard library)")
    add("--db", metavar="PATH", help="keep the index in this file (default: a temporary one)")
    add("--port", type=_port, default=8080, help="0: any free one (default: %(default)s)")
    add(
        "--workers",
        type=_workers,
        default=default_workers(),
        metavar="N",
        help="how many index at once (default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    return _number(text, 0, 65_535)


def _workers(text: str) -> int:
    return _number(text, 1, MOST_WORKERS)


def _number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be {least} to {most}, not {text!r}")
    return int(text)


def _options(given: argparse.Namespace, folder: str) -> Options:
    db = given.db or os.path.join(folder, "index.db")
    root, db = os.path.realpath(given.root), os.path.abspath(db)
    return Options(root=root, db=db, workers=given.workers)


async def _run(given: argparse.Namespace, options: Options) -> int:
    if given.once:
        return await _until_signalled(lambda: once.run(options, given.query))
    stopped = await _until_signalled(lambda: service.serve(options, given.port))
    return 0 if stopped else 1  # a signal is how a service is asked to end


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> int:
    """Run *work*; SIGINT and SIGTERM cancel it, and make the result 128 + n as in a shell."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await work()
    except asyncio.CancelledError:
        if not received:
            raise
    return 128 + received[0] if received else 0


def _line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
