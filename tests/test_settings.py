"""The options of a supervisor refuse nonsense, and each of them explains itself."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from aiobgw import InvalidSpec, Phase, Settings


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Replace the look at processes and descriptors: settings hold none."""


def test_the_defaults_are_those_of_the_architecture() -> None:
    settings = Settings()
    assert (settings.max_workers, settings.max_parallel_workers, settings.spares) == (64, 8, 2)
    assert settings.start_phase is Phase.RUNNING
    assert settings.preload == ()
    assert not settings.handle_signals
    assert settings.python is None
    assert settings.on_reset is None
    assert settings.restart_after_crash


def test_every_option_explains_itself() -> None:
    for setting in fields(Settings):
        assert setting.metadata["help"], setting.name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().max_workers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("max_workers", 262_143),
        ("max_parallel_workers", 1024),
        ("spares", 1024),
        ("max_payload", 2**30),
    ],
)
def test_a_number_has_its_range_ends_included(name: str, most: int) -> None:
    assert getattr(Settings(**{name: 0}), name) == 0
    assert getattr(Settings(**{name: most}), name) == most
    for wrong in (-1, most + 1, 1.5, "1", None, True):
        with pytest.raises(InvalidSpec) as raised:
            Settings(name="shop", **{name: wrong})  # type: ignore[arg-type]
        message = f"supervisor 'shop': {name} must be a whole number from 0 to {most}"
        assert str(raised.value) == f"{message}, not {wrong!r}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reaper": "me"}, "reaper must be 'auto', 'kernel' or 'zygote', not 'me'"),
        ({"start_phase": 3}, "start_phase must be an aiobgw.Phase, not 3"),
        ({"connector": "shop"}, "connector must be like 'package.module:function', not 'shop'"),
        ({"connector": ""}, "connector must be like 'package.module:function', not ''"),
        (
            {"connector": len.__call__},
            "connector must be importable by name (a module-level function; no lambda, no nested"
            f" function), not {len.__call__!r}",
        ),
        (
            {"connector": 3},
            "connector must be importable by name (a module-level function; no"
            " lambda, no nested function), not 3",
        ),
        ({"on_reset": "json"}, "on_reset must be a function without parameters, not 'json'"),
        ({"preload": "json"}, "preload must be a sequence of module names, not 'json'"),
        ({"preload": ("json", 1)}, "preload must be a sequence of module names, not ('json', 1)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_with_what_is_allowed(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSpec) as raised:
        Settings(name="shop", **options)
    assert str(raised.value) == f"supervisor 'shop': {message}"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 96, None])
def test_a_name_that_cannot_be_shown_is_refused(name: Any) -> None:
    with pytest.raises(InvalidSpec, match="supervisor's name must"):
        Settings(name=name)


def test_modules_to_preload_may_come_as_a_list() -> None:
    assert Settings(preload=["json", "email.policy"]).preload == (  # type: ignore[arg-type]
        "json",
        "email.policy",
    )


@pytest.mark.parametrize("connector", [os.path.join, "posixpath:join"])
def test_a_connector_is_stored_by_name(connector: Any) -> None:
    assert Settings(connector=connector).connector == "posixpath:join"
    assert Settings().connector is None


@pytest.mark.parametrize("reaper", ["auto", "kernel", "zygote"])
def test_every_way_to_reap_can_be_chosen(reaper: str) -> None:
    assert Settings(reaper=reaper).reaper == reaper
