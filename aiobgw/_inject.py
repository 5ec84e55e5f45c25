"""Marks the places where two processes meet, so that a test can break them there.

``AIOBGW_INJECT`` holds actions by name, separated by commas; every process of a
supervisor reads it once, at its own start:

    before_hello:die               this process ends there, without a word
    before_answer:fail             OSError(EAGAIN) is raised there (``fail=12``: that errno)
    after_fork:wait=/tmp/gate      blocks there until the FIFO can be opened for reading

With ``@/path/of/a/file`` behind it an action happens once: whoever can unlink that file
performs it.  Off, a mark costs one look at an empty dict.
"""

from __future__ import annotations

import os

_armed: dict[str, str] = {}


def _inject(name: str) -> None:
    """Do here what a test asked for under this name; nothing when nobody did."""
    if _armed:
        _perform(_armed.get(name))


def arm(text: str) -> None:
    """Take the actions of *text*, instead of the ones before."""
    _armed.clear()
    for entry in filter(None, text.split(",")):
        name, _, action = entry.partition(":")
        _armed[name] = action


def _perform(action: str | None) -> None:
    if action is None:
        return

    action, _, token = action.partition("@")
    if token and not _take(token):
        return

    verb, _, value = action.partition("=")
    if verb == "die":
        os._exit(77)
    if verb == "wait":
        os.close(os.open(value, os.O_RDONLY | os.O_CLOEXEC))
    if verb == "fail":
        number = int(value or 11)
        raise OSError(number, os.strerror(number))


def _take(token: str) -> bool:
    try:
        os.unlink(token)
    except FileNotFoundError:
        return False
    return True


arm(os.environ.get("AIOBGW_INJECT", ""))
