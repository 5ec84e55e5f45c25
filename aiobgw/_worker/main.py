"""What a child of the zygote does with an order: become that worker, and end like one."""

from __future__ import annotations

import os
import sys
from _pickle import dumps, loads

from .._inject import _inject
from .._ipc import launch
from .._ipc.channel import Channel
from .._ipc.latch import Latch
from ..errors import Terminated
from . import connection, context, target
from .notification import give
from .signals import Handlers, restore_defaults
from .title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .beats import Beats


# Read once, in the zygote: to look into os.environ costs a fresh process 20 page faults.
_START_DELAY = os.environ.get("AIOBGW_START_DELAY")

_IDENTITY = frozenset(
    (
        "user_group",
        "supplementary_groups",
        "umask",
        "cwd",
        "env",
        "nice",
        "cpus",
        "rlimits",
    )
)
"""The options for which a worker imports ``identity``."""


def rehearse(kind: str) -> object:
    """Carry out an order that does nothing, all the way, so that the real one finds it done.

    Most of what a fresh process spends is page faults on what it touches first.  Signals stay
    blocked.  Returns the runner of an async target, for the kinds that have one.
    """
    runner = None if kind == "plain" else target.make_runner(kind)
    here, there = Channel.pair()
    here.send(launch.pack_order(_REHEARSALS[kind != "plain"]))
    order = launch.unpack_order(there.receive(1, block=True)[0])
    handlers = _carry_out(order, [], there, -1, runner, rehearsal=True)[0]
    handlers.install()  # again: an event loop gives its handlers back
    here.receive()
    here.close()
    there.close()
    set_title("aiobgw: spare")
    return runner


def _nothing() -> None:
    """Be the target of a rehearsal."""


async def _nothing_async() -> None:
    """Be the target of a rehearsal in an event loop."""


_REHEARSALS: list[dict[str, Any]] = [
    {
        "supervisor": "",
        "epoch": 2**62,
        "slot": 0,
        "generation": 1,
        "incarnation": 1,
        "spec": {
            "name": "",
            "type": "",
            "extra": b"",
            "flags": 0,
            "start_when": 0,
            "restart": "",
            "restart_delay": 1.0,
            "stop_timeout": 1.0,
            "crash_scope": "",
            "unique": False,
            "command": False,
            "user": None,
            "target": f"{__name__}:{function.__name__}",
            "main": None,
            "loop": "",
            "options": {},
        },
        "payload": dumps(((), {})),
        "client": False,
        "stacks": False,
        "latches": [],
        "connector": None,
        "cgroup": None,
        "environ": {},
    }
    for function in (_nothing, _nothing_async)
]


def main(
    order: dict[str, Any], fds: list[int], channel: Channel, lifeline: int, prepared: Any
) -> NoReturn:
    """Carry out an order; does not return."""
    handlers, code, text = _carry_out(order, fds, channel, lifeline, prepared)
    _end(context.current_worker(), code, text, handlers, channel)


def _carry_out(
    order: dict[str, Any],
    fds: list[int],
    channel: Channel,
    lifeline: int,
    runner: Any,
    *,
    rehearsal: bool = False,
) -> tuple[Handlers, int, str]:
    """Become the worker of an order, call its target; return exit code and error text."""
    fields = order["spec"]
    payload = _payload(order, fds)
    client_fd = fds.pop(0) if order["client"] else -1
    stacks = fds.pop(0) if order["stacks"] else -1
    beats = _watched(channel, stacks, fields["options"].get("watchdog"))
    entrance = fds.pop(0) if order["cgroup"] == "" else -1
    number = fields["options"].get("notification_fd")
    notification = None if number is None else (fds.pop(0), number)
    latches = {name: Latch.adopt(fd) for name, fd in zip(order["latches"], fds, strict=True)}
    if order["environ"] or not _is_as_it_shall_be(order):
        _become(order, entrance, channel, lifeline)
    if fields["command"]:
        words = os.fsdecode(payload).split("\0")
        _execute(words, channel, lifeline, notification)

    set_title(f"aiobgw: {order['supervisor']} worker {fields['name']}")
    worker = context.CurrentWorker(order, channel, latches, client_fd)
    if order["connector"] is not None:
        worker.database = connection.Database(worker, order["connector"])
    worker.beats = beats
    context.become(worker)
    handlers = Handlers(worker, rehearsal=rehearsal, keep_core="core" in _rlimits(fields))
    handlers.install()
    code, text = _run(worker, handlers, fields, payload, runner, channel)
    return handlers, code, text


def _watched(channel: Channel, stacks: int, watchdog: float | None) -> Beats | None:
    """Be ready for a watchdog, if there is one for a target; else nothing of it is imported.

    Ordering: before rights are dropped, with which these modules may not be readable any more.
    """
    if stacks < 0 or watchdog is None:
        return None
    from .beats import Beats
    from .stacks import show_stacks

    show_stacks(stacks)
    return Beats(channel, watchdog)


def _payload(order: dict[str, Any], fds: list[int]) -> bytes:
    """Return the pickled arguments, from the order or from the memfd that came with it."""
    inline: bytes | None = order["payload"]
    if inline is not None:
        return inline
    fd = fds.pop(0)
    with open(fd, "rb", closefd=True) as file:
        os.lseek(fd, 0, os.SEEK_SET)  # the offset is shared by all incarnations
        return file.read()


def _run(
    worker: context.CurrentWorker,
    handlers: Handlers,
    fields: dict[str, Any],
    payload: bytes,
    runner: Any,
    channel: Channel,
) -> tuple[int, str]:
    """Import the target and call it; return the exit code and the error as text."""
    try:
        try:
            handlers.open_all()
            _delay(handlers.rehearsal)
            function, args, kwargs = _prepare(fields, payload)
            is_async = target.is_async(function)

            def begin() -> Any:
                if not handlers.rehearsal:
                    _inject("before_started")
                # Race: what the handler raised may have been lost, in an import for example.
                if worker.stop_requested:
                    raise Terminated
                _say_started(channel, is_async)
                return function(*args, **kwargs)

            _call(worker, begin, is_async, fields["loop"], runner, handlers)
            _join_threads()
        finally:
            handlers.shut()
    except BaseException as error:
        return _meaning(error, worker)
    return 0, ""


def _prepare(fields: dict[str, Any], payload: bytes) -> tuple[Callable[..., Any], Any, Any]:
    """Import what the target needs, in this order: pickles may name the script's classes."""
    if fields["main"] is not None:
        target.load_main(fields["main"])
    function = target.find(fields["target"])
    args, kwargs = loads(payload) if payload else ((), {})
    return function, args, kwargs


def _call(
    worker: context.CurrentWorker,
    begin: Callable[[], Any],
    is_async: bool,
    kind: str,
    runner: Any,
    handlers: Handlers,
) -> None:
    if not is_async:
        if worker.database is not None:
            worker.database.open()
        result = begin()
        if not hasattr(result, "__await__"):
            return

        # A plain function that returned a coroutine.
        def begin() -> Any:
            return result

    target.run_async(worker, begin, runner or target.make_runner(kind), handlers)


def _say_started(channel: Channel, is_async: bool) -> None:
    try:
        channel.send(launch.started(is_async), block=True)
    except OSError:
        os._exit(0)  # this launch was dropped: nobody would know of it


def _delay(rehearsal: bool) -> None:
    """Wait for a debugger to be attached, if the environment says so."""
    if _START_DELAY and not rehearsal:
        import time

        print(f"aiobgw: pid {os.getpid()} starts in {_START_DELAY} s", file=sys.stderr, flush=True)
        time.sleep(float(_START_DELAY))


def _meaning(error: BaseException, worker: context.CurrentWorker) -> tuple[int, str]:
    """Return the exit code for an exception, and its text for whoever waits."""
    if isinstance(error, Terminated) or (
        worker.stop_requested and type(error).__name__ == "CancelledError"
    ):
        return 1, ""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF, ""
        return 1, str(error.code)

    import traceback

    text = "".join(traceback.format_exception(error))
    print(text, file=sys.stderr, end="", flush=True)
    return 1, text


def _join_threads() -> None:
    """Wait for threads that are no daemons, as an interpreter does at its end."""
    threading = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()


def _end(
    worker: context.CurrentWorker, code: int, text: str, handlers: Handlers, channel: Channel
) -> NoReturn:
    """Leave without finalising the interpreter, but not without what users rely on."""
    handlers.shut()  # again: the first time may have been interrupted
    if worker.database is not None:
        worker.database.close()
    atexit = sys.modules.get("atexit")
    try:
        if atexit is not None:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        code = code or 1
        text = text or f"{type(error).__name__}: {error}"
    _inject("before_farewell")
    try:
        # Waits for room if it must: without its farewell a member would count as crashed.
        channel.send(launch.farewell(code, text), block=True)
    except OSError:
        pass  # nobody listens; the code is all there is
    os._exit(code)


def _is_as_it_shall_be(order: dict[str, Any]) -> bool:
    """Tell whether nothing is asked for but what every child of the zygote has."""
    fields = order["spec"]
    return (
        fields["user"] is None
        and order["cgroup"] is None
        and _IDENTITY.isdisjoint(fields["options"])
    )


def _rlimits(fields: dict[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = fields["options"].get("rlimits", {})
    return limits


def _become(order: dict[str, Any], entrance: int, channel: Channel, lifeline: int) -> None:
    """Get identity and limits; whatever goes wrong, nothing of the worker runs."""
    if order["cgroup"]:
        _fail(channel, order["cgroup"])
    try:
        if not _is_as_it_shall_be(order):
            from .identity import become

            become(order, entrance, lifeline)
        os.environ.update(order["environ"])
        if "WATCHDOG_USEC" in order["environ"]:
            os.environ["WATCHDOG_PID"] = str(os.getpid())
    except BaseException as error:
        _fail(channel, str(error) if type(error).__name__ == "Refused" else repr(error))


def _execute(
    command: list[str],
    channel: Channel,
    lifeline: int,
    notification: tuple[int, int] | None,
) -> NoReturn:
    """Become the command; the channel closes itself then, which says that it worked."""
    try:
        if notification is not None:
            channel, lifeline = give(*notification, channel, lifeline)
        # The program keeps the armed lifeline, unless it closes what it does not know.
        os.set_inheritable(lifeline, True)
        restore_defaults()
        os.execvp(command[0], command)
    except BaseException as error:
        _fail(channel, f"{command[0]}: {error}")


def _fail(channel: Channel, why: str) -> NoReturn:
    try:
        channel.send(launch.failed(0, why))
    finally:
        os._exit(127)
