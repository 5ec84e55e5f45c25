"""What clients of a supervisor get: ``python -m benchmarks.register [--quick]``.

register      from the call to the handle, in a client of an idle supervisor: ``await
              client.register()``, and the blocking client's ``register()``.
wake-up       from a change in the supervisor's process (``terminate()`` of a worker there) to
              the client running again, which waited for it: the coroutine, and the plain code.
registrations per second, by 1, 4 and 16 client processes, each 4 at a time, which end each
              worker right after they have its handle; and what the supervisor's process spends
              on one (register, terminate and unwatch: three messages), in CPU time.

Workers are not what is measured: they are gated, and never start (so that the supervisors here
need not count descriptors for them).  Everything is measured with
few slots, with many, and with many of which nearly all are taken; ratios are to few slots, in
the same round.  Few are 8; 4 and 16 clients need 128.

A supervisor holds a client back that asks too much (``aiobgw/_supervisor/peers.py``): here that
limit is lifted, except in the row that tells what it allows.

Not measured: arguments of size, latches, clients that follow events, many waiters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from aiobgw import attach, attach_blocking

from .measure import Samples, loop_factory, rotated, table
from .register_client import GATED

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = f"{__package__}.register_client"

FEW, ENOUGH, MANY = 8, 128, 10_000
CLIENTS = (1, 4, 16)
AT_ONCE = 4
PER_CLIENT = 2 * AT_ONCE
"""Slots that a client needs: a worker that it ended may hold its slot when the next one comes."""

PAUSE = 0.001
HEAD_START = 0.005
"""What a client gets to begin its wait, before the change that it waits for."""

SPEND_BURST = 2.0
"""Seconds after which a client has used up what it may ask for at once."""

GROWTH = 1.15
LATENCIES = ("register", "blocking", "wake-up", "bl. wake-up")


class Process:
    """One of the other processes, which does what it is told."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", PROCESSES, *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def tell(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return its next answer; blocks, and is called only where nothing is measured."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended: {self._process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: object) -> dict[str, Any]:
        self.tell(**command)
        return self.answer()

    def __enter__(self) -> Process:
        self.answer()  # it is up
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)  # ends its stdin, and waits


@dataclass(frozen=True, slots=True)
class Setting:
    """A supervisor: its slots, how many of them are taken, and whether it limits its clients."""

    name: str
    directory: str
    slots: int
    taken: int = 0
    limited: bool = False

    def start(self, loop: str) -> Process:
        limits = "limited" if self.limited else "unlimited"
        return Process("supervisor", loop, self.directory, str(self.slots), limits)

    def has_room_for(self, clients: int) -> bool:
        return self.slots - self.taken >= clients * PER_CLIENT


Supervisors = dict[Setting, Process]


def settings(folder: str, many: int) -> list[Setting]:
    def make(name: str, *values: int, limited: bool = False) -> Setting:
        return Setting(name, os.path.join(folder, str(len(made))), *values, limited=limited)

    made: list[Setting] = []
    made.append(make(f"{FEW} slots", FEW))
    made.append(make(f"{ENOUGH} slots", ENOUGH))
    made.append(make(f"{many:,} slots", many))
    made.append(make(f"{many:,} slots, all but {ENOUGH} taken", many, many - ENOUGH))
    made.append(make(f"{ENOUGH} slots, limits as they are", ENOUGH, limited=True))
    return made


# Latencies, of a client in this process.


def seconds_since(began_ns: int, now_ns: int) -> float:
    return (now_ns - began_ns) / 1e9


async def latencies(setting: Setting, process: Process, count: int, into: Samples) -> None:
    """Add a round of the async client."""
    registers, wakes = [], []
    async with attach(setting.directory) as client:
        for number in range(-3, count):
            await asyncio.sleep(PAUSE)
            began = time.monotonic_ns()
            handle = await client.register(GATED)
            took = seconds_since(began, time.monotonic_ns())
            process.tell(end=handle.token, after=HEAD_START)
            await handle.wait_for_shutdown()
            woken = time.monotonic_ns()
            changed = process.answer()["began"]
            if number >= 0:
                registers.append(took)
                wakes.append(seconds_since(changed, woken))
    into.add(setting.name, "register", registers)
    into.add(setting.name, "wake-up", wakes)


def blocking_latencies(setting: Setting, process: Process, count: int, into: Samples) -> None:
    """Add a round of the blocking client."""
    registers, wakes = [], []
    with attach_blocking(setting.directory) as client:
        for number in range(-3, count):
            time.sleep(PAUSE)
            began = time.monotonic_ns()
            handle = client.register(GATED)
            took = seconds_since(began, time.monotonic_ns())
            process.tell(end=handle.token, after=HEAD_START)
            handle.wait_for_shutdown()
            woken = time.monotonic_ns()
            changed = process.answer()["began"]
            if number >= 0:
                registers.append(took)
                wakes.append(seconds_since(changed, woken))
    into.add(setting.name, "blocking", registers)
    into.add(setting.name, "bl. wake-up", wakes)


# Registrations per second, of clients in processes of their own.


class Rate(NamedTuple):
    """Registrations per second, and the supervisor's CPU seconds for each."""

    per_second: float
    cpu: float


Rates = dict[tuple[str, int], list[Rate]]


def rate(
    setting: Setting, process: Process, clients: Sequence[Process], options: argparse.Namespace
) -> Rate:
    for client in clients:
        client.ask(directory=setting.directory)
    begin = time.monotonic() + (options.spend_burst if setting.limited else options.seconds / 4)
    end = begin + options.seconds
    for client in clients:
        client.tell(begin=begin, end=end, at_once=AT_ONCE)
    time.sleep(begin - time.monotonic())
    before = process.ask()["cpu"]
    time.sleep(max(0.0, end - time.monotonic()))
    spent = process.ask()["cpu"] - before
    count = sum(client.answer()["count"] for client in clients)
    return Rate(count / options.seconds, spent / max(1, count))


# Everything.


def run(options: argparse.Namespace) -> tuple[list[Setting], Samples, Rates]:
    """Measure everything, round by round."""
    samples, rates = Samples(), Rates()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiobgw-bench-"))
        chosen = settings(folder, options.slots)
        supervisors = {one: stack.enter_context(one.start(options.loop)) for one in chosen}
        for setting, process in supervisors.items():
            process.ask(fill=setting.taken)
        started = [Process("client", options.loop) for _ in range(max(CLIENTS))]
        clients = [stack.enter_context(one) for one in started]
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory(options.loop)))

        idle = [one for one in chosen if not one.limited]
        for number in range(options.rounds):
            for one in rotated(idle, number):
                runner.run(latencies(one, supervisors[one], options.samples, samples))
                blocking_latencies(one, supervisors[one], options.samples, samples)
            for count in CLIENTS:
                for one in rotated([one for one in chosen if one.has_room_for(count)], number):
                    found = rate(one, supervisors[one], clients[:count], options)
                    rates.setdefault((one.name, count), []).append(found)
    return chosen, samples, rates


# Telling.


def header(options: argparse.Namespace) -> str:
    return (
        f"Python {platform.python_version()}, {options.loop}, Linux {platform.release()},"
        f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n"
        f"{options.rounds} rounds, interleaved, of {options.samples} samples, and of"
        f" {options.seconds} s for rates; medians over rounds.\n"
        f"Rates: {AT_ONCE} at a time in each client; the limits of clients are lifted in the"
        f" supervisor's process, but in the last row.\n"
        f"ratio: to the fewest slots in the column, in the same round.\n"
    )


def ratio(rates: Rates, name: str, base: str, count: int, of: Callable[[Rate], float]) -> float:
    pairs = zip(rates[name, count], rates[base, count], strict=True)
    return median(of(one) / of(other) for one, other in pairs)


def base_of(chosen: Sequence[Setting], clients: int) -> str:
    return next(one.name for one in chosen if one.has_room_for(clients))


def per_second(one: Rate) -> float:
    return one.per_second


def cpu(one: Rate) -> float:
    return one.cpu


def rates_table(chosen: Sequence[Setting], rates: Rates) -> str:
    """Return the rates as text: registrations per second, CPU us for each, and ratios."""
    width = max(len(one.name) for one in chosen)
    title = "registrations/s"
    columns = [f"{count} client{'s' * (count > 1)}" for count in CLIENTS]
    head = f"{title:{width}}" + "".join(
        f" | {name:>10} {'ratio':>6} {'cpu us':>6} {'ratio':>6}" for name in columns
    )
    lines = [head, "-" * len(head)]
    for one in chosen:
        cells = []
        for count in CLIENTS:
            if (one.name, count) not in rates:
                cells.append(f"{'-':>10} {'-':>6} {'-':>6} {'-':>6}")
                continue
            found, base = rates[one.name, count], base_of(chosen, count)
            cells.append(
                f"{median(map(per_second, found)):10,.0f}"
                f" {ratio(rates, one.name, base, count, per_second):6.2f}"
                f" {median(map(cpu, found)) * 1e6:6,.0f}"
                f" {ratio(rates, one.name, base, count, cpu):6.2f}"
            )
        lines.append(f"{one.name:{width}}" + "".join(f" | {cell}" for cell in cells))
    return "\n".join(lines)


def growth(chosen: Sequence[Setting], samples: Samples, rates: Rates) -> dict[str, float]:
    """Return what gets more with the slots, as ratios; 1 is no growth."""
    few, _, many, full, _ = [one.name for one in chosen]
    found: dict[str, float] = {}
    for name in (many, full):
        for metric in LATENCIES:
            figure = samples.figure(name, metric, (few, metric))
            assert figure is not None
            found[f"{metric}: {name}"] = figure.ratio
        for count in CLIENTS:
            base = base_of(chosen, count)
            label = f"time per registration, {count} clients: {name}"
            found[label] = 1 / ratio(rates, name, base, count, per_second)
    return found


def report(
    chosen: Sequence[Setting], samples: Samples, rates: Rates, options: argparse.Namespace
) -> None:
    rows = {
        one.name: [samples.figure(one.name, m, (chosen[0].name, m)) for m in LATENCIES]
        for one in chosen
        if not one.limited
    }
    print(table(rows, LATENCIES), end="\n\n")
    print(rates_table(chosen, rates), end="\n\n")
    print(f"Goal: nothing grows with the slots (up to {GROWTH} is noise):")
    grown = growth(chosen, samples, rates)
    for name, value in grown.items():
        print(f"  {name:70} {value:5.2f} x   {'met' if value <= GROWTH else 'MISSED'}")
    if options.json:
        found = {
            "latencies": {
                name: {m: f._asdict() for m, f in zip(LATENCIES, figures, strict=True) if f}
                for name, figures in rows.items()
            },
            "rates": [
                {"name": name, "clients": count, "rounds": [one._asdict() for one in found]}
                for (name, count), found in rates.items()
            ],
            "growth": grown,
        }
        Path(options.json).write_text(json.dumps({"loop": options.loop, **found}, indent=1))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.register", description="what clients get")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=100, help="per round and setting")
    parser.add_argument("--seconds", type=float, default=1.0, help="per round and rate")
    parser.add_argument("--slots", type=int, default=MANY, help="how many are many")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 10 and 0.2 s, for CI")
    options = parser.parse_args(words)
    options.spend_burst = SPEND_BURST
    if options.quick:
        options.rounds, options.samples, options.seconds, options.spend_burst = 2, 10, 0.2, 0.2
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = _arguments(words)
    print(header(options), flush=True)
    report(*run(options), options)


if __name__ == "__main__":
    main()
