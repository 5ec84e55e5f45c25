"""A program in which every marked line must be refused."""

from __future__ import annotations

import aiobgw


async def main() -> None:
    aiobgw.Supervisor(max_workers="four")  # refused
    aiobgw.Supervisor(no_such_option=1)  # refused
    aiobgw.WorkerSpec("positional")  # refused
    aiobgw.WorkerSpec(name="w", target="a:b", restart="always")  # refused
    async with aiobgw.Supervisor() as supervisor:
        handle = supervisor.register(aiobgw.WorkerSpec(name="w", target="a:b"))
        handle.terminate()  # refused
        await supervisor.shutdown("fast")  # refused
