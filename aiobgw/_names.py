"""Names: what may be one, and how a function is found again by its name in another process."""

from __future__ import annotations

import os
import re
import sys
import unicodedata

from .errors import InvalidSpec

NAME_BYTES = 95
TARGET_LENGTH = 1_000
USER_LENGTH = 256
TOKEN_PREFIX = "aiobgw1:"
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MAIN = ("__main__", "__mp_main__")


def check_name(worker: object, field: str, value: object) -> None:
    """Raise InvalidSpec unless *value* is fit to be shown, listed and looked up."""
    if not isinstance(value, str):
        raise InvalidSpec.of(worker, field, value, "must be text")

    size = len(value.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= NAME_BYTES:
        raise InvalidSpec.of(worker, field, value, f"must be 1 to {NAME_BYTES} bytes of UTF-8")
    if not value.isprintable() and not _UNSHOWN.isdisjoint(map(unicodedata.category, value)):
        raise InvalidSpec.of(worker, field, value, "must have no control characters")
    if value.startswith(TOKEN_PREFIX):
        raise InvalidSpec.of(worker, field, value, f"must not begin like a token ({TOKEN_PREFIX})")


# Control characters, halves of surrogate pairs, line and paragraph separators.
_UNSHOWN = {"Cc", "Cs", "Zl", "Zp"}

IMPORTABLE = "importable by name (a module-level function; no lambda, no nested function)"


def is_target_name(text: str) -> bool:
    """Tell whether a text looks like "package.module:function"."""
    return len(text) <= TARGET_LENGTH and _TARGET.fullmatch(text) is not None


def is_of_main(name: str) -> bool:
    """Tell whether "module:function" is of the main script, which a worker must load first."""
    return name.partition(":")[0] in _MAIN


def importable_name(function: object) -> str | None:
    """Return the name under which a worker will find a function again, if there is one."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not callable(function) or _find(module, name) is not function:
        return None
    return f"{'__main__' if module in _MAIN else module}:{name}"


def _find(module: object, name: object) -> object:
    if not isinstance(module, str) or not isinstance(name, str):
        return None

    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def main_module(worker: str, what: str = "target") -> str:
    """Say how a worker can load the script that runs here: "path:FILE" or "module:NAME"."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return f"module:{spec.name}"

    archive = getattr(getattr(main, "__loader__", None), "archive", None)
    path = archive or getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        error = InvalidSpec(
            f"worker {worker!r}: {what} is a function of a main script that has no file"
        )
        error.add_note("hint: with -c, on standard input and in notebooks, put it into a module")
        raise error
    return f"path:{os.path.abspath(path)}"
