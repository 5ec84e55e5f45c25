"""Index, answer one query, and say what it took."""

from __future__ import annotations

import asyncio

from . import find, store
from .crew import Crew
from .options import Options

SHOWN = 10


async def run(options: Options, query: str) -> None:
    async with Crew(options) as crew:
        await crew.index()
        progress = await asyncio.to_thread(store.progress, options.db)
        result = await asyncio.to_thread(find.search, options.db, query)
    _report(crew, progress)
    _show(query, result)


def _report(crew: Crew, progress: store.Progress) -> None:
    workers = [handle.status() for handle in crew.handles]
    restarts = sum(status.restarts for status in workers)
    print(f"{progress.files:,} files, {progress.lines:,} lines, {crew.seconds:.2f} seconds")
    print(
        f"{progress.shards} shards, {len(workers)} workers used,"
        f" {crew.options.workers} indexing at once, {restarts} restarts"
    )


def _show(query: str, result: find.Result) -> None:
    shown = result.hits[:SHOWN]
    found = f"{len(result.hits)}{'+' if result.more else ''} lines"
    print(f"\n{query!r}: {found}, {result.seconds * 1000:.1f} ms")
    for hit in shown:
        print(f"  {hit.path}:{hit.line}: {hit.text.strip()[:120]}")
    if len(result.hits) > len(shown):
        print("  ...")
