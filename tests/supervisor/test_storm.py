"""A storm of restarts: a hundred workers that fail at once, for ever, with nothing to end it.

Three promises: the supervisor's process spends next to nothing on it, whoever asks is answered,
and the restarts spread instead of coming all at once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from aiobgw import AlreadyRegistered, WorkerSpec, attach_blocking

from .. import procs

WORKERS = 100
SECONDS = 20.0
EVERY = 0.1
"""Seconds between two looks of the client."""

REFUSED = WorkerSpec(name="w0", target="no.such:target", unique=True)
"""A request that costs the supervisor its answer and nothing else."""

WAVES = range(4, 6)
"""The incarnations of the third wave of restarts, and of the next: 7 to 19 s after the first."""

HOST = """
import asyncio, json, sys, time
from aiobgw import Supervisor, WorkerSpec

async def main():
    place, out, workers, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    async with Supervisor(name="storm", runtime_dir=place, max_workers=2 * workers) as supervisor:
        began, spent = time.monotonic(), time.process_time()
        for n in range(workers):
            await supervisor.register(
                WorkerSpec(name=f"w{n}", target="tests.targets:note_and_fail", args=(out,),
                           max_restarts=None))
        print("up", flush=True)
        await asyncio.sleep(began + seconds - time.monotonic())
        spent = time.process_time() - spent
        restarts = sum(worker.restarts for worker in supervisor.status().workers)
        print(json.dumps([spent / seconds, restarts]), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


class Figures(NamedTuple):
    """What a storm cost: shares of a second and of a wave, and seconds."""

    cpu: float
    restarts: int
    status: float
    answer: float
    crowd: float

    @property
    def are_good(self) -> bool:
        return self.cpu < 0.05 and max(self.status, self.answer) < 0.1 and self.crowd <= 1 / 3

    def __str__(self) -> str:
        return (
            f"{self.restarts} restarts of {WORKERS} workers in {SECONDS:g} s: {self.cpu:.1%} CPU of"
            f" the supervisor's process; p99 of status() {1e3 * self.status:.2f} ms, of a request"
            f" and its answer {1e3 * self.answer:.2f} ms; at most {self.crowd:.0%} of a wave in"
            " 100 ms"
        )


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_storm_of_restarts_is_cheap_answers_and_spreads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setenv("AIOBGW_TEST_LOOP", loop)
    figures = _storm(tmp_path / "first")
    print(f"\n{loop}: {figures}")
    if not figures.are_good:  # once more: others may use these processors, too
        figures = _storm(tmp_path / "second")
        print(f"{loop}: {figures}")
    assert figures.are_good, str(figures)
    assert figures.restarts >= 4 * WORKERS, "there was no storm"


def _storm(place: Path) -> Figures:
    place.mkdir()
    out = place / "out"
    arguments = (str(place / "run"), str(out), str(WORKERS), str(SECONDS))
    with (place / "tracebacks").open("w") as noise:
        host = procs.start_script(HOST, *arguments, stderr=noise)
    assert host.stdin is not None and host.stdout is not None
    with host, host.stdin, host.stdout:
        assert host.stdout.readline() == "up\n"
        status, answer = _ask(str(place / "run"), SECONDS - 1)
        cpu, restarts = json.loads(host.stdout.readline())
    return Figures(cpu, restarts, status, answer, _crowd(out.read_text()))


def _ask(place: str, seconds: float) -> tuple[float, float]:
    """Return the 99th percentiles of a look at the board, and of a request to the supervisor."""
    looks, answers = [], []
    end = time.monotonic() + seconds
    with attach_blocking(place) as client:
        while (began := time.monotonic()) < end:
            assert len(client.status().workers) == WORKERS
            looked = time.monotonic()
            with pytest.raises(AlreadyRegistered):
                client.register(REFUSED)
            looks.append(looked - began)
            answers.append(time.monotonic() - looked)
            time.sleep(EVERY)
    return _p99(looks), _p99(answers)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _crowd(lines: str) -> float:
    """Return the largest part of a wave that started within a tenth of a second."""
    starts: dict[int, list[float]] = {}
    for line in lines.splitlines():
        incarnation, moment = line.split()
        starts.setdefault(int(incarnation), []).append(float(moment))
    assert all(len(starts[wave]) == WORKERS for wave in WAVES)
    buckets = [Counter(int(moment * 10) for moment in starts[wave]) for wave in WAVES]
    return max(max(bucket.values()) for bucket in buckets) / WORKERS
