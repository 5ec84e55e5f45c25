"""A launcher without processes: a test says what becomes of each of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from .._ipc import launch as protocol
from .._process import events
from .._process.events import Launch, Order, ProcessEvent
from .._process.watcher import Watcher

NOBODY = 4_194_304
"""The kernel gives no pid above it (PID_MAX_LIMIT): a fake one is never somebody's."""

_FATAL_TO_COMMANDS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@final
class FakeLauncher:
    """Launch nothing, and say so as if: ``Supervisor(launcher=FakeLauncher())``.

    The supervisor, its rules, handles, events and clients are the real ones.  Processes come
    up at once unless *start* is False, and end on SIGTERM as Python targets do unless *obey*
    is False; everything else is up to the test, and done before the call returns.  No target is
    imported, no argument unpickled.  One launcher serves one supervisor.

    With a ManualClock, years of restarts take milliseconds:

        launcher, clock = FakeLauncher(), ManualClock()
        async with Supervisor(launcher=launcher, clock=clock) as supervisor:
            handle = await supervisor.register(spec)
            launcher["resize"].fail("no such picture")
            clock.advance_to_next()  # restart_delay, and its jitter
            assert launcher["resize"].incarnation == 2
    """

    def __init__(self, *, start: bool = True, obey: bool = True) -> None:
        self.processes: list[FakeProcess] = []
        self._start = start
        self._obey = obey
        self._is_taken = False
        self._refusals: list[str] = []
        self._events: list[ProcessEvent] = []
        self._turn: Callable[[], None] | None = None
        self._watcher: Watcher | None = None

    # For tests.

    def __getitem__(self, name: str) -> FakeProcess:
        """Return the newest process of the workers of that name; raises KeyError."""
        for process in reversed(self.processes):
            if process.name == name:
                return process
        raise KeyError(name)

    @property
    def running(self) -> list[FakeProcess]:
        """The processes that are not over, the first launched first."""
        return [process for process in self.processes if not process.is_over]

    def refuse(self, why: str, times: int = 1) -> None:
        """Have the next launches fail, as a fork fails for want of memory."""
        self._refusals += [why] * times

    # For the supervisor; see LauncherMaker and LauncherSeam.

    def make(self) -> FakeLauncher:
        if self._is_taken:
            raise RuntimeError("a FakeLauncher serves one supervisor: make a new one")
        self._is_taken = True
        return self

    @property
    def watcher(self) -> Watcher:
        if self._watcher is None:
            self._watcher = Watcher()
        return self._watcher

    def start(self, turn: Callable[[], None]) -> None:
        self._turn = turn

    def launch(self, order: Order, owner: object) -> Launch:
        launch = _FakeLaunch(order, owner)
        if self._refusals:
            self._tell(events.Failed(launch, self._refusals.pop(0)))
            return launch
        launch.process = FakeProcess(launch, self._tell, len(self.processes), obey=self._obey)
        self.processes.append(launch.process)
        if self._start:
            launch.process.start()
        return launch

    def withdraw(self, launch: Launch) -> bool:
        process = _process_of(launch)
        if process is None or process.is_over or process.has_process:
            return False
        process.is_over = True
        return True

    def drop(self, launch: Launch) -> None:
        process = _process_of(launch)
        if process is not None:
            process.is_over = True

    def gather(self) -> list[ProcessEvent]:
        self.watcher.poll()
        self.watcher.run_timers(time.monotonic())
        return self.take()

    def take(self) -> list[ProcessEvent]:
        happened, self._events = self._events, []
        return happened

    @property
    def pending(self) -> bool:
        return bool(self._events)

    def _tell(self, event: ProcessEvent) -> None:
        self._events.append(event)
        if self._turn is not None:
            self._turn()  # does nothing within a turn, which takes it up by itself

    def used(self, kind: str) -> None:
        pass

    spare_count = 0
    zygote_pid = None

    @property
    def childless(self) -> bool:
        return not self.running

    def dismiss_spares(self) -> None:
        pass

    def dismiss_zygote(self) -> None:
        pass

    def descriptors(self) -> Iterator[int]:
        yield self.watcher.epoll.fileno()

    def close_copies(self) -> None:
        if self._watcher is not None:
            self._watcher.epoll.close()

    def close(self) -> None:
        for process in self.running:
            process.is_over = True
        self._turn = lambda: None
        if self._watcher is not None:
            self._watcher.close()


class _FakeLaunch(Launch):
    __slots__ = ("process",)

    process: FakeProcess | None

    def __init__(self, order: Order, owner: object) -> None:
        super().__init__(order, owner)
        self.process = None

    def signal(self, signum: int) -> bool:
        return self.process is not None and self.process.receive(signum)

    def kill_group(self) -> bool:
        return self.signal(signal.SIGKILL)


def _process_of(launch: Launch) -> FakeProcess | None:
    return launch.process if isinstance(launch, _FakeLaunch) else None


@final
class FakeProcess:
    """One incarnation of a worker.

    ``name``, ``spec`` (the fields of its WorkerSpec), ``incarnation`` and ``pid`` say which one
    it is, ``signals`` what it was sent, in order.  Signals in ``ignores`` are only noted;
    SIGKILL cannot be ignored.  What is done to one that is over raises RuntimeError.
    """

    def __init__(
        self, launch: Launch, tell: Callable[[ProcessEvent], None], number: int, *, obey: bool
    ) -> None:
        fields = protocol.unpack_order(launch.order.data)
        self.spec: Mapping[str, Any] = fields["spec"]
        self.name: str = fields["spec"]["name"]
        self.incarnation: int = fields["incarnation"]
        self.pid = NOBODY + 1 + number
        self.signals: list[signal.Signals | int] = []
        self.ignores: set[int] = set() if obey else {signal.SIGTERM}
        self.has_process = False
        self.has_started = False
        self.is_over = False
        self._launch = launch
        self._tell = tell

    # What a test has it do.

    def start(self) -> None:
        """Import the target: its first line is next (a command: exec succeeds)."""
        self._come_up()
        if not self.has_started:
            self.has_started = True
            is_command = self._launch.order.command
            started = events.Said(self._launch, protocol.started(False))
            self._tell(events.Executed(self._launch) if is_command else started)

    def ready(self) -> None:
        """Say that it is ready, as ``current_worker().ready()`` does."""
        self.start()
        self._tell(events.Said(self._launch, protocol.ready()))

    def beat(self) -> None:
        """Give a sign of life, for the watchdog of its spec: a fake one gives none by itself."""
        self._tell(events.Said(self._launch, protocol.beat()))

    def finish(self) -> None:
        """Return from the target: exit 0, with a farewell."""
        self.start()
        self._end(0, farewell=(0, ""))

    def fail(self, error: str = "failed", code: int = 1) -> None:
        """End by an exception in the target, a SystemExit if *code* is not 1.

        *error* is the traceback's text.  Before ``start``: in the import of the target.
        """
        self._end((code & 0xFF) << 8, farewell=(code, error))

    def exit(self, code: int) -> None:
        """End with a code and no farewell, as ``os._exit`` does."""
        self._end((code & 0xFF) << 8)

    def crash(self, signum: int = signal.SIGSEGV) -> None:
        """End by a signal that nobody asked for."""
        self._end(int(signum))

    # What the supervisor does to it.

    def receive(self, signum: int) -> bool:
        """Take a signal; return whether there is a process to take it."""
        if self.is_over or not self.has_process:
            return False
        if signum == signal.SIGURG:
            return True  # ends a wait: nothing here waits
        self.signals.append(_named(signum))
        if signum == signal.SIGKILL or (signum not in self.ignores and self._is_fatal(signum)):
            terminates = signum == signal.SIGTERM and not self._launch.order.command
            self._end(1 << 8, (1, "")) if terminates else self._end(signum)
        return True

    def _is_fatal(self, signum: int) -> bool:
        if signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT):
            return True
        return self._launch.order.command and signum in _FATAL_TO_COMMANDS

    def _come_up(self) -> None:
        if self.is_over:
            raise RuntimeError(f"{self!r} is over")
        if not self.has_process:
            self.has_process = True
            self._tell(events.SaidHello(self._launch, self.pid))

    def _end(self, status: int, farewell: tuple[int, str] | None = None) -> None:
        self._come_up()
        self.is_over = True
        if farewell is not None and not self._launch.order.command:
            self._tell(events.Said(self._launch, protocol.farewell(*farewell)))
        self._tell(events.Ended(self._launch, status, None))

    def __repr__(self) -> str:
        how = "over" if self.is_over else "running" if self.has_started else "launching"
        return f"<FakeProcess {self.name!r} incarnation={self.incarnation} {how}>"


def _named(signum: int) -> signal.Signals | int:
    try:
        return signal.Signals(signum)
    except ValueError:
        return signum  # a real-time signal
