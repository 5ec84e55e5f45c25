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
from collections.abc import Callable, Iterator

from .._ipc.channel import Channel
from .._policy.backoff import launch_delay
from . import events, wire
from .child import Child
from .children import Children
from .events import Launch, Order, ProcessEvent
from .keeper import Keeper
from .spares import Spares
from .watcher import Watcher
from .zygote import Boot

FORKS_AT_ONCE = 8
REFILL_DELAY = 0.005
"""Long enough for a short worker to start and to end: a fork in between would take a processor
from both (2 ms, and a round trip was a quarter slower).
"""

RETRY_DELAY = 0.1
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
            on_report=lambda number, status: self._children.reported(number, status),
            on_death=lambda pid: self._children.zygote_died(pid),
            on_failure=lambda error: self._tell(events.ZygoteFailed(error)),
        )
        self.spares = Spares(spares)
        self._children = Children(
            self.watcher,
            self.keeper,
            tell=self._tell,
            on_hello=self._on_hello,
            on_forgotten=self._on_forgotten,
            on_spare_death=self._on_spare_death,
        )
        self._forking: dict[int, Child] = {}
        self._queue: deque[Launch] = deque()
        self._events: list[ProcessEvent] = []
        self._numbers = 0
        self._zygotes = 0
        self._spare_deaths = 0
        self._logged_at = -LOG_INTERVAL
        self._closing = False

    # What the supervisor asks for.

    def start(self, turn: Callable[[], None]) -> None:
        """Start the zygote; all it does is told by descriptors."""
        self.keeper.start()

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
        """Take a launch back that nobody has heard of; nothing of it runs afterwards."""
        if not self.withdraw(launch) and launch.child is not None:
            self._children.drop(launch.child)

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
        return not len(self._children)

    @property
    def spare_count(self) -> int:
        return len(self.spares)

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's pid, from its fork to its end."""
        return self.keeper.zygote.pid if self.keeper.zygote is not None else None

    def used(self, kind: str) -> None:
        """Take note of a kind of target that was started: spares of it will be wanted."""
        self.spares.used(kind)

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
            self._children.listen(child)
            zygote.fork(child.number, _flags(kind, launch), theirs)
        except OSError as error:
            self._undo(child, launch)
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return None  # the zygote is gone; its pidfd is on its way to us
            raise
        finally:
            theirs.close()
        self._children.add(child)
        self._forking[child.number] = child
        return child

    def _undo(self, child: Child, launch: Launch | None) -> None:
        if launch is not None:
            launch.child = None
        self._children.forget(child)

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

    # What becomes of children.

    def _zygote_ready(self, pid: int) -> None:
        self._zygotes += 1
        self._tell(events.ZygoteUp(pid, self._zygotes > 1))
        self._pump()
        self._refill_after(0.0)

    def _on_hello(self, child: Child) -> None:
        """A fork came up: use the place that became free among those on their way."""
        del self._forking[child.number]
        if child.launch is not None:
            self._tell(events.SaidHello(child.launch, child.pid))
        elif self._closing and child.channel is not None:
            child.channel.shut_down()
        else:
            self.spares.add(child)
        self._more()

    def _on_forgotten(self, child: Child) -> None:
        self.spares.discard(child)
        if self._forking.pop(child.number, None) is not None:
            self._more()

    def _more(self) -> None:
        self._pump()
        if self.spares.target > len(self.spares):
            self._refill_after(REFILL_DELAY)

    def _on_spare_death(self) -> None:
        """Replace it; ones that die again and again, more and more slowly."""
        self._spare_deaths += 1
        delay = REFILL_DELAY if self._spare_deaths < 3 else launch_delay(self._spare_deaths - 2)
        self._refill_after(delay)

    # The end.

    def dismiss_spares(self) -> None:
        """Let the spares go, in order: they see the end of their channel."""
        self._closing = True
        self.watcher.cancel("refill")
        for child in self._children:
            if child.launch is None and child.channel is not None:
                child.channel.shut_down()

    def dismiss_zygote(self) -> None:
        """Let the zygote go, in order."""
        self.keeper.dismiss()

    def descriptors(self) -> Iterator[int]:
        """Return every descriptor that it holds; -1 for what it does not have."""
        yield self.watcher.epoll.fileno()
        yield from self.keeper.descriptors()
        for child in self._children:
            yield child.pidfd
            if child.channel is not None:
                yield child.channel.fd

    def close_copies(self) -> None:
        """Close every descriptor in a fork of the host, and touch nothing that is shared."""
        self.keeper.close_copies()
        self.watcher.epoll.close()
        for child in self._children:
            child.close()

    def close(self) -> None:
        """Drop everything at once; the kernel ends what is alive."""
        self._closing = True
        for child in list(self._children):
            self._children.forget(child)
        self._queue.clear()
        self.keeper.close()
        self.watcher.close()


def _flags(kind: str, launch: Launch | None) -> int:
    if launch is None:
        return wire.SPARE | wire.KINDS.index(kind) << wire.KIND_SHIFT
    return wire.KEEP if launch.order.command else 0
