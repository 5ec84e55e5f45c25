"""How long a start takes, and a whole life: ``python -m benchmarks.launch [--quick]``.

Three columns, all seen by a coroutine of an asyncio host:

start        ``await register()``, ``await handle.wait_for_startup()``: the caller knows that the
             target's first line is next.  Peers have no such thing; theirs is the first line.
first line   the cross check: the target's first line writes a byte into a FIFO, and the caller,
             who waits for it with ``add_reader``, has been resumed.
round trip   the target returns at once, and the caller knows how it ended
             (``wait_for_shutdown``; peers: the sentinel by ``add_reader``, then ``join``).

Everything is measured in one run, a block of samples each per round, and the ratios are to
multiprocessing's fork in the same round.  A supervisor is entered for its block only: nobody
else's forks inherit its descriptors, nor share the machine with its spares.  Specs are made
beforehand; multiprocessing's Process objects, which serve once, within the measure.  What the
peers are given is told in ``contenders``.

Not measured: throughput, starts at once, arguments of size, imports of the target, a host
with a large heap, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from .contenders import CONTENDERS, PAUSE, Begin, Contender, best_case, settle
from .measure import Figure, Samples, loop_factory, rotated, table

WARM_UP = 8
COLUMNS = ("start", "first line", "round trip")
BASE = "multiprocessing fork"


# Measuring.


class Bell:
    """A FIFO in which a target's first line rings."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] = self._loop.create_future()
        # Open for writing, too: else the end of its last writer would be seen for ever.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._fd, self._read)

    def arm(self) -> asyncio.Future[None]:
        """Return what is done at the next ring."""
        self._rung = self._loop.create_future()
        return self._rung

    def _read(self) -> None:
        os.read(self._fd, 64)
        settle(self._rung)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


async def first_line(begin: Begin, bell: Bell) -> float:
    """Return the time from the request to the ring; the worker is over afterwards."""
    rung = bell.arm()
    began = perf_counter()
    worker = await begin(bell.path)
    await rung
    took = perf_counter() - began
    await worker.wait_for_shutdown()
    return took


async def round_trip(begin: Begin) -> tuple[float, float]:
    """Return the times from the request to the start, and to the end."""
    began = perf_counter()
    worker = await begin(None)
    await worker.wait_for_startup()
    started = perf_counter()
    await worker.wait_for_shutdown()
    return started - began, perf_counter() - began


async def measure(contender: Contender, count: int, bell: Bell, into: Samples) -> None:
    """Add a round of one contender."""
    lines: list[float] = []
    lives: list[tuple[float, float]] = []
    async with contender.entered(bell.path) as begin:
        for number in range(-WARM_UP if contender.share == 1.0 else -1, count):
            line = await first_line(begin, bell)
            await asyncio.sleep(contender.pause)
            life = await round_trip(begin)
            await asyncio.sleep(contender.pause)
            if number >= 0:
                lines.append(line)
                lives.append(life)
    into.add(contender.name, "first line", lines)
    into.add(contender.name, "round trip", [over for _, over in lives])
    into.add(contender.name, "start", [s for s, _ in lives] if contender.knows_start else lines)


async def run(rounds: int, count: int) -> Samples:
    """Measure everybody, round by round."""
    samples = Samples()
    with best_case(), tempfile.TemporaryDirectory(prefix="aiobgw-bench-") as folder:
        bell = Bell(Path(folder) / "bell")
        for number in range(rounds):
            for contender in rotated(CONTENDERS, number):
                await measure(contender, max(2, round(count * contender.share)), bell, samples)
        bell.close()
    return samples


# Telling.

GOALS = (
    ("spares=4, plain: start < 0.5 ms", "aiobgw spares=4, plain", "median", 500e-6),
    ("spares=4, async: start < 1 ms", "aiobgw spares=4, async", "median", 1e-3),
    ("spares=0, plain: start no slower than fork", "aiobgw spares=0, plain", "ratio", 1.0),
    ("spares=0, lean: start no slower than fork", "aiobgw spares=0, plain, lean", "ratio", 1.0),
)


def header(options: argparse.Namespace) -> str:
    return (
        f"Python {platform.python_version()}, {options.loop}, Linux {platform.release()},"
        f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n"
        f"{options.rounds} rounds of {options.samples} samples (spawn and subprocess: fewer),"
        f" interleaved; medians over rounds.\n"
        f"After each sample {PAUSE * 1000:.0f} ms of pause, in which spares are refilled;"
        f" 'back to back': none.\n"
        f"ratio: to {BASE} in the same round.  lean: preload_asyncio=False.\n"
    )


def goals(rows: dict[str, list[Figure | None]]) -> str:
    lines = ["", "Goals:"]
    for text, name, field, limit in GOALS:
        figure = rows[name][0]
        assert figure is not None
        value: float = getattr(figure, field)
        shown = f"{value:.2f} x" if field == "ratio" else f"{value * 1e6:,.0f} us"
        lines.append(f"  {text:45} {shown:>10}   {'met' if value <= limit else 'MISSED'}")
    return "\n".join(lines)


def report(samples: Samples, options: argparse.Namespace) -> None:
    rows = {
        contender.name: [samples.figure(contender.name, c, (BASE, c)) for c in COLUMNS]
        for contender in CONTENDERS
    }
    print(table(rows, COLUMNS))
    print(goals(rows))
    if options.json:
        found = {
            name: {c: f._asdict() for c, f in zip(COLUMNS, figures, strict=True) if f is not None}
            for name, figures in rows.items()
        }
        Path(options.json).write_text(json.dumps({"loop": options.loop, "rows": found}, indent=1))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.launch", description="starts and lives")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=60, help="per round and contender")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 10, for CI")
    options = parser.parse_args(words)
    if options.quick:
        options.rounds, options.samples = 2, 10
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = _arguments(words)
    print(header(options), flush=True)
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        samples = runner.run(run(options.rounds, options.samples))
    report(samples, options)


if __name__ == "__main__":
    main()
