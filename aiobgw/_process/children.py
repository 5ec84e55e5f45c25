"""Children: watches every child of the zygote, passes on what it says, records how it ends.

Order, for each of them: hello, frames, the end of its channel, its exit.  The kernel may show
them in another order, so that an exit first takes what is left in the channel, and a report
of the zygote first takes the hello.  After every exit the rest of the group is ended, before
anybody hears of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from . import events, exits
from .child import Child
from .events import ProcessEvent
from .keeper import Keeper
from .watcher import AT_REAP, ONCE, Watcher

STATUS_TIMEOUT = 5.0
END_TIMEOUT = 0.2


class Children:
    """The children of this supervisor's zygotes, by the number of their fork."""

    def __init__(
        self,
        watcher: Watcher,
        keeper: Keeper,
        *,
        tell: Callable[[ProcessEvent], None],
        on_hello: Callable[[Child], None],
        on_forgotten: Callable[[Child], None],
        on_spare_death: Callable[[], None],
    ) -> None:
        self._watcher = watcher
        self._keeper = keeper
        self._tell = tell
        self._hello = on_hello
        self._forgotten = on_forgotten
        self._spare_died = on_spare_death
        self._children: dict[int, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children.values())

    def __len__(self) -> int:
        return len(self._children)

    def listen(self, child: Child) -> None:
        """Watch the channel of a child that is about to be forked; raises OSError."""
        if child.channel is not None:
            self._watcher.watch(child.channel.fd, partial(self._on_channel, child))

    def add(self, child: Child) -> None:
        """Take a child whose fork was asked for."""
        self._children[child.number] = child

    # What the zygote says.

    def zygote_died(self, pid: int) -> None:
        """Look again at exits that this zygote would have reported."""
        for child in list(self._children.values()):
            if child.zygote == pid and self._watcher.has_timer(child.number):
                self._on_exit(child)

    def reported(self, number: int, status: int) -> None:
        """A zygote that reaps has the status; what the child said comes first."""
        child = self._children.get(number)
        if child is not None and not child.said_hello:
            self._on_channel(child)  # Race: its hello may be there, and be handled after this
        if child is not None and child.said_hello and number in self._children:
            child.status = status
            self._drain_all(child)
            self._finish(child)
        if self._keeper.zygote is not None:
            self._keeper.zygote.acknowledge(number)

    def _reports(self, child: Child) -> bool:
        """Tell whether the child's zygote lives, and will report it."""
        zygote = self._keeper.zygote
        return (
            self._keeper.boot.reaper == "zygote"
            and zygote is not None
            and zygote.pid == child.zygote
        )

    # What children say.

    def _on_channel(self, child: Child) -> None:
        greeted = child.said_hello
        # One message, if one is likely: to ask for another costs an exception, and the epoll
        # is level-triggered.  A cold start mostly brings hello and STARTED together.
        is_open = child.drain(1 if greeted else 2)
        if child.said_hello and not greeted:
            self._on_hello(child)
        self._pass_on(child)
        if not is_open and child.number in self._children:
            self._on_end_of_channel(child)

    def _on_hello(self, child: Child) -> None:
        try:
            self._watcher.watch(child.pidfd, partial(self._on_exit, child), ONCE)
        except OSError as error:
            self._lose(child, f"it cannot be watched: {error}")
            return
        self._hello(child)

    def _pass_on(self, child: Child) -> None:
        launch = child.launch
        if launch is None:
            return
        frames, child.frames = child.frames, []
        for frame in frames:
            self._tell(events.Said(launch, frame))
        if child.executed:
            child.executed = False
            self._tell(events.Executed(launch))

    def _on_end_of_channel(self, child: Child) -> None:
        if child.channel is not None:
            self._watcher.unwatch(child.channel.fd)
        if child.said_hello:
            # Only its pidfd tells its exit; if that has come, this is what it waited for.
            if self._watcher.cancel(("end", child.number)):
                self._on_exit(child)
            return
        if child.failure is not None and child.launch is not None:
            self.forget(child)
            self._tell(events.Failed(child.launch, child.failure))
        else:
            self._lose(child, child.failure or "it ended before it said hello")

    # How children end.

    def _on_exit(self, child: Child) -> None:
        """The process is over.  What it said comes first, its status may come later."""
        self._drain_all(child)
        if not (child.heard or child.at_end or child.late):
            self._expect_end(child)
        elif self._reports(child):
            self._expect_status(child)
        elif child.find_status() is not None:
            self._finish(child)
        elif not exits.is_unreaped(child.pidfd):
            # Race: reaped after the first look, so look again; or a kernel that keeps nothing.
            child.find_status()
            self._finish(child)
        else:
            self._expect_status(child)

    def _expect_end(self, child: Child) -> None:
        """Wait for the end of a channel that said nothing: only that tells what happened.

        Race: the zygote closes its copy of the child's end right after the fork, and a child
        may have executed its command, or died with its order unread, before that.
        """
        child.late = True
        at = time.monotonic() + END_TIMEOUT
        self._watcher.timer(("end", child.number), at, partial(self._on_exit, child))

    def _expect_status(self, child: Child) -> None:
        """Have it looked at when it is reaped, and give up after a while."""
        self._watcher.change(child.pidfd, AT_REAP)
        if not self._watcher.has_timer(child.number):
            give_up = time.monotonic() + STATUS_TIMEOUT
            self._watcher.timer(child.number, give_up, partial(self._finish, child))

    def _drain_all(self, child: Child) -> None:
        """Take all that is left in the channel; its writer is gone, so that it is finite."""
        while child.drain() and child.frames:
            self._pass_on(child)
        self._pass_on(child)

    def _finish(self, child: Child) -> None:
        """Record an exit: the rest of its group goes first, then its descriptors."""
        if child.number not in self._children:
            return
        child.kill_group()
        launch, status = child.launch, child.status
        self.forget(child)
        if launch is None:
            self._spare_died()
        elif child.unread:
            self._tell(events.Lost(launch, "it ended with its order unread"))
        else:
            self._tell(events.Ended(launch, status, child.failure))

    def _lose(self, child: Child, why: str) -> None:
        self.forget(child)
        if child.launch is None:
            self._spare_died()
        else:
            self._tell(events.Lost(child.launch, why))

    def drop(self, child: Child) -> None:
        """Forget a child whose hello was not heard, and have nothing of it run.

        Race: it may have said hello all the same, and goes on then.  So the way is shut first,
        which ends whoever comes later; who was faster is found in the channel, and killed.
        """
        if child.channel is not None:
            child.channel.shut_down()
        if not child.said_hello:
            child.drain(1)
        child.kill_group()
        self.forget(child)

    def forget(self, child: Child) -> None:
        """Give back what it holds here, and the end that the zygote keeps for a command."""
        self._children.pop(child.number, None)
        self._watcher.cancel(child.number)
        self._watcher.cancel(("end", child.number))
        if child.channel is not None:
            self._watcher.unwatch(child.channel.fd)
        if child.said_hello:
            self._watcher.unwatch(child.pidfd)
        if child.is_command and self._keeper.zygote is not None:
            self._keeper.zygote.drop(child.number)
        child.close()
        self._forgotten(child)
