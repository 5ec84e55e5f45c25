"""What the workers of the stack run, and the little of redis' protocol that they speak.

None of them tries to connect again: who loses redis ends, and its rule starts it again when
redis is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiobgw

QUEUE = "jobs"
WORK = 0.02
"""Seconds that a job takes."""


async def dispatch(socket: Path, results: Path, jobs: int) -> None:
    """Put every job into the list that has no result yet, whoever lost it; then stay."""
    async with connected(socket) as redis:
        missing = [str(job) for job in range(jobs) if not (results / str(job)).exists()]
        await redis.ask("DEL", QUEUE)
        if missing:
            await redis.ask("RPUSH", QUEUE, *missing)
        aiobgw.current_worker().ready()
        await redis.end()


async def consume(socket: Path, results: Path) -> None:
    """Take one job after the other, and write its result."""
    done = aiobgw.current_worker().latches["done"]
    async with connected(socket) as redis:
        while True:
            _, job = await redis.ask("BLPOP", QUEUE, "0")
            await asyncio.sleep(WORK)
            # A file that is there already is an error: no job is done twice.
            with (results / job).open("x") as result:
                result.write(str(int(job) ** 2))
            done.set()


@asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[Redis]:
    """Be connected to redis; without it the worker ends, as a failure, in one line."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        try:
            yield Redis(reader, writer)
        finally:
            writer.close()
    except (ConnectionError, FileNotFoundError, EOFError):
        raise SystemExit("redis is gone") from None


class Redis:
    """A connection to redis: words out, an answer in (RESP 2)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, *words: str) -> Any:
        """Return the answer; raises RuntimeError if it is an error, EOFError without one."""
        texts = [word.encode() for word in words]
        parts = [b"$%d\r\n%s\r\n" % (len(text), text) for text in texts]
        self._writer.write(b"*%d\r\n%s" % (len(parts), b"".join(parts)))
        await self._writer.drain()
        return await self._answer()

    async def _answer(self) -> Any:
        line = (await self._reader.readuntil(b"\r\n"))[:-2].decode()
        kind, rest = line[:1], line[1:]
        if kind == "*":
            return [await self._answer() for _ in range(int(rest))]
        if kind == "$":
            text = await self._reader.readexactly(max(int(rest), 0) + 2) if rest != "-1" else b""
            return text[:-2].decode()
        if kind == "-":
            raise RuntimeError(rest)
        return int(rest) if kind == ":" else rest

    async def end(self) -> None:
        """Return never; raises EOFError when redis goes."""
        await self._reader.readuntil(b"\r\n")
