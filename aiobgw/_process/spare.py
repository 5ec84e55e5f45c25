"""A child of the zygote, from the fork until it has its order.

Order of steps, each for a reason: its own session first (a group that can be ended), then
the lifeline, armed and looked at once, then hello with its own pidfd (opened by itself,
because a kernel-reaped child may be gone before anybody else could open it), then the
order.  A spare rehearses before it waits: what is first done in a fresh process is slow.
"""

from __future__ import annotations

import os
import select

# Without the enums of ``signal``: see _worker/signals.py.
from _signal import SIG_DFL, SIGCHLD, SIGURG
from _signal import signal as set_handler
from importlib import import_module

from .._inject import _inject
from .._ipc import launch
from .._ipc.channel import Channel
from . import held, lifeline, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

ORDER_FDS = 64

_entry: Callable[..., NoReturn]
_rehearse: Callable[[str], object]


def load(boot: dict[str, Any]) -> None:
    """Import, in the zygote, what its children will run; names, not objects, cross an exec."""
    global _entry, _rehearse
    _entry = resolve(boot["entry"])
    _rehearse = resolve(boot["rehearse"])


def resolve(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def run(channel_fd: int, armed: int, flags: int) -> NoReturn:
    """Say hello, wait for the order, and carry it out."""
    _inject("after_fork")
    pid = os.getpid()
    held.end(pid)
    set_handler(SIGCHLD, SIG_DFL)
    os.setsid()
    lifeline.arm(armed)
    if lifeline.is_cut(armed):
        os._exit(0)

    channel = Channel.adopt(channel_fd)
    _inject("before_hello")
    _say_hello(channel, pid)
    prepared = None
    if flags & wire.SPARE and not order_waits(channel):
        prepared = _rehearse(wire.KINDS[flags >> wire.KIND_SHIFT])

    data, fds = channel.receive(ORDER_FDS, block=True)
    if not data:
        os._exit(0)  # not needed any more, or the supervisor is gone
    order = launch.unpack_order(data)
    if "exit" in order:
        os._exit(order["exit"])  # the rehearsal child, by which a start finds out what works
    _entry(order, fds, channel, armed, prepared)


def rehearse() -> None:
    """Do in the zygote what a child does until its hello."""
    scratch = lifeline.Lifeline()
    try:
        lifeline.arm(scratch.read_end, SIGURG)  # which nobody minds
        lifeline.is_cut(scratch.read_end)
    finally:
        scratch.close()
    here, there = Channel.pair()
    _say_hello(here, os.getpid())
    for fd in there.receive(1)[1]:
        os.close(fd)
    order_waits(there)
    here.close()
    there.close()


def _say_hello(channel: Channel, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        channel.send(launch.hello(pid), (pidfd,), block=True)
    except OSError:
        os._exit(0)  # the supervisor has dropped this launch
    os.close(pidfd)


def order_waits(channel: Channel) -> bool:
    poll = select.poll()
    poll.register(channel.fd, select.POLLIN)
    return bool(poll.poll(0))
