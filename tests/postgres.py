"""A PostgreSQL server of the tests' own: a new cluster, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import procs

USERS = ("postgres", "nobody")
"""Who may run it where we are root: a server refuses to run as root."""


def programs() -> Path | None:
    """Return the folder of initdb and pg_ctl: where Debian puts them, else on PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    on_path = shutil.which("initdb")
    candidates = [*reversed(found), *([Path(on_path).resolve()] if on_path else [])]
    return next((path.parent for path in candidates if (path.parent / "pg_ctl").exists()), None)


def why_not() -> str | None:
    """Say why no server can be run here; None if one can."""
    if programs() is None:
        return "no initdb and pg_ctl, in /usr/lib/postgresql/*/bin or on PATH"
    if os.getuid() == 0 and _other_user() is None:
        return f"a PostgreSQL server refuses to run as root, and there is none of {USERS}"
    return None


def _other_user() -> pwd.struct_passwd | None:
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next((known[name] for name in USERS if name in known), None)


@contextmanager
def server() -> Iterator[str]:
    """Run a server; gives the DSN of its superuser "test", in the database "postgres"."""
    bin = programs()
    assert bin is not None
    # Short: the path of a Unix socket has 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="aiobgw-pg-", dir="/tmp"))
    user = _other_user() if os.getuid() == 0 else None
    if user is not None:
        os.chown(home, user.pw_uid, user.pw_gid)
    data = home / "data"
    try:
        # Not durable, and without shared memory files in /dev/shm.
        _run(user, bin / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync")
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": home,
            "fsync": "off",
            "dynamic_shared_memory_type": "mmap",
            "max_connections": "20",
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = home / "log"
        _run(user, bin / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            yield f"postgresql://test@/postgres?host={home}"
        finally:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            _run(user, bin / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
            procs.wait_dead({pid})
            procs.reap({pid})
    finally:
        shutil.rmtree(home)


def _run(user: pwd.struct_passwd | None, *words: object) -> None:
    """Run a program to its end, as that user, with a locale that is everywhere."""
    ran = subprocess.run(
        [str(word) for word in words],
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, f"{words}: {ran.stdout}"
