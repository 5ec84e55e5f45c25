"""The loop: gather what happened, decide, act.

One turn never waits and is never re-entered: a request made while one is running is taken
up by it.  See the package's docstring for the order of a turn and why there is no task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING

from .._ipc import launch as protocol
from .._policy import actions, happenings
from .._policy.actions import Action
from .._policy.clock import Clock
from .._policy.deadlines import Deadlines
from .._policy.happenings import Happening
from .._policy.life import Life, Situation
from .._policy.liveness import is_unseen
from .._policy.moves import WAITING
from .._policy.plan import plan
from .._policy.restart import exit_kind, is_abrupt
from .._process import events as process
from .._process.exits import meaning
from .._process.seam import LauncherSeam
from ..spec import Readiness
from ..status import ExitKind, ExitStatus
from .clock import Alarm, GoingOn, SystemClock
from .effects import Effects
from .memory import Memory
from .news import News
from .registry import RegisteredWorker, Registry

if TYPE_CHECKING:
    from .signs import Signs

PUT_OFF = 0.1

log = logging.getLogger("aiobgw")


class Loop:
    """Supervises: every decision about every worker passes through here."""

    def __init__(
        self,
        registry: Registry,
        launcher: LauncherSeam,
        effects: Effects,
        news: News,
        *,
        clock: Clock | None,
        on_zygote: Callable[[process.ZygoteUp | process.ZygoteFailed], None],
        signs: Signs,
        hear: Callable[[], None],
        publish: Callable[[RegisteredWorker], None],
        ask_others: Callable[[RegisteredWorker, Happening, Situation], Situation],
        tell_others: Callable[[RegisteredWorker], None],
        after_turn: Callable[[], None],
    ) -> None:
        self.situation = Situation()
        self._registry = registry
        self._launcher = launcher
        self._effects = effects
        self._news = news
        self._on_zygote = on_zygote
        self._signs = signs
        self._hear = hear
        self._publish = publish
        self._ask_others = ask_others
        self._tell_others = tell_others
        self._after_turn = after_turn
        self._deadlines = Deadlines()
        self._left: list[tuple[RegisteredWorker, Action]] = []
        self._dirty: dict[RegisteredWorker, None] = {}
        self._requests: deque[tuple[RegisteredWorker, Happening]] = deque()
        self._turning = False
        self._host = asyncio.get_running_loop()
        real = SystemClock(self._host)
        self._clock = clock or real
        self._deadline_alarm = Alarm(self._clock, self.turn)
        self._watcher_alarm = Alarm(real, self.turn)
        self._memory = Memory(launcher.watcher, self.post)
        self._open = True
        self._host.add_reader(launcher.watcher.epoll.fileno(), self.turn)

    def post(self, worker: RegisteredWorker, happening: Happening) -> None:
        """Take a request, and answer it within this call unless a turn is running."""
        self._requests.append((worker, happening))
        if not self._turning:
            self._turn(gather=False)

    def at_once(self, worker: RegisteredWorker, happening: Happening) -> None:
        """Take a request ahead of what else there is; within a turn, for another worker."""
        self._guarded(self._decide, worker, happening)

    def post_all(self, happening: Happening) -> None:
        """Take the same request for every worker, in the order of their registration."""
        self._requests.extend((worker, happening) for worker in self._registry.all())
        if not self._turning:
            self._turn(gather=False)

    @property
    def host(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives in."""
        return self._host

    def turn(self) -> None:
        """Handle everything that is there; called by the host's loop."""
        if not self._turning and self._open:
            self._turn(gather=True)

    def _turn(self, *, gather: bool) -> None:
        self._turning = True
        try:
            # Race: what is due now must not come ahead of a beat that is there.
            happened = self._launcher.gather() if gather or self._is_due() else []
            while True:
                happened += self._launcher.take()
                for event in happened:
                    self._guarded(self._on_process_event, event)
                happened = []
                if gather:
                    self._signs.hear()
                    self._hear()
                    gather = False
                self._take_requests()
                if not self._take_deadlines() and not self._launcher.pending:
                    break
            self._flush()
            self._after_turn()
        finally:
            self._turning = False
            self._set_timer()

    def _is_due(self) -> bool:
        first = self._deadlines.first()
        return first is not None and first <= self._clock.now()

    def _take_requests(self) -> None:
        while self._requests:
            worker, happening = self._requests.popleft()
            self._guarded(self._decide, worker, happening)

    def _take_deadlines(self) -> bool:
        """Return whether any deadline has passed."""
        now = self._clock.now()
        taken = 0
        while (slot := self._deadlines.pop_due(now)) is not None:
            taken += 1
            worker = self._registry.at(slot)
            if worker is not None:
                self._guarded(self._decide, worker, happenings.DeadlinePassed())
        return bool(taken)

    def _guarded(self, handle: Callable[..., None], *what: object) -> None:
        """Handle one thing; what goes wrong with it is not the others' business."""
        try:
            handle(*what)
        except Exception:
            log.exception("%r could not be handled", what)

    def _perform(self, worker: RegisteredWorker, action: Action) -> Happening | None:
        """Carry out an action; one that fails for want of something is left for a later turn."""
        try:
            return self._effects.perform(worker, action)
        except (OSError, MemoryError) as error:
            log.warning("worker %s: %s is put off: %s", worker.spec.name, action, error)
            self._left.append((worker, action))
            self._launcher.watcher.timer("left", time.monotonic() + PUT_OFF, self._perform_left)
            return None

    def _perform_left(self) -> None:
        """Carry out what was put off, unless it has become pointless meanwhile.

        Race: a launch may have been taken back (Drop) before it could be made at all.
        """
        left, self._left = self._left, []
        for worker, action in left:
            is_launch = isinstance(action, actions.Launch)
            if not worker.is_over and not (is_launch and worker.life.state in WAITING):
                self._perform(worker, action)

    # Deciding.

    def _decide(self, worker: RegisteredWorker, happening: Happening) -> None:
        """Have the rules decide, perform it, and tell those who want to know."""
        now = self._clock.now()
        before = worker.life
        situation = self._ask_others(worker, happening, self.situation)
        pending: list[Happening] = [happening]
        while pending:
            life, to_do = plan(worker.life, pending.pop(0), situation, now)
            worker.life = life
            for action in to_do:
                led_to = self._perform(worker, action)
                if led_to is not None:
                    pending.append(led_to)
        self._deadlines.set(worker.slot, worker.life.wakes_at)
        if worker.life is not before and not self._is_unseen(before, worker.life):
            self._changed(worker, before, now)

    def _is_unseen(self, before: Life, life: Life) -> bool:
        return life.watch_at is not None and is_unseen(before, life)

    def _changed(self, worker: RegisteredWorker, before: Life, now: float) -> None:
        """Note a change.

        Ordering: what it led to is done, the slot is free, and (at the end of the turn) the
        board is written before anybody is told.
        """
        if worker.life.state is not before.state:
            log.debug("worker %s: %s", worker.spec.name, worker.life.state.value)
        worker.plan_next_start(now)
        self._news.changed(worker, before)
        self._signs.follow(worker)
        self._tell_others(worker)
        self._dirty[worker] = None

    def note(self, worker: RegisteredWorker) -> None:
        """Have its record written, and told of, at the end of the turn that is running."""
        self._dirty[worker] = None

    def _flush(self) -> None:
        """Write the records of all who changed in this turn, once each; then tell of them."""
        dirty, self._dirty = self._dirty, {}
        for worker in dirty:
            self._publish(worker)
        for worker in dirty:
            worker.changes.tell()

    # What processes did.

    def _on_process_event(self, event: process.ProcessEvent) -> None:
        if isinstance(event, (process.ZygoteUp, process.ZygoteFailed)):
            self._on_zygote(event)
            return

        worker = event.launch.owner
        if not isinstance(worker, RegisteredWorker):
            if isinstance(worker, process.Owner):
                worker.hear(event)
            return
        if worker.launch is not event.launch:
            return  # a launch that was dropped
        match event:
            case process.SaidHello(_, pid):
                worker.close_client_end()
                if worker.cgroup is not None:
                    worker.cgroup.entered()
                self._registry.set_pid(worker, pid)
                self._memory.watch(worker)
                self._decide(worker, happenings.Hello())
            case process.Said(_, frame):
                self._on_frame(worker, frame)
            case process.Executed():
                self._started(worker)
            case process.Ended(_, status, failure):
                self._on_exit(worker, status, failure)
            case process.Lost(_, why):
                self._without_process(worker)
                self._decide(worker, happenings.LaunchLost(why, random()))
            case process.Failed(_, why):
                self._without_process(worker)
                self._decide(worker, happenings.LaunchFailed(why))

    def _on_frame(self, worker: RegisteredWorker, frame: bytes) -> None:
        try:
            match frame[:1]:
                case protocol.STARTED:
                    worker.is_async = protocol.read_started(frame)
                    kind = worker.spec.loop if worker.is_async else "plain"
                    self._launcher.used(kind)
                    self._started(worker)
                case protocol.READY:
                    if worker.spec.ready is not Readiness.PROBE:
                        self._decide(worker, happenings.SaidReady())
                case protocol.BEAT:
                    self._decide(worker, happenings.Beat())
                case protocol.FAREWELL:
                    worker.farewell = protocol.read_coded(frame)
                case other:
                    raise protocol.BadFrame(f"unknown verb {other!r}")
        except protocol.BadFrame as error:
            log.warning("worker %s (pid %s): %s", worker.spec.name, worker.pid, error)

    def _started(self, worker: RegisteredWorker) -> None:
        worker.started_at = time.time()
        self._decide(worker, happenings.HasStarted(random()))

    def _without_process(self, worker: RegisteredWorker) -> None:
        worker.launch = None
        self._effects.leave_cgroup(worker)
        worker.close_stacks()
        self._registry.set_pid(worker, None)

    def _on_exit(self, worker: RegisteredWorker, status: int | None, failure: str | None) -> None:
        exit = self._exit_status(worker, status, failure)
        worker.exits.append(exit)
        self._without_process(worker)
        level = logging.DEBUG if exit.ok else logging.WARNING
        log.log(level, "worker %s (%s): %s", worker.spec.name, worker.spec.type, exit)
        self._news.exited(worker)
        # Whoever says why it cannot begin has begun nothing, and left nothing in mid-work.
        farewell = worker.farewell is not None or failure is not None
        abrupt = is_abrupt(signal=exit.signal, farewell=farewell)
        self._decide(worker, happenings.HasExited(exit.kind, abrupt, random()))

    def _exit_status(
        self, worker: RegisteredWorker, status: int | None, failure: str | None
    ) -> ExitStatus:
        life = worker.life
        code, signal = (None, None) if status is None else meaning(status)
        if status is None and worker.farewell is not None:
            code = worker.farewell[0]  # it said so itself, right before the end
        kind = exit_kind(
            code=code,
            signal=signal,
            farewell=worker.farewell is not None or failure is not None,
            command=worker.spec.command is not None,
            asked=life.asked,
            overdue=life.overdue,
            member=life.rule.member,
            cycled=life.cycled,
            trouble=bool(life.trouble),
        )
        by_us = life.asked or life.overdue or life.trouble or kind is ExitKind.TERMINATED
        text = worker.farewell[1] if worker.farewell is not None else failure
        if worker.stacks is not None and (signal is not None or life.trouble):
            text = "\n\n".join(filter(None, (text, worker.stacks.read())))
        return ExitStatus(
            incarnation=life.incarnation,
            kind=kind,
            code=code,
            signal=signal,
            reason=life.reason if by_us else failure or "",
            error=text or None,
            name=worker.spec.name,
        )

    # When to turn again.

    def _set_timer(self) -> None:
        """Have a turn at the earliest deadline of the rules, and of the watcher's timers."""
        if self._open:
            self._deadline_alarm.set(self._deadlines.first())
            self._watcher_alarm.set(self._launcher.watcher.wake_at())

    def let_time_go_on(self) -> None:
        """Have a stop come to its end, whatever clock the rules were given."""
        if not isinstance(self._clock, (SystemClock, GoingOn)):
            self._deadline_alarm.set(None)
            self._clock = GoingOn(self._clock, self._host)
            self._deadline_alarm = Alarm(self._clock, self.turn)

    def close(self) -> None:
        """Stop turning; legal on a closed host loop."""
        self._open = False
        if not self._host.is_closed():
            self._host.remove_reader(self._launcher.watcher.epoll.fileno())
            self._deadline_alarm.set(None)
            self._watcher_alarm.set(None)
