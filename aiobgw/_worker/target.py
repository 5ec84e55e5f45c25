"""Find the target by its name, and call it, plain or async.

The main script of whoever registered is loaded as multiprocessing does it: under the name
``__mp_main__``, so that its ``if __name__ == "__main__":`` part does not run again, and
known as ``__main__``, too, so that pickled arguments find their classes.
"""

from __future__ import annotations

import sys
from _signal import SIGTERM, SIGUSR1
from importlib import import_module

from .context import CurrentWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from .signals import Handlers

_CO_COROUTINE = 0x80


def load_main(main: str) -> None:
    """Load a script ("path:FILE") or a module run with -m ("module:NAME")."""
    import runpy
    import types

    kind, _, where = main.partition(":")
    run = runpy.run_path if kind == "path" else runpy.run_module
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(run(where, run_name="__mp_main__"))
    module.__dict__["__name__"] = "__mp_main__"
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def find(name: str) -> Callable[..., Any]:
    """Import "pkg.mod:func"."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module) or import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    target: Callable[..., Any] = found
    return target


def is_async(target: Callable[..., Any]) -> bool:
    """Tell a coroutine function by its code; ``inspect`` would cost 5 ms to import."""
    code = getattr(getattr(target, "__func__", target), "__code__", None)
    return bool(code is not None and code.co_flags & _CO_COROUTINE)


def make_runner(kind: str) -> asyncio.Runner:
    """Make what an async target runs in."""
    import asyncio

    return asyncio.Runner(loop_factory=_loop_factory(kind))


def _loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    import asyncio

    return asyncio.new_event_loop


def run_async(
    worker: CurrentWorker,
    begin: Callable[[], Any],
    runner: asyncio.Runner,
    handlers: Handlers,
) -> None:
    """Run a target in an event loop; *begin* calls it and returns its coroutine."""
    # Race: what the plain handler raises inside a loop that is not yet run is lost, or leaves
    # a mess.  From here until the loop's own handler stands, SIGTERM waits.
    handlers.shut_term()
    try:
        runner.run(_main(worker, begin, handlers))
    finally:
        if not handlers.rehearsal and _has_something_left(runner.get_loop()):
            runner.close()


def _has_something_left(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether closing the loop would do more than what ``os._exit`` does anyway."""
    import asyncio

    nothing = (
        getattr(loop, "_default_executor", loop) is None
        and not getattr(loop, "_asyncgens", True)
        and not asyncio.all_tasks(loop)
    )
    return not nothing


async def _main(worker: CurrentWorker, begin: Callable[[], Any], handlers: Handlers) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    task = worker.main_task = asyncio.current_task()
    assert task is not None
    cancelled = over = False

    def on_term() -> None:
        # Once: a second SIGTERM must not cancel the target's cleanup again.
        nonlocal cancelled
        main_waits = worker.request_stop()
        if not cancelled and not main_waits and not over:
            cancelled = True
            task.cancel()

    loop.add_signal_handler(SIGTERM, on_term)
    loop.add_signal_handler(SIGUSR1, worker.wake)
    handlers.open_term()
    try:
        if worker.database is not None:
            await worker.database.open_async()
        if worker.beats is not None:
            worker.beats.come_from(loop)
        await begin()
    finally:
        # The loop gives its handlers back, which leaves SIGTERM deadly: it is over anyway.
        handlers.shut_term()
        over = True
        if worker.database is not None:
            await worker.database.close_async()
