"""The supervisors of one test, or of a session: makes them, and ends them in their own loops.

Ownership: every supervisor that ``make`` has returned is the maker's to end.

The end is run from plain code in the idle loop, not by an async fixture: what runs those (a
task, in anyio) may still be held by a test that timed out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .._supervisor import census
from .._supervisor.supervisor import Supervisor
from ..errors import SupervisorDied, SupervisorFailed
from ..spec import ShutdownMode, WorkerSpec
from ._pytest_names import unique_name
from ._pytest_report import Record, Telling

PRELOAD = ("aiobgw.integrations._pytest_preload",)
PATIENCE = ((ShutdownMode.FAST, 20.0), (ShutdownMode.IMMEDIATE, 10.0))
END_TIMEOUT = sum(seconds for _, seconds in PATIENCE) + 10.0


class Maker:
    """Makes supervisors for one scope; *loop* is the one in which its tests run, if known."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop | None,
        *,
        many_tests: bool = False,
    ) -> None:
        self._many_tests = many_tests
        self.loop = loop
        self._name = name
        self._options = options
        self._numbers = 0
        self._made: list[tuple[Supervisor, asyncio.AbstractEventLoop]] = []
        self._static: dict[int, set[int]] = {}
        self._records: list[Record] = []

    async def make(self, *specs: WorkerSpec, **options: Any) -> Supervisor:
        """Start a supervisor, which is shut down (FAST) at the end of the scope.

        *specs* are added before its start.  Do not enter it: it is entered.
        """
        supervisor = Supervisor(**self._complete(options))
        # Ordering: before the first worker, so that the record misses none.
        record = Record(supervisor)
        for spec in specs:
            supervisor.add(spec)
        await supervisor.__aenter__()
        self._made.append((supervisor, asyncio.get_running_loop()))
        self._static[supervisor.epoch] = {one.generation for one in supervisor.handles()}
        self._records.append(record)
        return supervisor

    def make_now(self) -> Supervisor:
        """Start one in the loop of the tests, which is idle."""
        assert self.loop is not None
        return self.loop.run_until_complete(self.make())

    def _complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        self._numbers += 1
        defaults = {"name": unique_name(self._name, self._numbers), "spares": 0}
        whole = {**defaults, **self._options, **options}
        preload = whole.get("preload", ())
        if isinstance(preload, (list, tuple)):  # anything else is refused by the supervisor
            whole["preload"] = (*preload, *PRELOAD, *_found("aiobgw.testing.inside"))
        return whole

    def all_was_told(self) -> None:
        """Have reports begin anew, for the next test of the session."""
        for record in self._records:
            record.all_was_told()

    def report(self, *, only_failed: bool = False) -> str:
        """Return what workers did, or only who failed since the last report."""
        whole = Telling.RECENT if self._many_tests else Telling.ALL
        telling = Telling.FAILED if only_failed else whole
        texts = [record.text(telling) for record in self._records]
        self.all_was_told()
        return "\n".join(filter(None, texts))

    def static_workers(self) -> dict[int, set[int]]:
        """Return the generations of the workers that came with each supervisor, by its epoch."""
        return self._static

    def close(self) -> list[SupervisorFailed]:
        """End them all; return why some have given up of which nobody was told."""
        made, self._made = self._made, []
        try:
            for loop in dict.fromkeys(loop for _, loop in made):
                _end_in(loop, [supervisor for supervisor, home in made if home is loop])
        finally:
            failures = [census.unheard_failure(supervisor) for supervisor, _ in made]
            for supervisor, _ in made:
                census.end(census.core_of(supervisor))  # whoever is still there
            for record in self._records:
                record.close()
        return [failure for failure in failures if failure is not None]


def spec_of(target: Any, args: tuple[Any, ...], fields: dict[str, Any]) -> WorkerSpec:
    """Return the spec of a worker; its name is what it runs, unless it is given."""
    if args:
        fields = {**fields, "args": args}
    if isinstance(target, WorkerSpec):
        return replace(target, **fields)
    return WorkerSpec(**{"name": _name_of(target, fields), "target": target, **fields})


def _name_of(target: Any, fields: dict[str, Any]) -> str:
    if target is None and fields.get("command"):
        return os.path.basename(str(fields["command"][0]))
    return str(getattr(target, "__name__", target)).rpartition(":")[2]


def _found(module: str) -> tuple[str, ...]:
    from importlib.util import find_spec

    return (module,) if find_spec(module) is not None else ()


def _end_in(loop: asyncio.AbstractEventLoop, supervisors: list[Supervisor]) -> None:
    """Shut them down in their loop; one that is closed leaves it to the kernel."""
    if loop.is_closed():
        return
    if not loop.is_running():
        loop.run_until_complete(_end(supervisors))
        return
    there = asyncio.run_coroutine_threadsafe(_end(supervisors), loop)
    try:
        there.result(END_TIMEOUT)
    except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
        pass  # that loop is stuck, or was ended meanwhile


async def _end(supervisors: list[Supervisor]) -> None:
    endings = [_end_one(supervisor) for supervisor in supervisors]
    for error in await asyncio.gather(*endings, return_exceptions=True):
        if error is not None:
            raise error


async def _end_one(supervisor: Supervisor) -> None:
    for mode, seconds in PATIENCE:
        try:
            async with asyncio.timeout(seconds):
                await supervisor.shutdown(mode)
            return
        except TimeoutError:
            continue
        except SupervisorDied:
            return  # the test has abandoned it
