"""Workers that write down who they are, and what they may take; and how to read that.

Preloaded by tests that run it as other users: these may be unable to read the interpreter's
own files.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = ("plain", "async", "command")
OF_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}

STATUS = "cat /proc/self/status /proc/self/limits /proc/self/stat /proc/self/cgroup"


def report(path: str) -> None:
    """Write down what the kernel says of this process, and its environment."""
    texts = []
    for name in ("status", "limits", "stat", "cgroup"):
        with open(f"/proc/self/{name}") as file:
            texts.append(file.read())
    _write(path, {"kernel": "".join(texts), "cwd": os.getcwd(), "env": dict(os.environ)})


async def report_async(path: str) -> None:
    report(path)


def _write(path: str, what: dict[str, Any]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, json.dumps(what).encode())
    os.close(fd)


def what_runs(kind: str, path: Path) -> dict[str, Any]:
    """Return the fields of a spec whose worker writes a report to *path*."""
    if kind == "command":
        script = f"env -0 > {path}.env && {STATUS} > {path}.kernel && pwd -P > {path}.cwd"
        return {"command": ["/bin/sh", "-c", script]}
    return {"target": report if kind == "plain" else report_async, "args": (str(path),)}


def has_run(path: Path) -> bool:
    return any(path.parent.glob(f"{path.name}*"))


class Report:
    """What a worker has written down."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            found = json.loads(path.read_text())
            self._kernel, self.cwd, self.env = found["kernel"], found["cwd"], found["env"]
            return
        self._kernel = Path(f"{path}.kernel").read_text()
        self.cwd = Path(f"{path}.cwd").read_text().strip()
        lines = Path(f"{path}.env").read_text().split("\0")
        self.env = dict(line.split("=", 1) for line in lines if line)
        for name in OF_SHELL:
            self.env.pop(name, None)

    def __getitem__(self, name: str) -> list[str]:
        """Return the words of a line of /proc/self/status."""
        for line in self._kernel.splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1:]
        raise KeyError(name)

    def limit(self, name: str) -> list[str]:
        """Return soft and hard of a line of /proc/self/limits."""
        for line in self._kernel.splitlines():
            if line.startswith(name):
                return line.removeprefix(name).split()[:2]
        raise KeyError(name)

    @property
    def nice(self) -> int:
        (line,) = (line for line in self._kernel.splitlines() if " (" in line and ") " in line)
        return int(line.rpartition(")")[2].split()[16])

    @property
    def cgroup(self) -> str:
        (line,) = (line for line in self._kernel.splitlines() if line.startswith("0::"))
        return line[3:]

    @property
    def groups(self) -> set[int]:
        return set(map(int, self["Groups"]))

    @property
    def capabilities(self) -> set[int]:
        return {int(self[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


@contextmanager
def directory_for_all() -> Iterator[Path]:
    """Make a directory in which other users may write.

    Not below pytest's own, which every session of pytest closes to other users when it starts.
    """
    with tempfile.TemporaryDirectory(prefix="aiobgw-test-") as path:
        os.chmod(path, 0o777)
        yield Path(path)


def leave_a_session(path: str) -> None:
    """Start a process in a session of its own, which no signal to our group reaches; end."""
    child = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    with open(f"{path}.new", "w") as file:
        file.write(str(child.pid))
    os.rename(f"{path}.new", path)  # complete, for whoever waits for it
    child.returncode = 0  # no warning about it


def stay_with_a_session(path: str) -> None:
    """Do the same, and stay, whatever SIGTERM wants."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave_a_session(path)
    while True:
        signal.pause()


def become_root_again(path: str) -> None:
    """Try every way back, and write down which one works."""
    ways = {
        "setuid": lambda: os.setuid(0),
        "seteuid": lambda: os.seteuid(0),
        "setresuid": lambda: os.setresuid(0, 0, 0),
        "setgid": lambda: os.setgid(0),
        "setgroups": lambda: os.setgroups([0]),
        "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    }
    worked = []
    for name, way in ways.items():
        try:
            way()
        except OSError:
            continue
        worked.append(name)
    _write(path, {"worked": worked})


def descriptors(path: str) -> None:
    """Write down which descriptors there are."""
    found = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass  # the listing's own
    _write(path, {"descriptors": found})
