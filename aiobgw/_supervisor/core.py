"""The core: what a supervisor is made of, its stages, and everything it owns.

Kept apart from the public ``Supervisor``, which holds the only strong reference that users
have: when that goes away, its finaliser can still reach the core, and abandon it.
"""

from __future__ import annotations

import asyncio
import enum
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .._client.changes import Changes
from .._ipc import forks
from .._ipc.verbs import Verb
from .._policy import happenings
from .._policy.phases import stricter
from .._process import events as process
from .._process import probe
from .._process.launcher import Launcher
from .._process.seam import LauncherSeam
from ..errors import (
    ShuttingDown,
    SupervisorDied,
    SupervisorFailed,
    WrongProcess,
)
from ..settings import Settings
from ..spec import Flags, Phase, ShutdownMode
from ..status import (
    Closed,
    PhaseChanged,
    Stopping,
    SupervisorStatus,
    WorkerStatus,
    ZygoteRestarted,
)
from .booting import boot_of
from .cgroups import Cgroups
from .closing import Closing
from .cycle import Cycle
from .effects import Effects
from .groups import Groups
from .loop import Loop
from .news import News
from .outside import Outside
from .registry import RegisteredWorker, Registry
from .signs import Signs

DATABASE_CONNECTION = int(Flags.DATABASE_CONNECTION)


class Stage(enum.Enum):
    """How far a supervisor is."""

    NEW = "not started"
    STARTING = "starting"
    OPEN = "running"
    STOPPING = "stopping"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class Core:
    """Everything of one supervisor.  Owns every descriptor of it, directly or through a part."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.epoch = secrets.randbits(63)
        self.stage = Stage.NEW
        self.registry = Registry(
            settings.max_workers, settings.max_parallel_workers, settings.groups
        )
        self.news = News()
        self.changes = Changes()
        self.failure: SupervisorFailed | None = None
        self.phase = settings.start_phase
        self.reaper = settings.reaper
        self.launcher: LauncherSeam | None = None
        self.outside = Outside(self)
        self.loop: Loop | None = None
        self.effects: Effects | None = None
        self.signs = Signs(self.registry)
        self.closing: Closing | None = None
        self.groups = Groups(self.registry)
        self.cgroups = Cgroups(settings, self.epoch)
        self.cycle = Cycle(settings, self.registry, self.news, fail=self.fail)
        self.zygote_event: asyncio.Future[process.ZygoteUp] | None = None
        self._thread = 0
        self._foreign = False
        self._old_nofile: int | None = None
        forks.close_in_forks(self)

    # Checks.

    def check(self) -> None:
        """Raise unless the caller may use this supervisor from where it is."""
        if self._foreign:
            raise WrongProcess(f"supervisor {self.settings.name!r}")
        if self._thread and threading.get_ident() != self._thread:
            raise RuntimeError(
                f"supervisor {self.settings.name!r} was used from another thread than its event"
                " loop's; use loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe"
            )

    def check_open(self) -> Loop:
        """Return the loop; raise unless workers can be registered."""
        self.check()
        if self.stage in (Stage.NEW, Stage.STARTING):
            raise RuntimeError("the supervisor has not been started: use 'async with'")
        if self.stage is not Stage.OPEN or self.loop is None:
            raise ShuttingDown(f"supervisor {self.settings.name!r} is {self.stage.value}")
        return self.loop

    def check_alive(self) -> None:
        """Raise if what is known of workers may be stale for ever."""
        if self._foreign:
            raise WrongProcess(f"supervisor {self.settings.name!r}")
        if self.stage is Stage.ABANDONED:
            raise SupervisorDied(f"supervisor {self.settings.name!r} was abandoned")

    # Requests.

    def ask(self, worker: RegisteredWorker, verb: Verb, argument: int) -> None:
        """Pass on what somebody asks of a worker."""
        if worker.is_over or self.loop is None:
            return
        if verb is Verb.WAKE:
            if worker.spec.command is None:
                self.loop.post(worker, happenings.SignalAsked(signal.SIGUSR1))
        else:
            self.loop.post(worker, _HAPPENINGS[verb](argument))

    def consider(self, worker: RegisteredWorker) -> None:
        """Start it if its gate is open; either way its life changes, and is published."""
        if self.loop is not None:
            self.loop.post(worker, happenings.Consider())

    # Parts.

    def open_parts(self, reaper: str) -> None:
        """Make everything that needs descriptors; ``abandon`` undoes whatever came to be."""
        settings = self.settings
        self._thread = threading.get_ident()
        self._old_nofile = probe.make_room(
            settings.max_workers,
            settings.spares,
            (0 if settings.runtime_dir is None else settings.max_clients)
            + self.cgroups.descriptors_for(settings.max_workers),
        )
        self.outside.open()
        self.cgroups.open()
        self.open_launcher(reaper)

    def open_launcher(self, reaper: str) -> None:
        settings = self.settings
        self.reaper = reaper
        if settings.launcher is not None:
            self.launcher = settings.launcher.make()
        else:
            where = self.outside.lock, self.cgroups.path
            boot = boot_of(settings, reaper, self._old_nofile, *where)
            self.launcher = Launcher(boot, spares=settings.spares)
        self.outside.connect(self.launcher.watcher)
        self.cgroups.connect(self.launcher.watcher)
        self.effects = Effects(
            settings,
            self.epoch,
            self.registry,
            self.launcher,
            self.outside,
            self.cgroups,
            begin_cycle=self.cycle.begin,
            restart_group=self.groups.restart,
            stop_group=self.groups.stop,
            fail=self.fail,
            signs=self.signs,
        )
        self.loop = Loop(
            self.registry,
            self.launcher,
            self.effects,
            self.news,
            clock=settings.clock,
            on_zygote=self._on_zygote,
            signs=self.signs,
            hear=self.outside.hear,
            publish=self.outside.publish,
            ask_others=self.groups.situation,
            tell_others=self.groups.changed,
            after_turn=self._after_turn,
        )
        self.signs.attach(self.loop, self.launcher, self.effects.probe_order)
        self.groups.attach(self.loop)
        self.cycle.attach(self.loop, self.outside.publish_head)
        self.zygote_event = asyncio.get_running_loop().create_future()
        self.launcher.start(self.loop.turn)
        self.loop.turn()  # it may have failed already

    def close_launcher(self) -> None:
        if self.loop is not None:
            self.loop.close()
        self.signs.close()
        self.outside.disconnect()
        if self.launcher is not None:
            self.launcher.close()
        self.loop = self.launcher = self.effects = None

    def _on_zygote(self, event: process.ZygoteUp | process.ZygoteFailed) -> None:
        waiting = self.zygote_event
        if waiting is not None and not waiting.done():
            if isinstance(event, process.ZygoteFailed):
                waiting.set_exception(event.error)
            else:
                waiting.set_result(event)
        elif isinstance(event, process.ZygoteFailed):
            self.fail(f"no zygote can be started: {event.error}")
        elif event.again:
            self.news.publish(ZygoteRestarted(time.time(), event.pid))

    def advance(self, phase: Phase) -> None:
        """Open (or close) gates; nobody is stopped by it."""
        self.phase = phase
        if self.loop is not None:
            self.loop.situation = replace(self.loop.situation, phase=phase)
            self.news.publish(PhaseChanged(time.time(), phase))
            self.loop.post_all(happenings.Consider())

    # The end.

    def stop(self, mode: ShutdownMode) -> None:
        """Begin a stop, or make it stricter; what it leads to comes by itself."""
        if self.loop is None or self.stage not in (Stage.OPEN, Stage.STOPPING):
            return
        now = self.loop.situation.stop
        holds = stricter(now, mode)
        if holds is now:
            return
        self.stage = Stage.STOPPING
        self.loop.let_time_go_on()
        self.loop.situation = replace(self.loop.situation, stop=holds)
        self.cycle.cancel()
        self.news.publish(Stopping(time.time(), holds))
        self.loop.post_all(happenings.StopBegan())

    def fail(self, why: str, cause: BaseException | None = None) -> None:
        """Give up: end all workers, and have everybody who waits for the end know why."""
        if self.failure is None and self.stage in (Stage.OPEN, Stage.STOPPING):
            self.failure = SupervisorFailed(f"supervisor {self.settings.name!r}: {why}")
            self.failure.__cause__ = cause
            self.changes.tell()
            self.stop(ShutdownMode.FAST)

    def _after_turn(self) -> None:
        self.outside.flush()
        self.cycle.step()
        if self.stage is not Stage.STOPPING or self.launcher is None:
            return
        if self.closing is None:
            self.closing = Closing(self.launcher)
        if self.closing.step(workers=len(self.registry) + self.cgroups.pending):
            self._finish()

    def _finish(self) -> None:
        """Everybody is gone: give back what is left, then tell."""
        self.stage = Stage.CLOSED
        self.news.publish(Closed(time.time()))
        self.outside.hang_up(in_order=True)
        self.close_launcher()
        self.cgroups.close()
        self.outside.close()
        self.changes.tell()

    def abandon(self) -> None:
        """Drop everything at once; the kernel ends every worker.  Plain, and idempotent.

        For a start that failed, finalisers, the end of the interpreter, and loops that are
        closed.  Waits for the zygote, a second at most.
        """
        if self._foreign or self.stage in (Stage.CLOSED, Stage.ABANDONED):
            return
        self.stage = Stage.ABANDONED
        self.cycle.cancel()
        self.outside.hang_up(in_order=False)
        self.close_launcher()
        self.cgroups.close()
        self.outside.close()
        for worker in self.registry.all():
            worker.release()
            worker.changes.tell()
        self.news.publish(Closed(time.time()))
        self.changes.tell()

    def forked(self) -> None:
        """Close every copy in a fork of the host: they would hide our death from the kernel."""
        self._foreign = True
        if self.launcher is not None:
            self.launcher.close_copies()
        self.signs.close_copies()
        self.outside.close_copies()
        self.cgroups.close_copies()
        for worker in self.registry.all():
            worker.release()

    def status(self, *, workers: tuple[WorkerStatus, ...] | None = None) -> SupervisorStatus:
        """Return how the supervisor is now, and its workers, unless they are given."""
        launcher = self.launcher
        if workers is None:
            workers = tuple(worker.status() for worker in self.registry.all())
        return SupervisorStatus(
            name=self.settings.name,
            pid=os.getpid(),
            epoch=self.epoch,
            phase=self.phase,
            stopping=self.loop.situation.stop if self.loop is not None else None,
            max_workers=self.settings.max_workers,
            parallel_workers=self.registry.parallel,
            max_parallel_workers=self.settings.max_parallel_workers,
            spares=launcher.spare_count if launcher is not None else 0,
            zygote_pid=launcher.zygote_pid if launcher is not None else None,
            reaper=self.reaper,
            cycle=self.cycle.number,
            workers=workers,
        )

    def __repr__(self) -> str:
        return f"<Core {self.settings.name!r} {self.stage.value}>"


_HAPPENINGS: dict[Verb, Callable[[int], happenings.Happening]] = {
    Verb.TERMINATE: lambda _: happenings.TerminateAsked(),
    Verb.KILL: lambda _: happenings.KillAsked(),
    Verb.RESTART: lambda _: happenings.RestartAsked(),
    Verb.SIGNAL: lambda signum: happenings.SignalAsked(signum),
}
