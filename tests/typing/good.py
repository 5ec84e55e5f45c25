"""A program that must type-check."""

from __future__ import annotations

import aiobgw


async def main() -> None:
    async with aiobgw.Supervisor(name="typed", max_workers=4, preload=("json",)) as supervisor:
        spec = aiobgw.WorkerSpec(name="w", target=print, args=(1, "two"))
        handle: aiobgw.WorkerHandle = await supervisor.register(spec)
        status: aiobgw.WorkerStatus = await handle.wait_for_startup()
        exit: aiobgw.ExitStatus | None = await handle
        assert exit is not None and status.pid is not None
        exit.check()
        async with supervisor.guard(), handle.guard():
            await supervisor.shutdown(aiobgw.ShutdownMode.SMART)
        async for event in supervisor.events():
            if isinstance(event, aiobgw.WorkerEvent):
                print(event.status.name, event.at)
