"""The registry: who holds which slot.  The truth; the board is a copy of it.

Invariants: a slot has one tenant or is in the heap of free ones; generations number all the
tenancies of a supervisor in order (PostgreSQL counts per slot), so that whoever sees two
handles knows which worker was registered first; the parallel count is the number of tenants
of that class.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from .._client.changes import Changes
from .._ipc.channel import Channel
from .._policy.life import Life, Rule
from .._process.cgroup import Cgroup
from .._process.events import Launch
from ..errors import AlreadyRegistered, NoFreeSlot, TooManyParallelWorkers
from ..spec import CrashScope, Flags, Readiness, Strategy, WorkerSpec
from ..status import ExitStatus, WorkerState, WorkerStatus
from .stacks import Stacks

START_TIMEOUT = 90.0
"""Seconds for those who need to become ready and say nothing else (systemd's default)."""

EXITS_KEPT = 16
LAST_KEPT = 256
PARALLEL = int(Flags.CLASS_PARALLEL)  # as plain numbers: an IntFlag's & costs 3 us


class RegisteredWorker:
    """A worker's private record.  Owns the descriptors that its spec brought."""

    __slots__ = (
        "cgroup",
        "changes",
        "client_end",
        "exits",
        "farewell",
        "fds",
        "fields",
        "generation",
        "is_async",
        "launch",
        "life",
        "next_start_at",
        "payload",
        "pid",
        "says",
        "slot",
        "spec",
        "stacks",
        "started_at",
    )

    def __init__(
        self,
        spec: WorkerSpec,
        slot: int,
        generation: int,
        fields: dict[str, Any],
        payload: bytes | None,
        fds: tuple[int, ...],
        rule: Rule,
    ) -> None:
        self.spec = spec
        self.slot = slot
        self.generation = generation
        self.fields = fields
        self.payload = payload
        self.fds = fds
        self.life = Life(rule)
        self.launch: Launch | None = None
        self.pid: int | None = None
        self.is_async = False
        self.says = ""
        self.started_at: float | None = None
        self.next_start_at: float | None = None
        self.farewell: tuple[int, str] | None = None
        self.exits: deque[ExitStatus] = deque(maxlen=EXITS_KEPT)
        self.changes = Changes()
        self.client_end: Channel | None = None
        self.cgroup: Cgroup | None = None
        self.stacks: Stacks | None = None

    @property
    def exit(self) -> ExitStatus | None:
        """How the last incarnation ended."""
        return self.exits[-1] if self.exits else None

    @property
    def ready(self) -> bool:
        """Whether it runs and is ready; who says so ahead of its start is so from then on."""
        runs = self.pid is not None and self.life.state is not WorkerState.STARTING
        return runs and self.life.ready

    @property
    def is_over(self) -> bool:
        return self.life.state is WorkerState.STOPPED

    @property
    def is_parallel(self) -> bool:
        return bool(int(self.spec.flags) & PARALLEL)

    def status(self) -> WorkerStatus:
        life = self.life
        return WorkerStatus(
            name=self.spec.name,
            type=self.spec.type,
            state=life.state,
            slot=self.slot,
            generation=self.generation,
            incarnation=life.incarnation,
            restarts=life.restarts,
            pid=self.pid,
            ready=self.ready,
            started_at=self.started_at,
            next_start_at=self.next_start_at,
            exit=self.exit,
            reason=life.reason,
            says=self.says,
        )

    def plan_next_start(self, now: float) -> None:
        """Translate the deadline of a waiting worker into a moment for people."""
        life = self.life
        waits = life.state in (WorkerState.BACKOFF, WorkerState.NOT_STARTED)
        if waits and life.deadline is not None:
            self.next_start_at = time.time() + life.deadline - now
        else:
            self.next_start_at = None

    def close_client_end(self) -> None:
        """Close our copy of what a launch has taken: then the other end hears of its end."""
        if self.client_end is not None:
            self.client_end.close()
            self.client_end = None

    def close_stacks(self) -> None:
        """Let go of what an incarnation has written of its stacks."""
        if self.stacks is not None:
            self.stacks.close()
            self.stacks = None

    def release(self) -> None:
        """Give back the descriptors of its spec, and the bytes of its arguments."""
        self.close_client_end()
        self.close_stacks()
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        self.payload = None


def rule_of(spec: WorkerSpec, groups: Mapping[str, Strategy]) -> Rule:
    """Return what of a spec the rules depend on."""
    needs_ready = spec.ready is not Readiness.NONE
    start_timeout = spec.start_timeout
    if start_timeout is None and needs_ready:
        start_timeout = START_TIMEOUT
    group = spec.group
    return Rule(
        restart=spec.restart,
        restart_delay=spec.restart_delay,
        restart_backoff=spec.restart_backoff,
        restart_delay_max=spec.restart_delay_max,
        restart_jitter=spec.restart_jitter,
        restart_reset=spec.restart_reset,
        max_restarts=spec.max_restarts,
        max_seconds=spec.max_seconds,
        escalate=spec.escalate,
        essential=spec.essential,
        needs_ready=needs_ready,
        start_timeout=start_timeout,
        watchdog=spec.watchdog,
        dumps=spec.watchdog is not None and spec.command is None,
        stop_signal=spec.stop_signal,
        stop_timeout=spec.stop_timeout,
        max_age=spec.max_age,
        max_age_jitter=spec.max_age_jitter,
        start_when=spec.start_when,
        group=group,
        strategy=groups.get(group, Strategy.ONE_FOR_ONE) if group else Strategy.ONE_FOR_ONE,
        member=spec.crash_scope is CrashScope.ALL,
    )


class Registry:
    """Slots, names and pids."""

    def __init__(
        self, max_workers: int, max_parallel: int, groups: Mapping[str, Strategy] | None = None
    ) -> None:
        self._groups = groups or {}
        self.max_workers = max_workers
        self.max_parallel = max_parallel
        self.parallel = 0
        self._free = list(range(max_workers))
        self._registered = 0
        self.used = 0
        self._workers: dict[int, RegisteredWorker] = {}
        self._names: dict[str, list[RegisteredWorker]] = {}
        self._pids: dict[int, RegisteredWorker] = {}
        self._old_pids: deque[int] = deque(maxlen=LAST_KEPT)
        self._last: dict[tuple[int, int], WorkerStatus] = {}
        self._ended: dict[str, WorkerStatus] = {}

    def check(self, spec: WorkerSpec) -> None:
        """Raise what would refuse *spec* now; uses nothing up."""
        if spec.unique and spec.name in self._names:
            raise AlreadyRegistered(
                f"a worker {spec.name!r} is registered, and this one shall be unique",
                hint="get() returns the handle of the living one",
            )
        if int(spec.flags) & PARALLEL and self.parallel >= self.max_parallel:
            raise TooManyParallelWorkers(self.max_parallel)
        if not self._free:
            raise NoFreeSlot(self.max_workers)

    def admit(
        self,
        spec: WorkerSpec,
        fields: dict[str, Any],
        payload: bytes | None,
        fds: tuple[int, ...],
    ) -> RegisteredWorker:
        """Give *spec* a slot; owns the descriptors from now on.  Never refuses: check first."""
        slot = heapq.heappop(self._free)
        self._registered += 1
        self.used = max(self.used, slot + 1)
        rule = rule_of(spec, self._groups)
        worker = RegisteredWorker(spec, slot, self._registered, fields, payload, fds, rule)
        self._workers[slot] = worker
        self._names.setdefault(spec.name, []).append(worker)
        self.parallel += worker.is_parallel
        return worker

    def release(self, worker: RegisteredWorker) -> None:
        """Free a slot, and return its quota first: who sees the slot sees the quota, too."""
        self.parallel -= worker.is_parallel
        del self._workers[worker.slot]
        same_name = self._names[worker.spec.name]
        same_name.remove(worker)
        if not same_name:
            del self._names[worker.spec.name]
        self.set_pid(worker, None)
        worker.release()
        heapq.heappush(self._free, worker.slot)
        self._remember(worker)

    def _remember(self, worker: RegisteredWorker) -> None:
        """Keep the last status for clients that ask late, and of each name for those that
        depend on it; LAST_KEPT of them."""
        status = worker.status()
        self._last[worker.slot, worker.generation] = status
        if len(self._last) > LAST_KEPT:
            del self._last[next(iter(self._last))]
        same_name = self._ended.pop(status.name, status)
        newer = status if status.generation >= same_name.generation else same_name
        self._ended[status.name] = newer
        if len(self._ended) > LAST_KEPT:
            del self._ended[next(iter(self._ended))]

    def last_words(self, slot: int, generation: int) -> WorkerStatus:
        """Return the last status of a worker that is over, or what can still be said of it."""
        return self._last.get((slot, generation)) or WorkerStatus(
            name="",
            type="",
            state=WorkerState.STOPPED,
            slot=slot,
            generation=generation,
            reason="over; how it ended is forgotten",
        )

    def ended(self, name: str) -> WorkerStatus | None:
        """Return the last status of the newest worker of that name that is over."""
        return self._ended.get(name)

    def set_pid(self, worker: RegisteredWorker, pid: int | None) -> None:
        if worker.pid is not None and self._pids.get(worker.pid) is worker:
            del self._pids[worker.pid]
            self._old_pids.append(worker.pid)
        worker.pid = pid
        if pid is not None:
            self._pids[pid] = worker

    def was_worker(self, pid: int) -> bool:
        """Tell whether a worker that ended not long ago had this pid."""
        return pid in self._old_pids

    def at(self, slot: int) -> RegisteredWorker | None:
        return self._workers.get(slot)

    def newest(self, name: str) -> RegisteredWorker | None:
        """Return the last one that was registered under *name* and holds a slot."""
        same_name = self._names.get(name)
        return same_name[-1] if same_name else None

    def named(self, name: str) -> list[RegisteredWorker]:
        """Return all of that name, the first registered first."""
        return list(self._names.get(name, ()))

    def by_pid(self, pid: int) -> RegisteredWorker | None:
        return self._pids.get(pid)

    def all(self) -> list[RegisteredWorker]:
        """Return the tenants, the first registered first."""
        return list(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)
