"""Effects: carries out what the rules decided, in one place, and decides nothing.

Nothing here waits.  A launch is only begun; what becomes of it comes back as an event.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never
from weakref import ref

from .._ipc import launch as protocol
from .._policy import actions, happenings
from .._policy.actions import Action
from .._policy.happenings import Happening
from .._process.events import Launch, Order
from .._process.seam import LauncherSeam
from ..errors import WorkerFailed
from ..settings import Settings
from ..spec import Flags
from ..status import ExitKind, ExitStatus
from .cgroups import Cgroups
from .outside import Outside
from .registry import RegisteredWorker, Registry
from .stacks import Stacks

if TYPE_CHECKING:
    from .signs import Signs

SHMEM_ACCESS = int(Flags.SHMEM_ACCESS)
DATABASE_CONNECTION = int(Flags.DATABASE_CONNECTION)

UNHEARD = (signal.SIGCONT, signal.SIGABRT)
"""What no Python code hears: nothing has to be poked for them, and a poke would end a wait in C."""

POKE_AFTER = 0.1
POKES = 3

log = logging.getLogger("aiobgw")


class Effects:
    """Acts on processes, the registry and the board."""

    def __init__(
        self,
        settings: Settings,
        epoch: int,
        registry: Registry,
        launcher: LauncherSeam,
        outside: Outside,
        cgroups: Cgroups,
        *,
        begin_cycle: Callable[[RegisteredWorker], None],
        restart_group: Callable[[RegisteredWorker], None],
        stop_group: Callable[[RegisteredWorker, str], None],
        fail: Callable[[str, WorkerFailed | None], None],
        signs: Signs,
    ) -> None:
        self._name = settings.name
        self._connector = settings.connector
        self._epoch = epoch
        self._registry = registry
        self._launcher = launcher
        self._outside = outside
        self._cgroups = cgroups
        self._begin_cycle = begin_cycle
        self._restart_group = restart_group
        self._stop_group = stop_group
        self._fail = fail
        self._signs = signs
        # Ownership: nobody's, or what has ended would be kept, its latches too.
        self._pokes: deque[tuple[float, ref[Launch], int]] = deque()

    def perform(self, worker: RegisteredWorker, action: Action) -> Happening | None:
        """Carry out one action; return what it led to at once, if anything."""
        match action:
            case actions.Launch():
                self._launch(worker)
            case actions.Withdraw():
                if worker.launch is not None and self._launcher.withdraw(worker.launch):
                    worker.launch = None
                    return happenings.Withdrawn()
            case actions.Drop():
                if worker.launch is not None:
                    self._launcher.drop(worker.launch)
                    worker.launch = None
                    self.leave_cgroup(worker)
            case actions.Signal(signum, group):
                self._signal(worker, signum, group)
            case actions.Dump():
                self._dump(worker)
            case actions.BeginCycle():
                self._begin_cycle(worker)
            case actions.RestartGroup():
                self._restart_group(worker)
            case actions.StopGroup(why):
                self._stop_group(worker, why)
            case actions.FailSupervisor(why):
                self._fail(f"worker {worker.spec.name!r}: {why}", _failure_of(worker))
            case actions.RecordUnknown(why):
                self._record_unknown(worker, why)
            case actions.GiveUp():
                log.error("worker %s: SIGKILL does not end pid %s", worker.spec.name, worker.pid)
            case actions.Retire():
                self.leave_cgroup(worker)
                self._registry.release(worker)
            case unknown:
                assert_never(unknown)
        return None

    def _launch(self, worker: RegisteredWorker) -> None:
        worker.farewell = None
        worker.says = ""
        worker.close_client_end()
        worker.close_stacks()
        if worker.life.rule.dumps:
            worker.stacks = Stacks()
        if worker.fields["flags"] & SHMEM_ACCESS and worker.spec.command is None:
            worker.client_end = self._outside.channel_for(worker.spec.name)
        worker.launch = self._launcher.launch(self._order(worker), worker)

    def leave_cgroup(self, worker: RegisteredWorker) -> None:
        """End what its last process has left in its cgroup, and let go of it."""
        self._cgroups.leave(worker)

    def _order(self, worker: RegisteredWorker) -> Order:
        flags = worker.fields["flags"]
        client = () if worker.client_end is None else (worker.client_end.fd,)
        stacks = () if worker.stacks is None else (worker.stacks.fd,)
        cgroup = self._cgroups.make(worker)
        entrance = () if worker.cgroup is None else (worker.cgroup.entrance,)
        data = protocol.pack_order(
            {
                "supervisor": self._name,
                "epoch": self._epoch,
                "slot": worker.slot,
                "generation": worker.generation,
                "incarnation": worker.life.incarnation,
                "spec": worker.fields,
                "payload": worker.payload,
                "client": bool(client),
                "stacks": bool(stacks),
                "latches": list(worker.spec.latches),
                "connector": self._connector if flags & DATABASE_CONNECTION else None,
                "cgroup": cgroup,
                "environ": self._signs.environ(worker),
            }
        )
        # Order of descriptors, which the worker takes in turn: arguments, channel, stacks,
        # cgroup, notification, latches.
        in_memfd = 1 if worker.payload is None else 0
        pipe = self._signs.open_pipe(worker)
        brought = (*client, *stacks, *entrance, *pipe)
        fds = (*worker.fds[:in_memfd], *brought, *worker.fds[in_memfd:])
        kind = worker.spec.loop if worker.is_async else "plain"
        return Order(data, fds, worker.spec.command is not None, kind, worker.cgroup)

    def probe_order(self, worker: RegisteredWorker) -> Order:
        """Return the order for the program that looks whether a worker is ready."""
        name = f"{worker.spec.name}: probe"
        data = protocol.pack_order(
            {
                "supervisor": self._name,
                "epoch": self._epoch,
                "slot": worker.slot,
                "generation": worker.generation,
                "incarnation": worker.life.incarnation,
                "spec": dict(worker.fields, name=name, command=True, target=None),
                "payload": os.fsencode("\0".join(worker.spec.probe or ())),
                "client": False,
                "stacks": False,
                "latches": [],
                "connector": None,
                "cgroup": None,
                "environ": {},
            }
        )
        return Order(data, command=True)

    def _signal(self, worker: RegisteredWorker, signum: int, group: bool) -> None:
        if worker.launch is None:
            return
        try:
            if group:
                worker.launch.kill_group()
            else:
                worker.launch.signal(signum)
                if worker.spec.command is None and signum not in UNHEARD:
                    self._poke_later(worker.launch, POKES)
        except OSError as error:
            log.error("worker %s: signal %d: %s", worker.spec.name, signum, error)

    def _dump(self, worker: RegisteredWorker) -> None:
        """Have it write its stacks twice; SIGCONT, which the rules send next, sets it going.

        Race: a signal ends some waits, and an end of the wait may end the worker.  So it is
        stopped until both are there: both show the same, and neither is missing.
        """
        if worker.launch is not None:
            for signum in (signal.SIGSTOP, *protocol.DUMP_SIGNALS):
                worker.launch.signal(signum)

    def _poke_later(self, launch: Launch, times: int) -> None:
        """Have a wait of its main thread ended, if it still runs in a moment.

        Race: a signal may come when that thread has let go of Python's lock, and has not
        begun to wait; or another thread gets it.  Then it ends no wait, and Python's handler
        runs only after it.
        """
        at = time.monotonic() + POKE_AFTER
        self._pokes.append((at, ref(launch), times))
        if not self._launcher.watcher.has_timer("poke"):
            self._launcher.watcher.timer("poke", at, self._poke)

    def _poke(self) -> None:
        now = time.monotonic()
        while self._pokes and self._pokes[0][0] <= now:
            _, found, times = self._pokes.popleft()
            launch = found()
            if launch is not None and launch.signal(signal.SIGURG) and times > 1:
                self._poke_later(launch, times - 1)
        if self._pokes:
            self._launcher.watcher.timer("poke", self._pokes[0][0], self._poke)

    def _record_unknown(self, worker: RegisteredWorker, why: str) -> None:
        worker.exits.append(
            ExitStatus(
                incarnation=worker.life.incarnation,
                kind=ExitKind.UNKNOWN,
                reason=why if worker.pid is None else f"{why} (pid {worker.pid})",
                name=worker.spec.name,
            )
        )


def _failure_of(worker: RegisteredWorker) -> WorkerFailed | None:
    """Return how it failed last, with its traceback; None if it did not."""
    exit = worker.exit
    return None if exit is None or exit.ok else WorkerFailed(worker.spec.name, exit)
