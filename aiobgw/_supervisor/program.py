"""Looks by a program: ready if it exits with 0.

It is launched as commands are, by the zygote and with the worker's own user, directory,
environment and limits, and belongs to no slot.  What it prints goes where the worker's
output goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from .._process import events as process
from .._process.events import Launch, Order
from .._process.seam import LauncherSeam

log = logging.getLogger("aiobgw")


class ProgramLook:
    """One run of the program; the owner of its launch.

    Once it is closed its process gets SIGKILL, with its group, and the launcher forgets it at
    its end, for which a stop waits.  *complaints*: what was logged of it before.
    """

    def __init__(
        self,
        launcher: LauncherSeam,
        order: Callable[[], Order],
        done: Callable[[bool], None],
        name: str,
        complaints: set[str],
    ) -> None:
        self._launcher = launcher
        self._order = order
        self._done = done
        self._name = name
        self._complaints = complaints
        self._launch: Launch | None = None
        self._is_unwanted = False
        self._is_closed = False

    def begin(self) -> None:
        self._launch = self._launcher.launch(self._order(), self)

    def hear(self, event: process.ProcessEvent) -> None:
        match event:
            case process.SaidHello(launch, _) if self._is_unwanted:
                launch.kill_group()
            case process.Ended(_, status, failure):
                if failure:
                    self._complain(f"cannot be executed: {failure}")
                self._end(status == 0 and not self._is_unwanted)
            case process.Lost():
                self._end(False)
            case process.Failed(_, why):
                self._complain(f"cannot be launched: {why}")
                self._end(False)

    def _end(self, is_ready: bool) -> None:
        self._launch = None
        if not self._is_closed:
            self._is_closed = True
            self._done(is_ready)

    def _complain(self, why: str) -> None:
        if why not in self._complaints and not self._is_closed:
            self._complaints.add(why)
            log.warning("worker %s: its probe %s", self._name, why)

    def give_up(self) -> None:
        """Have the program end.  It may be on its way: then it is killed at its hello."""
        self._is_unwanted = True
        if self._launch is None or self._launcher.withdraw(self._launch):
            self._end(False)
        else:
            self._launch.kill_group()

    def close(self) -> None:
        self._is_closed = True
        self.give_up()

    def descriptors(self) -> Iterator[int]:
        yield from ()  # the launcher has them

    def close_copies(self) -> None:
        pass
