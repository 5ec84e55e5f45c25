"""The two truth tables: what an exit means, and what follows it."""

from __future__ import annotations

import itertools

import pytest

from aiobgw._policy.life import Life, Rule
from aiobgw._policy.restart import Verdict, after_exit, exit_kind, is_abrupt
from aiobgw.spec import Restart
from aiobgw.status import ExitKind


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: functions of values leak none."""


CLEAN, FAILED, CRASHED = ExitKind.CLEAN, ExitKind.FAILED, ExitKind.CRASHED
TERMINATED, UNKNOWN = ExitKind.TERMINATED, ExitKind.UNKNOWN

Facts = dict[str, int | None]

HOW: dict[str, Facts] = {
    "code 0": {"code": 0, "signal": None},
    "code 1": {"code": 1, "signal": None},
    "code 2": {"code": 2, "signal": None},
    "code 255": {"code": 255, "signal": None},
    "SIGTERM": {"code": None, "signal": 15},
    "SIGSEGV": {"code": None, "signal": 11},
    "no status": {"code": None, "signal": None},
}

WHO: dict[str, dict[str, bool]] = {
    "target": {"command": False, "farewell": False},
    "target with a farewell": {"command": False, "farewell": True},
    "command": {"command": True, "farewell": False},
}

# Columns as in WHO.
UNASKED = {
    "code 0": (CLEAN, CLEAN, CLEAN),
    "code 1": (FAILED, FAILED, FAILED),
    "code 2": (CRASHED, FAILED, FAILED),
    "code 255": (CRASHED, FAILED, FAILED),
    "SIGTERM": (CRASHED, CRASHED, CRASHED),
    "SIGSEGV": (CRASHED, CRASHED, CRASHED),
    "no status": (UNKNOWN, UNKNOWN, UNKNOWN),
}


@pytest.mark.parametrize("how", HOW)
def test_an_exit_that_nobody_asked_for_means_what_the_table_says(how: str) -> None:
    meant = tuple(exit_kind(**HOW[how], **who, asked=False, overdue=False) for who in WHO.values())
    assert meant == UNASKED[how]


@pytest.mark.parametrize(("how", "who"), list(itertools.product(HOW, WHO)))
def test_an_exit_on_request_and_in_time_is_terminated_whatever_its_status(
    how: str, who: str
) -> None:
    assert exit_kind(**HOW[how], **WHO[who], asked=True, overdue=False) is TERMINATED


@pytest.mark.parametrize(("how", "who"), list(itertools.product(HOW, WHO)))
def test_what_had_to_be_killed_for_being_late_has_failed_and_did_not_crash(
    how: str, who: str
) -> None:
    expected = UNKNOWN if how == "no status" else FAILED
    assert exit_kind(**HOW[how], **WHO[who], asked=True, overdue=True) is expected


# Members: without a farewell the code does not count (PostgreSQL's dead-man switch).
UNASKED_MEMBER = {
    "code 0": (CRASHED, CLEAN),
    "code 1": (CRASHED, FAILED),
    "code 2": (CRASHED, FAILED),
    "code 255": (CRASHED, FAILED),
    "SIGTERM": (CRASHED, CRASHED),
    "SIGSEGV": (CRASHED, CRASHED),
    "no status": (UNKNOWN, UNKNOWN),
}


@pytest.mark.parametrize("how", HOW)
def test_the_exit_of_a_member_means_what_its_table_says(how: str) -> None:
    targets = [WHO["target"], WHO["target with a farewell"]]
    meant = tuple(
        exit_kind(**HOW[how], **who, asked=False, overdue=False, member=True) for who in targets
    )
    assert meant == UNASKED_MEMBER[how]


# Of a member that a crash cycle ended: what it said itself counts, if it got to say it.
CYCLED = {
    "code 0": (TERMINATED, CLEAN),
    "code 1": (TERMINATED, FAILED),
    "code 2": (TERMINATED, FAILED),
    "code 255": (TERMINATED, FAILED),
    "SIGTERM": (TERMINATED, TERMINATED),
    "SIGSEGV": (TERMINATED, TERMINATED),
    "no status": (TERMINATED, UNKNOWN),
}


@pytest.mark.parametrize("how", HOW)
def test_the_exit_of_a_member_in_a_cycle_is_terminated_unless_it_left_in_order(how: str) -> None:
    targets = [WHO["target"], WHO["target with a farewell"]]
    facts = {"asked": False, "member": True, "cycled": True}
    meant = tuple(exit_kind(**HOW[how], **who, **facts, overdue=False) for who in targets)
    assert meant == CYCLED[how]
    late = {exit_kind(**HOW[how], **who, **facts, overdue=True) for who in targets}
    assert late == {UNKNOWN if how == "no status" else FAILED}


@pytest.mark.parametrize(
    ("signal", "farewell", "abrupt"),
    [(None, True, False), (None, False, True), (9, False, True), (9, True, True)],
)
def test_an_exit_is_abrupt_by_a_signal_and_without_a_farewell(
    signal: int | None, farewell: bool, abrupt: bool
) -> None:
    assert is_abrupt(signal=signal, farewell=farewell) is abrupt


RETIRE, DELAY, NOW = Verdict.RETIRE, Verdict.AGAIN_AFTER_DELAY, Verdict.AGAIN_NOW

# Columns: CLEAN, FAILED, CRASHED, TERMINATED, UNKNOWN, as ExitKind has them.
AFTER_EXIT = {
    Restart.NEVER: (RETIRE, RETIRE, RETIRE, RETIRE, RETIRE),
    Restart.ON_FAILURE: (RETIRE, DELAY, DELAY, DELAY, DELAY),
    Restart.ALWAYS: (DELAY, DELAY, DELAY, DELAY, DELAY),
}


@pytest.mark.parametrize("rule", Restart)
def test_the_rule_decides_after_an_exit_that_nobody_asked_for(rule: Restart) -> None:
    life = Life(Rule(restart=rule))
    verdicts = tuple(after_exit(life, kind, stopping=False) for kind in ExitKind)
    assert verdicts == AFTER_EXIT[rule]


CYCLE = Verdict.AGAIN_AFTER_CYCLE

AFTER_EXIT_IN_A_CYCLE = {
    Restart.NEVER: (RETIRE, RETIRE, RETIRE, RETIRE, RETIRE),
    Restart.ON_FAILURE: (RETIRE, CYCLE, CYCLE, CYCLE, CYCLE),
    Restart.ALWAYS: (CYCLE, CYCLE, CYCLE, CYCLE, CYCLE),
}


@pytest.mark.parametrize("rule", Restart)
def test_in_a_cycle_nobody_returns_before_its_end(rule: Restart) -> None:
    life = Life(Rule(restart=rule, member=True))
    verdicts = tuple(after_exit(life, kind, stopping=False, cycle=True) for kind in ExitKind)
    assert verdicts == AFTER_EXIT_IN_A_CYCLE[rule]


@pytest.mark.parametrize(("rule", "kind"), list(itertools.product(Restart, ExitKind)))
def test_an_intended_restart_is_made_at_once_whatever_the_rule(
    rule: Restart, kind: ExitKind
) -> None:
    assert after_exit(Life(Rule(restart=rule), restart=True), kind, stopping=False) is NOW


@pytest.mark.parametrize(("rule", "kind"), list(itertools.product(Restart, ExitKind)))
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("terminate", "stopping"),
    [(True, False), (False, True), (True, True)],
    ids=["terminated", "supervisor stops", "both"],
)
def test_nothing_follows_a_terminate_or_a_stop(
    rule: Restart, kind: ExitKind, restart: bool, terminate: bool, stopping: bool
) -> None:
    life = Life(Rule(restart=rule), terminate=terminate, restart=restart)
    assert after_exit(life, kind, stopping=stopping) is RETIRE


def test_the_tables_have_a_row_or_column_for_everything() -> None:
    assert set(UNASKED) == set(HOW)
    assert set(AFTER_EXIT) == set(Restart)
    assert all(len(row) == len(ExitKind) for row in AFTER_EXIT.values())
