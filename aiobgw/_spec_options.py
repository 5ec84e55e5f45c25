"""The fields of a spec that most workers leave alone: what they must be, and how they are kept.

Only what differs from its default is looked at: a registration of a plain worker costs the
same with all of them.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from signal import SIGKILL, SIGSTOP, SIGTERM, valid_signals
from typing import TYPE_CHECKING, Any, NamedTuple

from ._choices import After, Escalate, Flags, Readiness
from ._names import NAME_BYTES, USER_LENGTH, check_name
from .errors import InvalidSpec

if TYPE_CHECKING:
    from .spec import WorkerSpec

DAY = 86_400.0
MAX_AGE = 366 * DAY
DEPENDENCIES = 64
GROUPS = 64
ENVIRONMENT = 256
ENVIRONMENT_BYTES = 16_384
PATH_BYTES = 4_095
PROBE_BYTES = 1_024
PROGRAM_BYTES = 4_096
SOCKET_PATH_BYTES = 107
CPUS = 4_096

RLIMITS = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_")
}
"""The numbers of limits, by the names they have in specs."""

_CGROUP_FILE = re.compile(r"(cpu|cpuset|io|memory|pids|hugetlb|rdma|misc)\.[A-Za-z0-9_.]{1,60}")
_VARIABLE = re.compile(r"[^=\0]+")


class _Option(NamedTuple):
    """What a value other than the default must be; ``allowed`` says so to people."""

    default: object
    is_good: Callable[[Any], bool]
    allowed: str


def _number(low: float, high: float, *, whole: bool = False) -> Callable[[object], bool]:
    kinds = (int,) if whole else (int, float)
    return lambda value: (
        isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
    )


def _above_zero(high: float) -> Callable[[object], bool]:
    good = _number(0, high)
    return lambda value: good(value) and value != 0


def is_name(value: object) -> bool:
    """Tell whether something is a user's or a group's name or number."""
    if isinstance(value, int):
        return not isinstance(value, bool) and 0 <= value < 2**32 - 1
    return isinstance(value, str) and 0 < len(value) <= USER_LENGTH and "\0" not in value


def _is_sequence(value: object, most: int) -> bool:
    good = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return good and len(value) <= most  # type: ignore[arg-type]


def _are_names(value: object) -> bool:
    return _is_sequence(value, GROUPS) and all(map(is_name, value))  # type: ignore[call-overload]


def _is_text(value: object, most: int) -> bool:
    """Tell whether a text can be given to the system as it is."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return 0 < len(os.fsencode(value)) <= most
    except UnicodeEncodeError:
        return False


def _is_path(value: object) -> bool:
    if not isinstance(value, (str, os.PathLike)):
        return False
    path = os.fspath(value)
    return _is_text(path, PATH_BYTES) and os.path.isabs(path)


def _is_group(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) <= NAME_BYTES


def _are_dependencies(value: object) -> bool:
    if isinstance(value, Mapping):
        return len(value) <= DEPENDENCIES and all(isinstance(a, After) for a in value.values())
    return _is_sequence(value, DEPENDENCIES)


def _is_probe(value: object) -> bool:
    """Tell whether something is an address that can be probed, or the words of a program."""
    if isinstance(value, str):
        return _is_text(value, PROBE_BYTES) and _is_address(value)
    words: Any = value
    if not _is_sequence(value, 64) or not words:
        return False
    fits = all(_is_text(word, PROBE_BYTES) for word in words)
    return fits and sum(len(os.fsencode(word)) for word in words) <= PROGRAM_BYTES


def _is_address(text: str) -> bool:
    if text.startswith("unix:"):
        return text[5:6] in ("/", "@") and len(os.fsencode(text)) <= 5 + SOCKET_PATH_BYTES
    if not (text.isascii() and text.isprintable()) or " " in text:
        return False  # it is sent as it is
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc:
        return False
    if parts.scheme == "tcp":
        return bool(port) and not (parts.path or parts.query or parts.fragment)
    return parts.scheme == "http"


def _is_environment(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= ENVIRONMENT
        and all(map(_is_variable, value.items()))
        and sum(len(name) + len(text or "") for name, text in value.items()) <= ENVIRONMENT_BYTES
    )


def _is_variable(item: tuple[object, object]) -> bool:
    name, text = item
    if not _is_text(name, ENVIRONMENT_BYTES) or not _VARIABLE.fullmatch(str(name)):
        return False
    return text is None or text == "" or _is_text(text, ENVIRONMENT_BYTES)


def _are_cpus(value: object) -> bool:
    good = _number(0, CPUS - 1, whole=True)
    cpus: Any = value
    return _is_sequence(value, CPUS) and bool(cpus) and all(map(good, cpus))


def _are_rlimits(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        name in RLIMITS and _is_limit(limit) for name, limit in value.items()
    )


def _is_limit(value: object) -> bool:
    good = _number(-1, 2**63 - 1, whole=True)
    if isinstance(value, (tuple, list)):
        if len(value) != 2 or not all(map(good, value)):
            return False
        soft, hard = value
        return bool(hard == -1 or 0 <= soft <= hard)
    return good(value)


def _is_cgroup(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and _CGROUP_FILE.fullmatch(name)
        and (_number(0, 2**63 - 1, whole=True)(given) or (_is_text(given, 256)))
        for name, given in value.items()
    )


def _is_stop_signal(value: object) -> bool:
    return value in valid_signals() and value not in (SIGKILL, SIGSTOP)


_SECONDS = "must be 0 to 86400 seconds"
_SOME_SECONDS = "must be above 0, to 86400 seconds"
_PART = "must be 0 to 1"

_OPTIONS: dict[str, _Option] = {
    "restart_backoff": _Option(2.0, _number(1, 100), "must be 1 to 100"),
    "restart_delay_max": _Option(60.0, _number(0, DAY), _SECONDS),
    "restart_jitter": _Option(0.25, _number(0, 1), _PART),
    "restart_reset": _Option(None, _number(0, DAY), _SECONDS),
    "max_restarts": _Option(
        5,
        lambda value: value is None or _number(0, 10_000, whole=True)(value),
        "must be a whole number from 0 to 10000, or None",
    ),
    "max_seconds": _Option(60.0, _above_zero(DAY), _SOME_SECONDS),
    "escalate": _Option(
        Escalate.IGNORE, lambda value: isinstance(value, Escalate), "must be an aiobgw.Escalate"
    ),
    "essential": _Option(False, lambda value: value is True, "must be True or False"),
    "group": _Option(None, _is_group, f"must be a name, of 1 to {NAME_BYTES} bytes"),
    "after": _Option(
        {},
        _are_dependencies,
        f"must be up to {DEPENDENCIES} names, or a mapping from names to aiobgw.After",
    ),
    "ready": _Option(
        Readiness.NONE, lambda value: isinstance(value, Readiness), "must be an aiobgw.Readiness"
    ),
    "probe": _Option(
        None,
        _is_probe,
        "must be 'tcp://HOST:PORT', 'unix:/PATH', 'http://HOST:PORT/PATH' or a list of words",
    ),
    "notification_fd": _Option(None, _number(3, 1023, whole=True), "must be 3 to 1023"),
    "start_timeout": _Option(None, _above_zero(DAY), _SOME_SECONDS),
    "watchdog": _Option(None, _number(0.5, DAY), "must be 0.5 to 86400 seconds"),
    "stop_signal": _Option(
        SIGTERM, _is_stop_signal, "must be a signal, but not SIGKILL or SIGSTOP"
    ),
    "memory_max": _Option(None, _number(1, 2**62, whole=True), "must be a number of bytes"),
    "max_age": _Option(None, _above_zero(MAX_AGE), "must be above 0 seconds, to 366 days"),
    "max_age_jitter": _Option(0.1, _number(0, 1), _PART),
    "user_group": _Option(None, is_name, "must be a group's name or number"),
    "supplementary_groups": _Option(
        None, _are_names, f"must be up to {GROUPS} names or numbers of groups"
    ),
    "umask": _Option(None, _number(0, 0o777, whole=True), "must be 0 to 0o777"),
    "cwd": _Option(None, _is_path, "must be an absolute path"),
    "env": _Option(
        None, _is_environment, f"must be a mapping of texts, up to {ENVIRONMENT_BYTES} bytes"
    ),
    "nice": _Option(None, _number(-20, 19, whole=True), "must be -20 to 19"),
    "cpus": _Option(None, _are_cpus, "must be numbers of processors"),
    "rlimits": _Option(
        None, _are_rlimits, f"must have names of {', '.join(sorted(RLIMITS))}, and numbers"
    ),
    "cgroup": _Option(None, _is_cgroup, "must have names of cgroup v2 files, and what to write"),
}

OPTIONS = tuple(_OPTIONS)
"""The names of these fields."""


_DEFAULTS = tuple(option.default for option in _OPTIONS.values())
_values_of = attrgetter(*_OPTIONS)


def changed_options(spec: WorkerSpec) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    values = _values_of(spec)
    if values == _DEFAULTS:
        return {}
    both = zip(_OPTIONS, values, _DEFAULTS, strict=True)
    return {name: value for name, value, default in both if value != default}


def check_options(spec: WorkerSpec) -> None:
    """Raise InvalidSpec for the first field that is not what it must be."""
    given = changed_options(spec)
    if not given:
        return
    for name, value in given.items():
        option = _OPTIONS[name]
        if (isinstance(value, bool) and name != "essential") or not option.is_good(value):
            raise InvalidSpec.of(spec.name, name, _shown(name, value), option.allowed)
    for check in (_check_order, _check_readiness, _check_end, _check_identity):
        check(spec)


def _shown(name: str, value: object) -> object:
    """Return what may be shown of a wrong value: not what may be secret."""
    if name != "env":
        return value
    return list(value) if isinstance(value, Mapping) else type(value)


def _check_order(spec: WorkerSpec) -> None:
    if spec.group is not None:
        check_name(spec.name, "group", spec.group)
    for name in spec.after:
        check_name(spec.name, "after", name)
        if name == spec.name:
            raise InvalidSpec.of(spec.name, "after", name, "must not name the worker itself")


def _check_readiness(spec: WorkerSpec) -> None:
    if (spec.ready is Readiness.PROBE) != (spec.probe is not None):
        allowed = "must be there with Readiness.PROBE, and only then"
        raise InvalidSpec.of(spec.name, "probe", spec.probe, allowed)
    speaks_s6 = spec.ready is Readiness.NOTIFY and spec.command is not None
    if spec.notification_fd is not None and not speaks_s6:
        allowed = "is for commands with Readiness.NOTIFY"
        raise InvalidSpec.of(spec.name, "notification_fd", spec.notification_fd, allowed)


def _check_end(spec: WorkerSpec) -> None:
    if spec.stop_signal != SIGTERM and spec.command is None:
        # A worker's own handlers turn SIGTERM, and nothing else, into the end of a target.
        allowed = "of a target must be SIGTERM"
        raise InvalidSpec.of(spec.name, "stop_signal", spec.stop_signal, allowed)


def _check_identity(spec: WorkerSpec) -> None:
    if not int(spec.flags) & int(Flags.SHMEM_ACCESS):
        return
    for name in ("user_group", "supplementary_groups"):
        if getattr(spec, name) is not None:
            # The board and the latches are shared among processes of one user only.
            allowed = "must not be set with SHMEM_ACCESS"
            raise InvalidSpec.of(spec.name, name, getattr(spec, name), allowed)


# As what they are kept: values that nobody else holds, that travel, and that compare.


def _dependencies(value: Any) -> dict[str, After]:
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(value, After.READY)


def _probe(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value)


def _limits(value: Any) -> dict[str, Any]:
    return {
        name: tuple(limit) if isinstance(limit, (tuple, list)) else limit
        for name, limit in value.items()
    }


_KEPT_AS: dict[str, Callable[[Any], object]] = {
    "after": _dependencies,
    "probe": _probe,
    "supplementary_groups": tuple,
    "cwd": os.fspath,
    "env": dict,
    "cpus": tuple,
    "rlimits": _limits,
    "cgroup": dict,
    "stop_signal": int,
}


def kept_options(spec: WorkerSpec) -> dict[str, Any]:
    """Return the fields that are kept as something else than what was given."""
    changed = changed_options(spec)
    return {name: keep(changed[name]) for name, keep in _KEPT_AS.items() if name in changed}


def plain_options(spec: WorkerSpec) -> dict[str, Any]:
    """Return the fields that differ from their defaults, as values that can be marshalled."""
    plain = changed_options(spec)
    for name in ("escalate", "ready"):
        if name in plain:
            plain[name] = plain[name].value
    if "after" in plain:
        plain["after"] = {name: after.value for name, after in plain["after"].items()}
    return plain


def read_options(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain options as fields of a spec; raises ValueError for what none of them is."""
    unknown = plain.keys() - _OPTIONS.keys()
    if unknown:
        raise ValueError(f"no such options: {', '.join(sorted(map(repr, unknown)))}")
    options = dict(plain)
    if "escalate" in options:
        options["escalate"] = Escalate(options["escalate"])
    if "ready" in options:
        options["ready"] = Readiness(options["ready"])
    if "after" in options:
        options["after"] = {name: After(after) for name, after in dict(options["after"]).items()}
    return options
