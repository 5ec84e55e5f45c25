"""Groups and dependencies, as the supervisor sees them: gathers what the rules ask about others.

The rules (``_policy.groups``, ``_policy.order``) decide from Lives.  Here is who is in which
group, who depends on which name, and who waits for whom; so that whoever changes has those who
wait for it looked at again, within the same turn, and nobody else.  No timer, no state of its
own: what is kept here only says whom to look at.

Ownership: ``_waits`` and ``_waiting`` are two directions of one relation, of who waits for the
start or the end of another worker of its group, or for the end of one that depends on it.
Who waits for a name is found by ``_dependents``.

Invariant: a worker that waits is found when what it waits for changes, since both are written
down where the rules are asked; one that does not wait any more is looked at in vain once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from .._policy.groups import concerned, end_hindered_by, start_hindered_by
from .._policy.happenings import Consider, GroupEnds, Happening, HasExited, LaunchLost
from .._policy.life import Life, Situation
from .._policy.moves import WAITING
from .._policy.order import Ended, Unmet, find_cycle, unmet
from ..errors import InvalidSpec
from ..spec import After, ShutdownMode, WorkerSpec
from ..status import WorkerStatus
from .loop import Loop
from .registry import RegisteredWorker, Registry

log = logging.getLogger("aiobgw")

Node = RegisteredWorker | None
"""A worker, None: the one that is about to be registered."""


class Groups:
    """The groups and dependencies of one supervisor."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._loop: Loop | None = None
        self._members: dict[str, list[RegisteredWorker]] = {}
        self._dependents: dict[str, dict[RegisteredWorker, None]] = {}
        self._ended: dict[str, WorkerStatus] = {}
        self._waits: dict[RegisteredWorker, RegisteredWorker] = {}
        self._waiting: dict[RegisteredWorker, dict[RegisteredWorker, None]] = {}

    def attach(self, loop: Loop) -> None:
        """Work with this loop."""
        self._loop = loop

    # Who is in it.

    def check(self, spec: WorkerSpec) -> None:
        """Raise InvalidSpec if *spec* would close a circle of workers that wait for each other."""
        if spec.name not in self._dependents:
            return  # whatever it waits for, nothing of that waits for it
        cycle = find_cycle(None, lambda node: self._waits_for(node, spec))
        if cycle is not None:
            names = [spec.name if node is None else node.spec.name for node in cycle]
            raise InvalidSpec(
                f"worker {spec.name!r}: after: a circle of workers that wait for each other:"
                f" {' -> '.join([*names, spec.name])}",
                hint="members of a group also wait for those registered before them",
            )

    def _waits_for(self, node: Node, new: WorkerSpec) -> list[Node]:
        """Return whom a worker waits for before it starts, when *new* is registered.

        All of a name, since each of them may be the newest one day.
        """
        spec = new if node is None else node.spec
        found: list[Node] = [None] if new.name in spec.after else []
        for name in spec.after:
            found += self._registry.named(name)
        if spec.group is not None:
            members = self._members.get(spec.group, [])
            before = members if node is None else members[: members.index(node)]
            found += before[-1:]
        return found

    def join(self, worker: RegisteredWorker) -> None:
        """Note a worker that was registered; it is the last of its group."""
        spec = worker.spec
        if spec.group is not None:
            self._members.setdefault(spec.group, []).append(worker)
        for name in spec.after:
            self._dependents.setdefault(name, {})[worker] = None
            ended = self._registry.ended(name)
            if ended is not None:
                self._ended.setdefault(name, ended)

    def _leave(self, worker: RegisteredWorker) -> None:
        spec = worker.spec
        self._set_wait(worker, None)
        self._waiting.pop(worker, None)
        if spec.group is not None:
            self._members[spec.group].remove(worker)
            if not self._members[spec.group]:
                del self._members[spec.group]
        for name in spec.after:
            self._dependents[name].pop(worker, None)
            if not self._dependents[name]:
                del self._dependents[name]
                self._ended.pop(name, None)
        if spec.name in self._dependents:
            self._keep_end(worker)

    def _keep_end(self, worker: RegisteredWorker) -> None:
        """Remember how one ended on whom others depend, for as long as they are there."""
        known = self._ended.get(worker.spec.name)
        if known is None or known.generation < worker.generation:
            self._ended[worker.spec.name] = worker.status()

    # What the rules ask.

    def situation(
        self, worker: RegisteredWorker, happening: Happening, situation: Situation
    ) -> Situation:
        """Add to *situation* what a worker waits for; and have it looked at when that changes."""
        if not (self._members or self._dependents):
            return situation
        life = worker.life
        self._set_wait(worker, None)
        if life.state in WAITING or isinstance(happening, (HasExited, LaunchLost)):
            return self._before_its_start(worker, situation)
        stopping = situation.stop is ShutdownMode.FAST
        if stopping or life.with_group or isinstance(happening, GroupEnds):
            return self._before_its_end(worker, situation, stopping)
        return situation

    def _before_its_start(self, worker: RegisteredWorker, situation: Situation) -> Situation:
        if situation.stop is not None:
            return situation
        lack = self._unmet(worker.spec)
        if lack is not None:
            if lack.for_good:
                return replace(situation, never_starts=lack.why)
            return replace(situation, waits_for=lack.why)
        if worker.spec.group is None:
            return situation
        members = self._members[worker.spec.group]
        me = members.index(worker)
        other = start_hindered_by([member.life for member in members], me)
        if other is None:
            return situation
        self._set_wait(worker, members[other])
        why = f"waits for {members[other].spec.name!r} of its group {worker.spec.group!r}"
        return replace(situation, waits_for=why)

    def _unmet(self, spec: WorkerSpec) -> Unmet | None:
        """Return the first dependency that does not hold; one that never will comes first."""
        waits: Unmet | None = None
        for name, after in _dependencies(spec).items():
            lack = unmet(name, after, self._newest(name, after))
            if lack is not None and lack.for_good:
                return lack
            waits = waits or lack
        return waits

    def _newest(self, name: str, after: After) -> Life | Ended | None:
        living = self._registry.newest(name)
        ended = self._ended.get(name)
        is_older = ended is None or (living is not None and living.generation > ended.generation)
        if living is not None and (is_older or after is not After.COMPLETED):
            return living.life
        if ended is None:
            return None
        ok = ended.exit is not None and ended.exit.ok
        return Ended(ok, ended.reason if ended.exit is None else str(ended.exit))

    def _before_its_end(
        self, worker: RegisteredWorker, situation: Situation, stopping: bool
    ) -> Situation:
        group = worker.spec.group
        if group is not None:
            members = self._members[group]
            lives = [member.life for member in members]
            other = end_hindered_by(lives, members.index(worker), stopping=stopping)
            if other is not None:
                self._set_wait(worker, members[other])
                why = f"waits for the end of {members[other].spec.name!r}, which is after it in"
                return replace(situation, ends_after=f"{why} group {group!r}")
        if not stopping:
            return situation
        name = worker.spec.name
        for dependent in self._dependents.get(name, ()):
            if _dependencies(dependent.spec)[name] is not After.COMPLETED:
                self._set_wait(worker, dependent)
                why = f"waits for the end of {dependent.spec.name!r}, which depends on it"
                return replace(situation, ends_after=why)
        return situation

    # Who is looked at again.

    def _set_wait(self, worker: RegisteredWorker, other: RegisteredWorker | None) -> None:
        before = self._waits.pop(worker, None)
        if before is not None and before in self._waiting:
            self._waiting[before].pop(worker, None)
            if not self._waiting[before]:
                del self._waiting[before]
        if other is not None:
            self._waits[worker] = other
            self._waiting.setdefault(other, {})[worker] = None

    def changed(self, worker: RegisteredWorker) -> None:
        """Have those looked at again who wait for *worker*; called within the turn."""
        if not (self._members or self._dependents) or self._loop is None:
            return
        look_at = list(self._waiting.get(worker, ()))
        for dependent in self._dependents.get(worker.spec.name, ()):
            if dependent.life.state in WAITING and dependent.life.due is None:
                look_at.append(dependent)
        if worker.is_over:
            self._leave(worker)
        for waiting in look_at:
            self._loop.post(waiting, Consider())

    # What members lead to.

    def restart(self, culprit: RegisteredWorker) -> None:
        """Have those end that are restarted with a member that failed; within a turn."""
        group = culprit.spec.group
        assert group is not None
        members = self._members[group]
        rule = culprit.life.rule
        chosen = concerned(rule.strategy, members.index(culprit), len(members))
        why = f"its group {group!r} restarts: worker {culprit.spec.name!r} {culprit.exits[-1]}"
        log.warning("group %s restarts: worker %s failed", group, culprit.spec.name)
        self._end([members[other] for other in chosen], why, for_good=False)

    def stop(self, culprit: RegisteredWorker, why: str) -> None:
        """End all others of a worker's group for good; called from within a turn."""
        group = culprit.spec.group
        if group is None:
            return
        others = [member for member in self._members[group] if member is not culprit]
        log.error("group %s is stopped: worker %s: %s", group, culprit.spec.name, why)
        text = f"its group {group!r} is stopped: worker {culprit.spec.name!r}: {why}"
        self._end(others, text, for_good=True)

    def _end(self, others: list[RegisteredWorker], why: str, *, for_good: bool) -> None:
        """Mark them all, the last first, before anything else is decided.

        Race: another one may have failed in the same instant; its exit, which is next, is
        then the group's doing.  Ordering: only when all are marked may anybody be looked at
        again.
        """
        assert self._loop is not None
        for other in reversed(others):
            self._loop.at_once(other, GroupEnds(why, for_good))
        for other in others:
            self._loop.post(other, Consider())


def _dependencies(spec: WorkerSpec) -> Mapping[str, After]:
    assert isinstance(spec.after, Mapping)  # as it is kept
    return spec.after
