"""Starting: from a gate that opens to a target that runs."""

from __future__ import annotations

from signal import SIGKILL, SIGQUIT

from ..spec import ShutdownMode
from ..status import WorkerState
from .actions import Launch, Signal
from .life import Life, Situation
from .liveness import old_at
from .moves import WAITING, Plan, retire, stop_signals
from .phases import gate_open, gate_reason
from .readiness import became_ready, start_clock


def consider(life: Life, situation: Situation) -> Plan:
    """Launch it if its gate is open; what follows a back-off by rule counts as a restart."""
    if life.state not in WAITING or life.due is not None:
        return life, ()
    if not gate_open(life, situation):
        return _wait(life, gate_reason(life, situation)), ()
    if situation.never_starts:
        return retire(life, situation.never_starts)
    made_before = life.failures or life.dropped  # and counted then
    intended = life.restart or life.cycled or life.with_group
    by_rule = life.state is WorkerState.BACKOFF and not (made_before or intended)
    return launch(life, restarts=life.restarts + bool(by_rule))


def _wait(life: Life, reason: str) -> Life:
    """Say what it waits for; no change is none."""
    return life if life.reason == reason else life._replace(reason=reason)


def launch(life: Life, *, restarts: int | None = None) -> Plan:
    """Begin the next incarnation; a launch that reached no process keeps its number."""
    again = bool(life.failures or life.lost or life.dropped)
    started = life._replace(
        state=WorkerState.STARTING,
        incarnation=life.incarnation + (0 if again else 1),
        restarts=life.restarts if restarts is None else restarts,
        has_process=False,
        restart=False,
        overdue=False,
        cycled=False,
        with_group="",
        dropped=False,
        trouble="",
        signals=life.signals if again else (),
        deadline=None,
        due=None,
        reason="",
    )
    return started, (Launch(),)


def said_hello(life: Life, situation: Situation, now: float) -> Plan:
    """Send what was asked for while there was no process to send it to."""
    pending = tuple([Signal(signum) for signum in life.signals])
    up = life._replace(has_process=True, signals=())
    if life.kill:
        return up, (*pending, Signal(SIGKILL, group=True))
    if life.asked:
        quits = situation.stop is ShutdownMode.IMMEDIATE
        return up, (*pending, *((Signal(SIGQUIT),) if quits else stop_signals(life.rule)))
    return start_clock(up, now), pending


def started(life: Life, luck: float, now: float) -> Plan:
    life = life._replace(begun=True, failures=0, lost=0)
    if life.state is not WorkerState.STARTING:
        return life, ()
    up = life._replace(state=WorkerState.RUNNING, old_at=old_at(life.rule, luck, now))
    return (up if life.rule.needs_ready and not life.ready else became_ready(up, now)), ()
