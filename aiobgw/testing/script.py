"""The test's side of scripted workers: what they are told, and what they answer."""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, final

from .._ipc.channel import BrokenMessage, Channel
from .._ipc.rundir import peer_of
from ..spec import WorkerSpec
from . import wire
from .scripted import RETURN

_TARGETS = {"plain": "run", "async": "run_async"}


@final
class Script:
    """An async context manager: scripted workers do what the test tells them.

        async with Script() as script:
            handle = await supervisor.register(script.spec("w", restart=Restart.ALWAYS))
            first = await script.wait_for_incarnation()
            first.exit(3)
            second = await script.wait_for_incarnation()

    One Script serves any number of workers.  Leaving it lets those return that still run.
    Only workers with the test's own uid are heard.  It belongs to one event loop; entering and
    leaving may happen in different tasks.
    """

    def __init__(self) -> None:
        self._address = f"\0aiobgw/script/{os.getpid()}-{secrets.token_hex(8)}"
        self._listener: socket.socket | None = None
        self._incarnations: list[Incarnation] = []
        self._unclaimed: list[Incarnation] = []
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._listener = wire.listen(self._address)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for incarnation in self._incarnations:
            incarnation._end()
        self._incarnations.clear()

    def spec(
        self, name: str = "scripted", *, kind: Literal["plain", "async"] = "plain", **fields: Any
    ) -> WorkerSpec:
        """Return the spec of a worker that this script tells what to do.

        *fields* are those of WorkerSpec; the target, plain or async, and its arguments are set.
        """
        target = f"aiobgw.testing.scripted:{_TARGETS[kind]}"
        return WorkerSpec(name=name, target=target, args=(self._address,), **fields)

    async def wait_for_incarnation(self, name: str | None = None) -> Incarnation:
        """Wait for the next incarnation, of the worker of that *name* if one is given.

        Each is returned once, also if it has ended meanwhile.
        """
        while True:
            for incarnation in self._unclaimed:
                if name in (None, incarnation.name):
                    self._unclaimed.remove(incarnation)
                    return incarnation
            self._arrived.clear()
            await self._arrived.wait()

    # Called by the loop.

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone away again
        if peer_of(connection)[1] != os.geteuid():
            connection.close()
            return
        self._incarnations.append(Incarnation(self._loop, Channel(connection), self._began))

    def _began(self, incarnation: Incarnation) -> None:
        self._unclaimed.append(incarnation)
        self._arrived.set()


class _Answer(NamedTuple):
    """What a request waits for; ``ends``: the worker's end is as good an answer."""

    future: asyncio.Future[Any]
    ends: bool


@final
class Incarnation:
    """One incarnation of a scripted worker.

    A request is sent at the call, which is plain; what it returns can be awaited, and is done
    when the worker has done it.  What ends the incarnation is best not awaited:

        incarnation.exit(3)
        exit = await handle.wait_for_exit()

    since after its end the next incarnation may have begun.  What cannot be done raises here what
    was raised there.  If the worker ends before it has answered, ConnectionResetError is raised,
    but for those requests that end it.  A request whose waiting is cancelled is done all the
    same.  Requests and answers may have 32 KiB.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        began: Callable[[Incarnation], None],
    ) -> None:
        self.name = ""
        self.incarnation = 0
        self.pid = 0
        self._loop = loop
        self._channel = channel
        self._began = began
        self._expected: deque[_Answer] = deque()
        self._is_over = False
        loop.add_reader(channel.fd, self._take)

    def say(
        self, text: str, stream: Literal["stdout", "stderr"] = "stdout"
    ) -> asyncio.Future[None]:
        """Have it write a line to its output, and flush it."""
        return self._ask("say", text, stream)

    def ready(self) -> asyncio.Future[None]:
        """Have it say that it is ready."""
        return self._ask("ready")

    def set_latch(self, name: str) -> asyncio.Future[None]:
        """Have it set one of the latches in its spec."""
        return self._ask("set_latch", name)

    def call(
        self, target: str | Callable[..., Any], *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """Have it call a function ("pkg.mod:func", or one of a module); gives the result.

        In an async worker a coroutine function is awaited.  Arguments, result and error are
        pickled; the worker's traceback comes as a note of the error.
        """
        return self._ask("call", target, *args, **kwargs)

    def return_(self) -> asyncio.Future[None]:
        """Have the target return: CLEAN."""
        return self._send(RETURN, ends=True)

    def raise_(self, error: BaseException) -> asyncio.Future[None]:
        """Have the target raise *error*: FAILED."""
        return self._send(pickle.dumps(("raise_", (error,), {})), ends=True)

    def exit(self, code: int) -> asyncio.Future[None]:
        """Have it call ``os._exit``: no farewell, no clean-up."""
        return self._send(pickle.dumps(("exit", (code,), {})), ends=True)

    def ignore(self, signum: int) -> asyncio.Future[None]:
        """Have it ignore a signal, SIGTERM for example; children that it starts do, too."""
        return self._ask("ignore", int(signum))

    def sleep_in_c(self, seconds: float) -> asyncio.Future[None]:
        """Have it sleep in C code, with the GIL; done when no signal handler can run any more.

        SIGQUIT and SIGKILL still end it.  What is asked of it meanwhile is done afterwards.
        """
        return self._ask("sleep_in_c", seconds)

    def start_child(self) -> asyncio.Future[int]:
        """Have it start a process in its process group that outlives it; gives the pid."""
        return self._ask("start_child")

    def allocate(self, size: int) -> asyncio.Future[None]:
        """Have it take *size* bytes of memory, and keep them."""
        return self._ask("allocate", size)

    def _ask(self, what: str, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        return self._send(pickle.dumps((what, args, kwargs)))

    def _send(self, request: bytes, *, ends: bool = False) -> asyncio.Future[Any]:
        answer = _Answer(self._loop.create_future(), ends)
        if self._is_over:
            raise self._ended()
        try:
            self._channel.send(request)
        except ConnectionError:
            raise self._ended() from None
        self._expected.append(answer)
        return answer.future

    def _ended(self) -> ConnectionResetError:
        return ConnectionResetError(f"{self!r} has ended")

    # Called by the loop.

    def _take(self) -> None:
        try:
            data = wire.receive(self._channel)
        except BlockingIOError:
            return
        except (OSError, BrokenMessage):
            data = b""
        if not data:
            self._end()
        elif not self.pid:
            self.name, self.incarnation, self.pid = pickle.loads(data)
            self._began(self)
        else:
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        future = self._expected.popleft().future
        if future.done():
            return  # whoever asked was cancelled
        try:
            done, value = pickle.loads(data)
        except Exception as error:
            done, value = False, error
        if done:
            future.set_result(value)
        elif isinstance(value, StopIteration):  # which no future may hold
            future.set_exception(RuntimeError(f"the worker raised {value!r}"))
        else:
            future.set_exception(value)

    def _end(self) -> None:
        """Nothing more will come: give the descriptor back, and tell whoever waits."""
        if not self._is_over:
            self._is_over = True
            self._loop.remove_reader(self._channel.fd)
            self._channel.close()
        while self._expected:
            future, ends = self._expected.popleft()
            if not future.done() and ends:
                future.set_result(None)
            elif not future.done():
                future.set_exception(self._ended())

    def __repr__(self) -> str:
        return f"<Incarnation {self.incarnation} of {self.name!r} pid={self.pid}>"
