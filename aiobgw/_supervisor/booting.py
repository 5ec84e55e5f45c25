"""What the zygote is told at its start: who it works for, and by name what it runs there."""

from __future__ import annotations

from .._process import probe
from .._process.zygote import Boot
from ..settings import Settings

ENTRY = "aiobgw._worker.main:main"
REHEARSE = "aiobgw._worker.main:rehearse"
TITLED = "aiobgw._worker.title:set_title"


def boot_of(settings: Settings, reaper: str, nofile: int | None, lock: int, cgroup: str) -> Boot:
    """Return it; raises Unsupported if there is no interpreter.

    *nofile*: the soft limit of descriptors that workers get; None: as it is.
    """
    asyncio_first = ("asyncio",) if settings.preload_asyncio else ()
    return Boot(
        name=settings.name,
        python=probe.interpreter(settings.python),
        preload=(*asyncio_first, *settings.preload),
        entry=ENTRY,
        rehearse=REHEARSE,
        titled=TITLED,
        reaper=reaper,
        nofile=nofile,
        lock=lock,
        cgroup=cgroup,
    )
