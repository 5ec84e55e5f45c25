"""The environment of a worker: a clean base and what its spec names, or the zygote's own.

The zygote's is the supervisor's at the zygote's start, without what is for the host alone.
Changed in place, so that ``os.environ``, C code and what is executed see the same.  What the
interpreter has read at its own start (PYTHON*, the locale, LD_*) is not read again.

A Python target is a fork of the zygote: variables that its spec leaves out are gone from
its environment, but traces of them are left in its memory.  A command has none.
"""

from __future__ import annotations

import os

from .._ipc.environment import taken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pwd import struct_passwd

_BASE = ("PATH", "LANG", "TZ")
_OF_USER = ("HOME", "USER", "LOGNAME", "SHELL")


def change(
    env: Mapping[str, str | None] | None,
    entry: struct_passwd | None,
    *,
    is_other: bool,
) -> None:
    """Give this process the environment that its spec asks for.

    *entry* is the user to become if *is_other*; None then: one without a name.
    """
    wanted = _clean(env) if env is not None else dict(os.environ)
    if is_other:
        given = env or {}
        for name in _OF_USER:
            if name not in given:
                wanted.pop(name, None)
        wanted = {**_of(entry), **wanted} if entry is not None else wanted
    _become(wanted)


def _clean(env: Mapping[str, str | None]) -> dict[str, str]:
    own = {**taken, **os.environ}
    base = [name for name in os.environ if name in (*_BASE, *_OF_USER) or name[:3] == "LC_"]
    wanted = {name: own[name] for name in base}
    for name, value in env.items():
        if value is not None:
            wanted[name] = value
        elif name in own:
            wanted[name] = own[name]
    return wanted


def _of(entry: struct_passwd) -> dict[str, str]:
    return {
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
    }


def _become(wanted: dict[str, str]) -> None:
    zone = os.environ.get("TZ")
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if os.environ.get("TZ") != zone:
        import time

        time.tzset()
