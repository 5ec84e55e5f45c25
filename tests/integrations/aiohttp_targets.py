"""What workers run in the tests of the aiohttp integration.  Workers do not import aiohttp."""

from __future__ import annotations

import asyncio
import os
import socket

import aiobgw

BOUND = 20.0


async def stay() -> None:
    """Say when it starts, and when it was asked to end; whom SIGKILL ends says nothing."""
    name = aiobgw.current_worker().name
    print(f"{name} up {os.getpid()}", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print(f"{name} down", flush=True)


async def finish_when_told() -> None:
    """End by itself when the latch "go" is set."""
    await aiobgw.current_worker().latches["go"].wait()


def knock(port: int) -> None:
    """Connect once, without another try, and get an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = connection.recv(100).decode()
    if " 200 " not in answer:
        raise ValueError(answer)


async def knock_and_stay(port: int) -> None:
    await asyncio.to_thread(knock, port)
    print("answered", flush=True)
    await stay()
