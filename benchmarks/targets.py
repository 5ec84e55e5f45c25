"""What the workers of the benchmarks run.  Imports nothing that a lean worker lacks."""

from __future__ import annotations

import os

RING = "import os; os.write(os.open({path!r}, os.O_WRONLY), b'!')"
"""``ring`` as the text of a program, for peers that start an interpreter."""


def nothing() -> None:
    """Return at once."""


async def nothing_async() -> None:
    """Return at once, from an event loop."""


def ring(path: str) -> None:
    """Write a byte into a FIFO, in the first line."""
    os.write(os.open(path, os.O_WRONLY), b"!")


async def ring_async(path: str) -> None:
    """Write a byte into a FIFO, in the first line, from an event loop."""
    os.write(os.open(path, os.O_WRONLY), b"!")
