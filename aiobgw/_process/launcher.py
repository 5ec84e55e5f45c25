"""The launcher: takes orders, has them carried out, and tells what became of them.

One mechanism: take a spare, or have a child forked; send it the order.  Commands are always
forked, because the zygote keeps the armed end of their lifeline, and opens it before the
fork.  At most FORKS_AT_ONCE forks are on their way, so that neither the zygote's socket nor
the processors are flooded; what is left waits in a queue, in order.

What happened is returned as events by ``gather``, which never waits.  Nothing is decided
here that a rule could decide: a launch that failed is told, not tried again.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from functools import partial

from .._ipc.channel import Channel
from .._policy.backoff import launch_delay
from . import events, exits, wire
from .child import Child
from .events import Launch, Order, ProcessEvent
from .keeper import Keeper
from .spares import Spares
from .watcher import AT_REAP, ONCE, Watcher
from .zygote import Boot

FORKS_AT_ONCE = 8
REFILL_DELAY = 0.005
"""Long enough for a short worker to start and to end: a fork in between would take a processor
from both (2 ms, and a round trip was a quarter slower).
"""

RETRY_DELAY = 0.1
STATUS_TIMEOUT = 5.0
END_TIMEOUT = 0.2
LOG_INTERVAL = 60.0

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)

log = logging.getLogger("aiobgw")


class Launcher:
    """Has processes forked, holds the spares, and watches everything it has launched."""

    def __init__(self, boot: Boot, *, spares: int) -> None:
        self.watcher = Watcher()
        self.keeper = Keeper(
            boot,
            self.watcher,
            on_ready=self._zygote_ready,
            on_report=self._reported,
            on_death=self._zygote_died,
            on_failure=lambda error: self._tell(events.ZygoteFailed(error)),
        )
        self.spares = Spares(spares)
        self._children: dict[int, Child] = {}
        self._forking: dict[int, Child] = {}
        self._queue: deque[Launch] = deque()
        self._events: list[ProcessEvent] = []
        self._numbers = 0
        self._zygotes = 0
        self._spare_deaths = 0
        self._logged_at = -LOG_INTERVAL
        self._closing = False

    # What the supervisor asks for.

    def launch(self, order: Order, owner: object) -> Launch:
        """Begin a launch; what becomes of it comes back as events."""
        launch = Launch(order, owner)
        self._queue.append(launch)
        self._pump()
        return launch

    def withdraw(self, launch: Launch) -> bool:
        """Take a launch back; False if it is too late for that."""
        try:
            self._queue.remove(launch)
        except ValueError:
            return False
        return True

    def drop(self, launch: Launch) -> None:
        """Forget a launch; a child without its channel calls no target."""
        if not self.withdraw(launch) and launch.child is not None:
            self._forget(launch.child)

    def gather(self) -> list[ProcessEvent]:
        """Return what happened since the last call; never waits."""
        self.watcher.poll()
        self.watcher.run_timers(time.monotonic())
        return self.take()

    def take(self) -> list[ProcessEvent]:
        """Return what happened while something was asked for, without looking further."""
        happened, self._events = self._events, []
        return happened

    @property
    def pending(self) -> bool:
        """Tell whether something happened that was not gathered yet."""
        return bool(self._events)

    @property
    def childless(self) -> bool:
        return not self._children

    def _tell(self, event: ProcessEvent) -> None:
        self._events.append(event)

    # From the queue to a child.

    def _pump(self) -> None:
        """Begin as many of the queued launches as may be on their way at once."""
        while self._queue:
            try:
                if not self._begin(self._queue[0]):
                    return
            except OSError as error:
                self._stall(error)
                return
            self._queue.popleft()

    def _begin(self, launch: Launch) -> bool:
        if not launch.order.command and self._send_to_spare(launch):
            return True
        return self._fork(launch.order.kind, launch) is not None

    def _send_to_spare(self, launch: Launch) -> bool:
        while (spare := self.spares.take(launch.order.kind)) is not None:
            try:
                spare.give_order(launch)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it died while it waited; its pidfd is on its way to us
            except OSError:
                self.spares.add(spare)
                raise
            # Ordering: the order is out before anything that can wait is done.
            self._refill_after(REFILL_DELAY)
            self._spare_deaths = 0
            self._tell(events.SaidHello(launch, spare.pid))
            return True
        return False

    def _fork(self, kind: str, launch: Launch | None) -> Child | None:
        """Have a child forked, its order waiting for it; None: not now."""
        zygote = self.keeper.ready
        if zygote is None or len(self._forking) >= FORKS_AT_ONCE:
            return None

        ours, theirs = Channel.pair()
        self._numbers += 1
        child = Child(self._numbers, kind, ours, zygote.pid)
        try:
            # Ordering: the order goes in before anybody can read it, or die with it.
            if launch is not None:
                child.give_order(launch)
            self.watcher.watch(ours.fd, partial(self._on_channel, child))
            zygote.fork(child.number, _flags(kind, launch), theirs)
        except OSError as error:
            self._undo(child, launch)
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return None  # the zygote is gone; its pidfd is on its way to us
            raise
        finally:
            theirs.close()
        self._children[child.number] = self._forking[child.number] = child
        return child

    def _undo(self, child: Child, launch: Launch | None) -> None:
        if launch is not None:
            launch.child = None
        if child.channel is not None:
            self.watcher.unwatch(child.channel.fd)
        child.close()

    def _stall(self, error: OSError) -> None:
        """Leave the queue as it is and try again: one timer, a line a minute at most."""
        now = time.monotonic()
        if error.errno not in _OUT_OF_RESOURCES or now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            log.warning("%d launches wait: %s", len(self._queue), error)
        self.watcher.timer("pump", now + RETRY_DELAY, self._pump)

    # Spares.

    def fill_spares(self) -> None:
        """Have spares forked, unless somebody waits for a fork."""
        if self._closing or self._queue:
            return
        on_their_way = [child for child in self._forking.values() if child.launch is None]
        for kind in self.spares.missing(on_their_way):
            try:
                if self._fork(kind, None) is None:
                    return
            except OSError as error:
                log.debug("no spare: %s", error)
                self._refill_after(1.0)
                return

    def _refill_after(self, delay: float) -> None:
        """Refill after a pause: at once, it would compete with the start for the processor."""
        if self.spares.target and not self._closing and not self.watcher.has_timer("refill"):
            self.watcher.timer("refill", time.monotonic() + delay, self.fill_spares)

    # The zygote.

    def _zygote_ready(self, pid: int) -> None:
        self._zygotes += 1
        self._tell(events.ZygoteUp(pid, self._zygotes > 1))
        self._pump()
        self._refill_after(0.0)

    def _zygote_died(self, pid: int) -> None:
        """Look again at exits that this zygote would have reported."""
        for child in list(self._children.values()):
            if child.zygote == pid and self.watcher.has_timer(child.number):
                self._on_exit(child)

    def _reported(self, number: int, status: int) -> None:
        """A zygote that reaps has the status; what the child said comes first."""
        child = self._children.get(number)
        if child is not None and not child.said_hello:
            self._on_channel(child)  # Race: its hello may be there, and be handled after this
        if child is not None and child.said_hello and number in self._children:
            child.status = status
            self._drain_all(child)
            self._finish(child)
        if self.keeper.zygote is not None:
            self.keeper.zygote.acknowledge(number)

    def _reports(self, child: Child) -> bool:
        """Tell whether the child's zygote lives, and will report it."""
        zygote = self.keeper.zygote
        return (
            self.keeper.boot.reaper == "zygote"
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
        del self._forking[child.number]
        try:
            self.watcher.watch(child.pidfd, partial(self._on_exit, child), ONCE)
        except OSError as error:
            self._lose(child, f"it cannot be watched: {error}")
            return

        if child.launch is not None:
            self._tell(events.SaidHello(child.launch, child.pid))
        elif self._closing and child.channel is not None:
            child.channel.shut_down()
        else:
            self.spares.add(child)
        self._more()

    def _more(self) -> None:
        """Use the place that became free among the forks on their way."""
        self._pump()
        if self.spares.target > len(self.spares):
            self._refill_after(REFILL_DELAY)

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
            self.watcher.unwatch(child.channel.fd)
        if child.said_hello:
            # Only its pidfd tells its exit; if that has come, this is what it waited for.
            if self.watcher.cancel(("end", child.number)):
                self._on_exit(child)
            return
        if child.failure is not None and child.launch is not None:
            self._forget(child)
            self._tell(events.Failed(child.launch, child.failure))
        else:
            self._lose(child, child.failure or "it ended before it said hello")
        self._more()

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
        self.watcher.timer(("end", child.number), at, partial(self._on_exit, child))

    def _expect_status(self, child: Child) -> None:
        """Have it looked at when it is reaped, and give up after a while."""
        self.watcher.change(child.pidfd, AT_REAP)
        if not self.watcher.has_timer(child.number):
            give_up = time.monotonic() + STATUS_TIMEOUT
            self.watcher.timer(child.number, give_up, partial(self._finish, child))

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
        self._forget(child)
        if launch is None:
            self._spare_died()
        elif child.unread:
            self._tell(events.Lost(launch, "it ended with its order unread"))
        else:
            self._tell(events.Ended(launch, status, child.failure))

    def _lose(self, child: Child, why: str) -> None:
        self._forget(child)
        if child.launch is None:
            self._spare_died()
        else:
            self._tell(events.Lost(child.launch, why))

    def _spare_died(self) -> None:
        """Replace it; ones that die again and again, more and more slowly."""
        self._spare_deaths += 1
        delay = REFILL_DELAY if self._spare_deaths < 3 else launch_delay(self._spare_deaths - 2)
        self._refill_after(delay)

    def _forget(self, child: Child) -> None:
        """Give back what it holds here, and the end that the zygote keeps for a command."""
        self._children.pop(child.number, None)
        self._forking.pop(child.number, None)
        self.spares.discard(child)
        self.watcher.cancel(child.number)
        self.watcher.cancel(("end", child.number))
        if child.channel is not None:
            self.watcher.unwatch(child.channel.fd)
        if child.said_hello:
            self.watcher.unwatch(child.pidfd)
        if child.is_command and self.keeper.zygote is not None:
            self.keeper.zygote.drop(child.number)
        child.close()

    # The end.

    def dismiss_spares(self) -> None:
        """Let the spares go, in order: they see the end of their channel."""
        self._closing = True
        self.watcher.cancel("refill")
        for child in self._children.values():
            if child.launch is None and child.channel is not None:
                child.channel.shut_down()

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host, and touch nothing that is shared."""
        self.keeper.close_copies()
        self.watcher.epoll.close()
        for child in self._children.values():
            child.close()

    def close(self) -> None:
        """Drop everything at once; the kernel ends what is alive."""
        self._closing = True
        for child in list(self._children.values()):
            self._forget(child)
        self._queue.clear()
        self.keeper.close()
        self.watcher.close()


def _flags(kind: str, launch: Launch | None) -> int:
    if launch is None:
        return wire.SPARE | wire.KINDS.index(kind) << wire.KIND_SHIFT
    return wire.KEEP if launch.order.command else 0
