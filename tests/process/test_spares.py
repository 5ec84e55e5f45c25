"""Which spare fits an order, and which spares should be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aiobgw._ipc.channel import Channel
from aiobgw._process.child import Child
from aiobgw._process.spares import PLAIN, Spares

MakeChild = Callable[[str], Child]


@pytest.fixture
def make_child() -> Iterator[MakeChild]:
    """Make children without processes."""
    made: list[Child] = []
    others: list[Channel] = []

    def make(kind: str) -> Child:
        ours, theirs = Channel.pair()
        others.append(theirs)
        made.append(Child(len(made), kind, ours, zygote=0))
        return made[-1]

    yield make
    for child in made:
        child.close()
    for other in others:
        other.close()


def stocked(target: int, *children: Child) -> Spares:
    spares = Spares(target)
    for child in children:
        spares.add(child)
    return spares


# Taking.


def test_there_is_nothing_to_take_from_no_spares() -> None:
    assert Spares(2).take(PLAIN) is None


def test_a_spare_of_the_kind_is_taken_first_the_oldest_of_them(make_child: MakeChild) -> None:
    plain, one, other = make_child(PLAIN), make_child("asyncio"), make_child("asyncio")
    spares = stocked(3, plain, one, other)
    assert [spares.take("asyncio") for _ in range(2)] == [one, other]
    assert len(spares) == 1


def test_without_one_of_the_kind_the_oldest_is_taken(make_child: MakeChild) -> None:
    old, young = make_child("uvloop"), make_child(PLAIN)
    spares = stocked(2, old, young)
    assert spares.take("asyncio") is old
    assert spares.take("asyncio") is young
    assert spares.take("asyncio") is None


def test_a_spare_that_died_is_not_taken(make_child: MakeChild) -> None:
    dead, alive = make_child(PLAIN), make_child(PLAIN)
    spares = stocked(2, dead, alive)
    spares.discard(dead)
    spares.discard(dead)
    assert spares.take(PLAIN) is alive


# Refilling.


def test_the_first_spares_are_plain() -> None:
    assert Spares(3).missing([]) == [PLAIN] * 3


def test_no_spares_are_missing_where_none_are_wanted(make_child: MakeChild) -> None:
    spares = Spares(0)
    spares.used("asyncio")
    assert spares.missing([]) == []


def test_what_waits_and_what_is_on_its_way_is_not_missing(make_child: MakeChild) -> None:
    spares = stocked(3, make_child(PLAIN))
    assert spares.missing([make_child(PLAIN)]) == [PLAIN]
    assert spares.missing([make_child(PLAIN), make_child(PLAIN)]) == []
    assert spares.missing([make_child(PLAIN) for _ in range(5)]) == []


def test_the_kinds_that_were_used_last_are_wanted() -> None:
    spares = Spares(2)
    spares.used("asyncio")
    assert spares.missing([]) == ["asyncio", PLAIN]
    spares.used("uvloop")
    assert sorted(spares.missing([])) == ["asyncio", "uvloop"]
    for _ in range(2):
        spares.used(PLAIN)
    assert spares.missing([]) == [PLAIN, PLAIN]


def test_a_kind_that_waits_already_is_not_forked_again(make_child: MakeChild) -> None:
    spares = stocked(2, make_child("asyncio"))
    spares.used("asyncio")
    spares.used(PLAIN)
    assert spares.missing([]) == [PLAIN]


def test_no_more_spares_are_forked_than_there_is_room_for(make_child: MakeChild) -> None:
    """Spares of a kind that went out of use keep their places until they are taken."""
    spares = stocked(2, make_child(PLAIN), make_child(PLAIN))
    spares.used("asyncio")
    spares.used("asyncio")
    assert spares.missing([]) == []

    spares.take("asyncio")
    assert spares.missing([]) == ["asyncio"]
