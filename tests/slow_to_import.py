"""A target whose import takes longer than its watchdog allows it to be silent."""

from __future__ import annotations

import asyncio
import time

time.sleep(1.0)


async def run() -> None:
    await asyncio.sleep(3600)
