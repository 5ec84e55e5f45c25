"""Real daemons, as they come from Debian: ready when they serve, and ended in order."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiobgw import ExitKind, Readiness, WorkerSpec, WorkerState

from ..conftest import MakeSupervisor
from .test_readiness import A_LIFE, told

pytestmark = pytest.mark.anyio

BOUND = 30.0

Daemon = tuple[dict[str, Any], tuple[str, int] | str, bytes, bytes]
"""The fields of its spec, where it serves, what to ask there, how the answer begins."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def redis(program: str, path: Path) -> Daemon:
    where = str(path / "redis.sock")
    options = ["--port", "0", "--unixsocket", where, "--dir", str(path), "--save", ""]
    command = [program, *options, "--supervised", "systemd"]
    return {"command": command, "ready": Readiness.NOTIFY}, where, b"PING\r\n", b"+PONG"


def memcached(program: str, path: Path) -> Daemon:
    port = free_port()
    user = ["-u", "root"] if os.getuid() == 0 else []
    command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", *user]
    fields = {"command": command, "ready": Readiness.PROBE, "probe": f"tcp://127.0.0.1:{port}"}
    return fields, ("127.0.0.1", port), b"version\r\n", b"VERSION"


NGINX = """
{user}
daemon off;
worker_processes 2;
pid {path}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;
    uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "served"; }} }}
}}
"""


def nginx(program: str, path: Path) -> Daemon:
    port = free_port()
    config = path / "nginx.conf"
    user = "user root;" if os.getuid() == 0 else ""
    config.write_text(NGINX.format(path=path, port=port, user=user))
    command = [program, "-p", str(path), "-c", str(config), "-e", "stderr"]
    probe = f"http://127.0.0.1:{port}/health"
    fields = {"command": command, "ready": Readiness.PROBE, "probe": probe}
    return fields, ("127.0.0.1", port), b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"


DAEMONS: dict[str, Callable[[str, Path], Daemon]] = {
    "redis-server": redis,
    "memcached": memcached,
    "nginx": nginx,
}


def ask(where: tuple[str, int] | str, question: bytes) -> bytes:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(BOUND)
        client.connect(where)
        client.sendall(question)
        return client.recv(100)


@pytest.mark.parametrize("name", DAEMONS)
async def test_a_daemon_is_ready_when_it_serves_and_ends_when_it_is_asked_to(
    make_supervisor: MakeSupervisor, tmp_path: Path, name: str
) -> None:
    program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {name})")
    fields, where, question, answer = DAEMONS[name](program, tmp_path)
    supervisor = await make_supervisor()
    events = supervisor.events()
    handle = await supervisor.register(WorkerSpec(name=name, **fields))
    async with asyncio.timeout(BOUND):
        status = await handle.wait_for_ready()
        assert status.state is WorkerState.RUNNING
        assert (await asyncio.to_thread(ask, where, question)).startswith(answer)
        assert status.says == ("Ready to accept connections" if name == "redis-server" else "")
        handle.terminate()
        exit = await handle
    assert exit is not None
    assert exit.kind is ExitKind.TERMINATED
    assert told(events) == [("Registered", False), *A_LIFE, ("Retired", False)]
