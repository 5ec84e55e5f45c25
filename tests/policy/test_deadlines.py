"""The heap of deadlines, against a dict that is searched from end to end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiobgw._policy.deadlines import Deadlines

KEYS = st.integers(0, 7)
MOMENTS = st.integers(0, 20).map(float)  # few of them, so that many are equal


class AgainstAModel(RuleBasedStateMachine):
    """Do the same to both, and compare."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines = Deadlines()
        self.model: dict[int, float] = {}

    @rule(key=KEYS, at=MOMENTS)
    def set(self, key: int, at: float) -> None:
        self.deadlines.set(key, at)
        self.model[key] = at

    @rule(key=KEYS)
    def clear(self, key: int) -> None:
        self.deadlines.set(key, None)
        self.model.pop(key, None)

    @rule(now=MOMENTS)
    def pop_all_that_are_due(self, now: float) -> None:
        popped = []
        while (key := self.deadlines.pop_due(now)) is not None:
            popped.append((self.model.pop(key), key))
        assert popped == sorted(popped)
        assert all(at > now for at in self.model.values())
        assert all(at <= now for at, _ in popped)

    @invariant()
    def they_agree(self) -> None:
        assert self.deadlines.first() == min(self.model.values(), default=None)
        assert len(self.deadlines) == len(self.model)


TestDeadlinesAgreeWithADict = AgainstAModel.TestCase
TestDeadlinesAgreeWithADict.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None
)


def test_a_deadline_is_due_at_its_moment_and_only_once() -> None:
    deadlines = Deadlines()
    deadlines.set(3, 5.0)

    assert deadlines.pop_due(4.999) is None
    assert deadlines.pop_due(5.0) == 3
    assert deadlines.pop_due(5.0) is None


def test_a_deadline_that_was_moved_back_and_forth_is_due_once() -> None:
    deadlines = Deadlines()
    for at in (5.0, 9.0, 5.0, 9.0, 5.0):
        deadlines.set(1, at)

    assert deadlines.pop_due(20.0) == 1
    assert deadlines.pop_due(20.0) is None
    assert deadlines.first() is None


def test_a_key_that_was_due_can_have_the_same_deadline_again() -> None:
    deadlines = Deadlines()
    for _ in range(3):
        deadlines.set(1, 5.0)
        assert deadlines.pop_due(5.0) == 1


def test_memory_follows_the_number_of_deadlines_not_of_changes() -> None:
    deadlines = Deadlines()
    for moment in range(10_000):
        deadlines.set(moment % 5, 1e6 - moment)  # each one earlier: nothing comes to the top
        assert len(deadlines._heap) <= 2 * len(deadlines) + 17


def test_memory_is_given_back_when_deadlines_are_cleared() -> None:
    deadlines = Deadlines()
    for key in range(1_000):
        deadlines.set(key, float(key))
    for key in range(1_000):
        deadlines.set(key, None)

    assert len(deadlines) == 0
    assert len(deadlines._heap) <= 17
