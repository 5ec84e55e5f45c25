"""How a worker ended, as a value, as an exception and as text."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from aiobgw import (
    Closed,
    EventsLost,
    ExitKind,
    ExitStatus,
    WorkerFailed,
    WorkerState,
    WorkerStatus,
)
from aiobgw.status import Event


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: values hold none."""


@pytest.mark.parametrize(
    ("kind", "ok"),
    [
        (ExitKind.CLEAN, True),
        (ExitKind.TERMINATED, True),
        (ExitKind.FAILED, False),
        (ExitKind.CRASHED, False),
        (ExitKind.UNKNOWN, False),
    ],
)
def test_an_end_is_ok_if_it_was_clean_or_wanted_and_else_check_raises(
    kind: ExitKind, ok: bool
) -> None:
    exit = ExitStatus(incarnation=1, kind=kind, name="mailer")
    assert exit.ok is ok
    if ok:
        exit.check()
    else:
        with pytest.raises(WorkerFailed) as raised:
            exit.check()
        assert raised.value.exit is exit
        assert raised.value.name == "mailer"


def test_check_shows_the_workers_own_traceback() -> None:
    exit = ExitStatus(
        incarnation=1, kind=ExitKind.FAILED, code=1, error="KeyError: 'x'\n", name="mailer"
    )
    with pytest.raises(WorkerFailed, match="worker 'mailer' failed with exit code 1") as raised:
        exit.check()
    assert raised.value.__notes__ == ["KeyError: 'x'"]


@pytest.mark.parametrize(
    ("kind", "how", "text"),
    [
        (ExitKind.CLEAN, {"code": 0}, "clean with exit code 0"),
        (ExitKind.FAILED, {"code": 3}, "failed with exit code 3"),
        (ExitKind.CRASHED, {"signal": 11}, "crashed by SIGSEGV"),
        (ExitKind.CRASHED, {"signal": 34}, "crashed by SIGRTMIN"),
        (ExitKind.CRASHED, {"signal": 40}, "crashed by signal 40"),
        (ExitKind.UNKNOWN, {}, "unknown"),
        (ExitKind.UNKNOWN, {"reason": "lost"}, "unknown (lost)"),
        (
            ExitKind.TERMINATED,
            {"signal": 15, "reason": "terminated"},
            "terminated by SIGTERM (terminated)",
        ),
    ],
)
def test_an_end_is_told_in_words(kind: ExitKind, how: dict[str, int], text: str) -> None:
    assert str(ExitStatus(incarnation=1, kind=kind, **how)) == text  # type: ignore[arg-type]


def test_statuses_are_values() -> None:
    def make() -> WorkerStatus:
        exit = ExitStatus(incarnation=1, kind=ExitKind.CLEAN, code=0)
        return WorkerStatus(
            name="a", type="b", state=WorkerState.STOPPED, slot=0, generation=1, exit=exit
        )

    assert make() == make()
    assert hash(make()) == hash(make())
    assert pickle.loads(pickle.dumps(make())) == make()
    with pytest.raises(FrozenInstanceError):
        make().state = WorkerState.RUNNING  # type: ignore[misc]


def test_events_know_their_moment() -> None:
    assert Closed(12.5).at == 12.5
    assert isinstance(EventsLost(1.0, 3), Event)
    assert EventsLost(1.0, 3).count == 3


def test_every_state_is_a_word_for_people_and_no_two_are_the_same() -> None:
    words = [state.value for state in WorkerState]
    assert words == ["not started", "starting", "running", "stopping", "back-off", "stopped"]
