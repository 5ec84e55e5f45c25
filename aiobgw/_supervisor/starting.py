"""Starting: all or nothing, and what this machine can do is found out by doing it.

A rehearsal child goes the way every worker goes, and ends with a code that nobody uses.  If the
kernel keeps its status in its pidfd after the reap, and can signal groups by pidfd (Linux 6.15),
nobody else is needed to learn of exits.  Else the zygote is started again as one that reaps and
reports, and the rehearsal must come back through it.
"""

from __future__ import annotations

import asyncio
import os

from .._ipc import launch as protocol
from .._process import events as process
from .._process import exits, probe
from .._process.events import Order
from ..errors import Unsupported
from .core import Core, Stage

REHEARSAL_CODE = 42
REHEARSAL_TIMEOUT = 10.0


async def start(core: Core) -> None:
    """Bring a supervisor up, to the point where workers can be launched."""
    probe.check()
    probe.interpreter(core.settings.python)
    core.stage = Stage.STARTING
    wanted = core.settings.reaper
    await core.outside.take_place()
    core.open_parts("zygote" if wanted == "zygote" else "kernel")
    if core.settings.launcher is not None:
        return  # a fake one: no process, nothing to find out
    await _zygote_ready(core)
    status, kernel_does = await _rehearse(core)
    if wanted == "auto" and not kernel_does:
        core.close_launcher()
        core.open_launcher("zygote")
        await _zygote_ready(core)
        status, _ = await _rehearse(core)
    elif wanted == "kernel" and not kernel_does:
        raise Unsupported(
            "the kernel does not keep exit statuses in pidfds",
            hint="needs Linux 6.15; use Supervisor(reaper='auto')",
        )
    if status != REHEARSAL_CODE << 8:
        raise Unsupported(f"a rehearsal child ended with status {status}, not {REHEARSAL_CODE}")


async def _zygote_ready(core: Core) -> None:
    assert core.zygote_event is not None
    await core.zygote_event


async def _rehearse(core: Core) -> tuple[int | None, bool]:
    """Launch a child that only ends; return its status, and whether the kernel kept it."""
    launcher = core.launcher
    assert launcher is not None
    done: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    rehearsal = _Rehearsal(done)
    order = Order(protocol.pack_exit(REHEARSAL_CODE))
    launcher.launch(order, rehearsal)
    try:
        async with asyncio.timeout(REHEARSAL_TIMEOUT):
            status = await done
        return status, rehearsal.kernel_does()
    except TimeoutError:
        raise Unsupported("a rehearsal child did not come up, or did not end") from None
    finally:
        rehearsal.close()


class _Rehearsal:
    """The owner of the rehearsal's launch.  Owns a copy of its pidfd, for a second look."""

    def __init__(self, done: asyncio.Future[int | None]) -> None:
        self._done = done
        self._pidfd = -1
        self._is_over = False

    def hear(self, event: process.ProcessEvent) -> None:
        match event:
            case process.SaidHello(launch, _) if launch.child is not None and not self._is_over:
                self._pidfd = os.dup(launch.child.pidfd)
            case process.Ended(_, status, _):
                self._finish(status)
            case process.Lost() | process.Failed():
                self._finish(None)

    def _finish(self, status: int | None) -> None:
        if not self._done.done():
            self._done.set_result(status)

    def kernel_does(self) -> bool:
        """Tell whether the kernel keeps statuses and signals groups."""
        if self._pidfd < 0:
            return False
        kept = exits.reaped_status(self._pidfd) == REHEARSAL_CODE << 8
        return kept and exits.group_signals_work(self._pidfd)

    def close(self) -> None:
        self._is_over = True
        if self._pidfd >= 0:
            os.close(self._pidfd)
