"""Become who a spec says, with its limits, and fail closed: a worker runs as asked, or not at all.

Order, and why: first everything is looked up, while all files can be read and opened.  Then
what root must do (cgroup, directory, umask, priority, processors, limits); then groups, gid,
uid: the other way round the right to do the next step is already gone.  Then capabilities, which
a change of uid leaves alone unless it began at 0.  Then a look at what the kernel says,
and whether there is a way back; then no new privileges, so that no setuid program is one.
Then the lifeline: in a user namespace whoever armed it as root has no right any more.

With ``user``, setuid and setgid programs and file capabilities give nothing to the worker and to
all below it: sudo, su, at, ping, and mail that is handed to a setgid program do not work.  The
kernel writes no core files of a Python target that has changed its user.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct

from .._inject import _inject
from . import environment, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pwd import struct_passwd
    from typing import Any

    Step = Callable[[], object]

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_CAPABILITY_VERSION_3 = 0x20080522


class Refused(Exception):
    """What a spec asks for cannot be had; the text names the field."""


def become(order: dict[str, Any], entrance: int, lifeline: int) -> None:
    """Do all that an order's spec asks for; raises Refused with the process half changed."""
    fields = order["spec"]
    options, user = fields["options"], fields["user"]
    identity = Identity(user, options.get("user_group"), options.get("supplementary_groups"))
    for field, step in limits.steps(options, entrance):
        _do(field, f"{field} {options[field]!r}", step)
    for name, what, step in identity.steps():
        _do(name, what, step)
    if user is not None:
        _do("rearm", f"user {user!r}: lifeline", lambda: _rearm(lifeline))
    if "env" in options or user is not None:
        # Values are nobody's business: they may be secrets.
        env, is_other = options.get("env"), user is not None
        _do("env", "env", lambda: environment.change(env, identity.entry, is_other=is_other))


def _do(name: str, what: str, step: Step) -> None:
    try:
        _inject(name)
        step()
    except OSError as error:
        raise Refused(f"{what}: {error.strerror or error}") from None
    except (ValueError, OverflowError) as error:
        raise Refused(f"{what}: {error}") from None


class Identity:
    """Numbers for what a spec names, and the way to become that; looked up at birth.

    None: stays as it is.
    """

    def __init__(
        self,
        user: str | int | None,
        group: str | int | None,
        others: Sequence[str | int] | None,
    ) -> None:
        self._user = user
        self.entry = None if user is None else _entry(user)
        self._uid = self.entry.pw_uid if self.entry is not None else _number(user)
        self._gid = _gid("user_group", group) if group is not None else self._own_gid()
        self._groups = (
            sorted({_gid("supplementary_groups", other) for other in others})
            if others is not None
            else self._own_groups()
        )
        self._field = "user" if others is None else "supplementary_groups"
        if user is not None:
            self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
            self._libc = _load_libc()

    def _own_gid(self) -> int | None:
        if self.entry is not None:
            return self.entry.pw_gid
        if self._uid is not None:
            raise Refused(f"user {self._uid}: there is no such entry, so user_group must be given")
        return None

    def _own_groups(self) -> list[int] | None:
        if self.entry is not None and self._gid is not None:
            return sorted(set(os.getgrouplist(self.entry.pw_name, self._gid)))
        return None if self._uid is None else []

    def steps(self) -> Iterator[tuple[str, str, Step]]:
        """Return what is to be done, in order: a name, what it is for, and how."""
        user = f"user {self._user!r}"
        groups = f"{self._field} {self._groups}" if self._field != "user" else f"{user}: groups"
        yield "setgroups", groups, self._set_groups
        yield "setresgid", f"user_group: gid {self._gid}", self._set_gid
        if self._uid is None:
            yield "verify", "user_group", self._verify_groups
            return
        yield "setresuid", f"cannot become {user}", self._set_uid
        yield "capset", f"{user}: capabilities", self._drop_capabilities
        yield "verify", user, self._verify
        yield "no_new_privs", f"{user}: PR_SET_NO_NEW_PRIVS", self._gain_nothing

    # Nothing is asked of the kernel that is so already: an unprivileged supervisor may name
    # its own user and groups.

    def _set_groups(self) -> None:
        if self._groups is not None and set(os.getgroups()) != set(self._groups):
            os.setgroups(self._groups)

    def _set_gid(self) -> None:
        if self._gid is not None and os.getresgid() != (self._gid,) * 3:
            os.setresgid(self._gid, self._gid, self._gid)

    def _set_uid(self) -> None:
        assert self._uid is not None
        if os.getresuid() != (self._uid,) * 3:
            os.setresuid(self._uid, self._uid, self._uid)

    def _drop_capabilities(self) -> None:
        """Empty all sets but the bounding one, which gives nothing by itself."""
        if self._uid != 0:
            header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
            self._call("capset", header, bytes(24))

    def _gain_nothing(self) -> None:
        self._call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._says("NoNewPrivs") != ["1"]:
            raise ValueError("it has no effect")
        os.close(self._status)

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._libc, name)(*arguments) != 0:
            import ctypes  # loaded with libc

            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    # Looking.

    def _verify(self) -> None:
        """Compare with what the kernel says, and try to get back."""
        self._verify_groups()
        for name, wanted in (("Uid", self._uid), ("Gid", self._gid)):
            if self._says(name) != [str(wanted)] * 4:
                raise ValueError(f"{name} is {self._says(name)}, not {wanted}")
        if self._uid == 0:
            return
        for name in _CAPABILITIES:
            if int(self._says(name)[0], 16):
                raise ValueError(f"{name} is not empty")
        try:
            os.setuid(0)
        except OSError:
            return
        raise ValueError("it could become root again")

    def _verify_groups(self) -> None:
        if self._groups is not None and set(os.getgroups()) != set(self._groups):
            raise ValueError(f"groups are {os.getgroups()}, not {self._groups}")
        if self._gid is not None and os.getresgid() != (self._gid,) * 3:
            raise ValueError(f"gids are {os.getresgid()}, not {self._gid}")

    def _says(self, name: str) -> list[str]:
        text = os.pread(self._status, 16_384, 0).decode("ascii", "replace")
        for line in text.splitlines():
            if line.startswith(f"{name}:"):
                return line.split()[1:]
        raise ValueError(f"the kernel says nothing of {name}")


def _entry(user: str | int) -> struct_passwd | None:
    """Return the entry of a user; None for a number that has none."""
    import pwd

    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        if isinstance(user, int):
            return None
        raise Refused(f"cannot become user {user!r}: there is no such user") from None


def _number(user: str | int | None) -> int | None:
    return user if isinstance(user, int) else None


def _gid(field: str, group: str | int) -> int:
    if isinstance(group, int):
        return group
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refused(f"{field} {group!r}: there is no such group") from None


def _load_libc() -> Any:
    """Load it while its files can be read, and opened."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _rearm(lifeline: int) -> None:
    """Have the group end with the supervisor, by the rights of whom it has become.

    Race: if the supervisor went before that, the kernel may have had no right to end us.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):
        os._exit(0)
