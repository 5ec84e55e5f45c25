"""What the members of groups run in tests."""

from __future__ import annotations

import os
from pathlib import Path

import aiobgw

from . import targets


def fail_when_told() -> None:
    """Raise when the latch "go" is set."""
    targets.say_up()
    aiobgw.current_worker().latches["go"].wait_blocking()
    raise ValueError("told to fail")


def fail_at_length(size: int) -> None:
    """Raise an error with a text of that many bytes, and an end to be recognised by."""
    raise ValueError("x" * size + " THE END")


def square(folder: str, numbers: list[int]) -> None:
    """Do a share of the work: write down the sum of some squares."""
    # Renamed when complete: nobody reads half a result.
    path = Path(folder, f"{numbers[0]}.part")
    path.write_text(str(sum(number * number for number in numbers)))
    os.rename(path, path.with_suffix(".done"))


def square_when_told(folder: str, numbers: list[int]) -> None:
    aiobgw.current_worker().latches["go"].wait_blocking()
    square(folder, numbers)


def total(folder: str) -> int:
    """Add up what the shares came to."""
    return sum(int(path.read_text()) for path in Path(folder).glob("*.done"))
