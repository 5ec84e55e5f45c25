"""Many clients that come, register, end workers at random, and are killed in between.

The seed is printed; AIOBGW_TEST_SEED has the same clients again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from os import kill  # the real one, while nothing_escapes() replaces it
from pathlib import Path
from typing import Any

import pytest

import aiobgw

from .. import procs
from ..client_targets import until
from ..conftest import MakeSupervisor
from ..hostile import CHURNER, SEED, check_slots, nothing_escapes, peers_of, subscriptions

pytestmark = pytest.mark.anyio

CLIENTS = 8
SLOTS = 40


@dataclass
class Crowd:
    """The clients of one run: who lives, what they wrote down, who was killed."""

    place: Path
    said: Path
    starts: Path
    end: float
    living: dict[str, Any] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)

    def start_one(self) -> None:
        name = f"c{len(self.living) + len(self.killed)}"
        self.living[name] = procs.start_script(
            CHURNER,
            *map(str, (self.place, self.starts, self.said, name, SEED + len(self.killed))),
            str(max(0.1, self.end - time.monotonic())),
        )

    def kill_one(self, rng: random.Random) -> None:
        name = rng.choice(sorted(self.living))
        process = self.living.pop(name)
        self.killed.add(name)
        kill(process.pid, signal.SIGKILL)
        process.communicate()

    async def finish(self) -> None:
        """Wait for those who were not killed."""
        for name, process in self.living.items():
            await asyncio.get_running_loop().run_in_executor(None, process.communicate)
            if process.returncode:
                self.failed[name] = process.returncode

    def keys(self, verb: str) -> list[str]:
        lines = [line.split() for line in self.said.read_text().splitlines()]
        return [words[1] for words in lines if words[0] == verb]

    def close(self) -> None:
        for process in self.living.values():
            process.kill()
            process.communicate()


async def churn(crowd: Crowd, rng: random.Random) -> None:
    """Have clients at work, kill one every now and then, and start another in its place."""
    for _ in range(CLIENTS):
        crowd.start_one()
    while time.monotonic() < crowd.end:
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        crowd.kill_one(rng)
        crowd.start_one()
    await crowd.finish()


async def end_the_rest(supervisor: aiobgw.Supervisor) -> None:
    """End what killed clients have left behind, once it has started."""
    for handle in supervisor.handles():
        await handle.wait_for_startup()
        handle.terminate()
        await handle


def check_starts(crowd: Crowd) -> str:
    """Each accepted registration started once, unless it was ended before; none twice."""
    starts = Counter(crowd.starts.read_text().split())
    accepted, ended = crowd.keys("accepted"), set(crowd.keys("ended"))
    asked, refused = set(crowd.keys("asked")), set(crowd.keys("refused"))
    assert len(accepted) == len(set(accepted))
    assert set(starts) <= asked - refused
    assert set(starts.values()) == {1}
    lost = [key for key in accepted if key not in starts and key not in ended]
    assert not lost
    unanswered = asked - refused - set(accepted)
    assert {key.partition("-")[0] for key in unanswered} <= crowd.killed, "the others had answers"
    return (
        f"{len(asked)} registrations: {len(accepted)} accepted, {len(refused)} refused,"
        f" {len(unanswered)} cut short; {len(starts)} started; {len(crowd.killed)} clients killed"
    )


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
async def test_what_many_clients_register_starts_once_and_leaves_nothing(
    make_supervisor: MakeSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seconds: int,
) -> None:
    print(f"AIOBGW_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    place = tmp_path / "run"
    supervisor = await make_supervisor(
        runtime_dir=place, max_workers=SLOTS, preload=("tests.hostile",)
    )
    before = procs.open_fds()
    crowd = Crowd(place, tmp_path / "said", tmp_path / "starts", time.monotonic() + seconds)
    try:
        with nothing_escapes(supervisor, monkeypatch):
            await churn(crowd, rng)
            assert not crowd.failed
            await until(lambda: not peers_of(supervisor))
            await end_the_rest(supervisor)
    finally:
        crowd.close()
    print(check_starts(crowd))
    assert not subscriptions(supervisor)
    check_slots(supervisor)
    await until(lambda: procs.open_fds() == before)
