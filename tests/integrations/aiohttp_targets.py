"""What workers run in the tests of the aiohttp integration.  Workers do not import aiohttp."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time

import aiobgw

BOUND = 20.0


def say(text: str) -> None:
    """Write a line at once: several processes write to one pipe."""
    os.write(1, f"{text}\n".encode())


async def stay() -> None:
    """Say when it starts, and when it was asked to end; whom SIGKILL ends says nothing."""
    name = aiobgw.current_worker().name
    say(f"{name} up {os.getpid()}")
    try:
        await asyncio.sleep(3600)
    finally:
        say(f"{name} down")


def stay_whatever_is_asked() -> None:
    """Take note of SIGTERM, and do not end by it."""
    signal.signal(signal.SIGTERM, lambda *_: say("asked to end"))
    say(f"worker up {os.getpid()}")
    while True:
        time.sleep(3600)


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
    say("answered")
    await stay()
