"""A program that says what its arguments tell it to: for tests of commands that notify.

Run as a script, without aiobgw.  Steps, in order:

    say=LINES       send a datagram to NOTIFY_SOCKET ("\\n" separates its lines)
    synced=LINES    the same, and wait until it was looked at (what systemd-notify does)
    fds=LINES       send many descriptors with a datagram
    flood=LINES     send datagrams for ever
    child=STEP      have a child do a step, and wait for it
    write=FD:TEXT   write to a descriptor
    close=FD        close a descriptor
    gate=PATH       wait until a FIFO is opened for writing
    file=PATH       write the environment of the protocol, and the own descriptors, to a file
    ignore=SIGNUM   ignore a signal
    kill=SIGNUM     send a signal to itself
    exit=CODE       end

After the last step it sleeps.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import sys
import time


def say(text: str, *rights: int) -> None:
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    data = text.encode().replace(b"\\n", b"\n").replace(b"\\0", b"\0").replace(b"\\xff", b"\xff")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        fds = array.array("i", rights)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if rights else []
        sender.sendmsg([data], ancillary, 0, address)


def synced(text: str) -> None:
    say(text)
    read_end, write_end = os.pipe()
    say("BARRIER=1", write_end)
    os.close(write_end)
    os.read(read_end, 1)


def fds(text: str) -> None:
    with open(__file__) as file:
        say(text, *[file.fileno()] * 253)


def flood(text: str) -> None:
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        while True:
            sender.sendto(text.encode(), address)


def child(step: str) -> None:
    pid = os.fork()
    if pid == 0:
        do(step)
        os._exit(0)
    os.waitpid(pid, 0)


def write(what: str) -> None:
    fd, _, text = what.partition(":")
    os.write(int(fd), text.encode().replace(b"\\n", b"\n"))


def gate(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def file(path: str) -> None:
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    lines = [f"{name}={os.environ.get(name, '')}" for name in names]
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            lines.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            pass
    with open(path + ".new", "w") as out:
        out.write("\n".join([f"PID={os.getpid()}", *lines]))
    os.rename(path + ".new", path)


STEPS = {
    "say": say,
    "synced": synced,
    "fds": fds,
    "flood": flood,
    "child": child,
    "write": write,
    "close": lambda fd: os.close(int(fd)),
    "gate": gate,
    "file": file,
    "ignore": lambda number: signal.signal(int(number), signal.SIG_IGN),
    "kill": lambda number: os.kill(os.getpid(), int(number)),
    "exit": lambda code: os._exit(int(code)),
}


def do(step: str) -> None:
    verb, _, what = step.partition("=")
    STEPS[verb](what)


if __name__ == "__main__":
    for step in sys.argv[1:]:
        do(step)
    time.sleep(3600)
