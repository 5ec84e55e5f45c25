"""PostgreSQL's background workers, rebuilt for asyncio on Linux.

An event loop supervises worker processes; everything that can take time is awaited.

    async with aiobgw.Supervisor(name="shop") as supervisor:
        handle = await supervisor.register(aiobgw.WorkerSpec(name="hi", target="shop:hello"))
        (await handle.wait_for_shutdown()).check()

Importing this package costs next to nothing: every name is resolved on first use, since
each worker imports it, too.  On systems other than Linux it imports, and the Supervisor says
what is missing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._client.attach import attach as attach
    from ._client.attach import attach_blocking as attach_blocking
    from ._client.blocking import BlockingClient as BlockingClient
    from ._client.blocking import BlockingHandle as BlockingHandle
    from ._client.client import Client as Client
    from ._client.group import WorkerGroup as WorkerGroup
    from ._client.handle import WorkerHandle as WorkerHandle
    from ._ipc.latch import Latch as Latch
    from ._supervisor.supervisor import Supervisor as Supervisor
    from ._worker.context import CurrentWorker as CurrentWorker
    from ._worker.context import current_worker as current_worker
    from .errors import AccessDenied as AccessDenied
    from .errors import AiobgwError as AiobgwError
    from .errors import AlreadyRegistered as AlreadyRegistered
    from .errors import AlreadyRunning as AlreadyRunning
    from .errors import Interrupted as Interrupted
    from .errors import InvalidSpec as InvalidSpec
    from .errors import NeverStarted as NeverStarted
    from .errors import NoFreeSlot as NoFreeSlot
    from .errors import NotAttached as NotAttached
    from .errors import PayloadTooLarge as PayloadTooLarge
    from .errors import ProtocolMismatch as ProtocolMismatch
    from .errors import ShuttingDown as ShuttingDown
    from .errors import SupervisorDied as SupervisorDied
    from .errors import SupervisorFailed as SupervisorFailed
    from .errors import Terminated as Terminated
    from .errors import TooManyParallelWorkers as TooManyParallelWorkers
    from .errors import Unsupported as Unsupported
    from .errors import WorkerFailed as WorkerFailed
    from .errors import WrongProcess as WrongProcess
    from .settings import Settings as Settings
    from .spec import After as After
    from .spec import CrashScope as CrashScope
    from .spec import Escalate as Escalate
    from .spec import Flags as Flags
    from .spec import Phase as Phase
    from .spec import Readiness as Readiness
    from .spec import Restart as Restart
    from .spec import ShutdownMode as ShutdownMode
    from .spec import Strategy as Strategy
    from .spec import WorkerSpec as WorkerSpec
    from .status import Closed as Closed
    from .status import CrashCycle as CrashCycle
    from .status import Event as Event
    from .status import EventsLost as EventsLost
    from .status import Exited as Exited
    from .status import ExitKind as ExitKind
    from .status import ExitStatus as ExitStatus
    from .status import PhaseChanged as PhaseChanged
    from .status import Ready as Ready
    from .status import Registered as Registered
    from .status import Restarting as Restarting
    from .status import Retired as Retired
    from .status import Started as Started
    from .status import Stopping as Stopping
    from .status import SupervisorStatus as SupervisorStatus
    from .status import WorkerEvent as WorkerEvent
    from .status import WorkerState as WorkerState
    from .status import WorkerStatus as WorkerStatus
    from .status import ZygoteRestarted as ZygoteRestarted

__version__ = "0.1.0"

_NAMES_OF = {
    "errors": (
        "AccessDenied AiobgwError AlreadyRegistered AlreadyRunning Interrupted InvalidSpec"
        " NeverStarted NoFreeSlot NotAttached PayloadTooLarge ProtocolMismatch ShuttingDown"
        " SupervisorDied SupervisorFailed Terminated TooManyParallelWorkers Unsupported"
        " WorkerFailed WrongProcess"
    ),
    "settings": "Settings",
    "spec": (
        "After CrashScope Escalate Flags Phase Readiness Restart ShutdownMode Strategy WorkerSpec"
    ),
    "status": (
        "Closed CrashCycle Event EventsLost ExitKind ExitStatus Exited PhaseChanged Ready"
        " Registered Restarting Retired Started Stopping SupervisorStatus WorkerEvent WorkerState"
        " WorkerStatus ZygoteRestarted"
    ),
    "_ipc.latch": "Latch",
    "_client.attach": "attach attach_blocking",
    "_client.blocking": "BlockingClient BlockingHandle",
    "_client.client": "Client",
    "_client.group": "WorkerGroup",
    "_client.handle": "WorkerHandle",
    "_worker.context": "CurrentWorker current_worker",
    "_supervisor.supervisor": "Supervisor",
}
_HOME = {name: home for home, names in _NAMES_OF.items() for name in names.split()}

__all__ = tuple(sorted(_HOME))


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    import sys
    from importlib import import_module

    if sys.platform != "linux" and home.startswith("_"):
        errors = import_module(f"{__name__}.errors")
        raise errors.Unsupported(f"aiobgw.{name} needs Linux, this is {sys.platform}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
