"""sd_notify's protocol: what a program says of itself to whoever supervises it.

A datagram of lines NAME=VALUE, sent to the address in NOTIFY_SOCKET (see sd_notify(3)).  Whoever
sends them is not trusted: any bytes are a legal datagram, one of no bytes too (systemd once
ended because of it, CVE-2016-7796).  What is not known is ignored, as the protocol wants it;
of what is known, the first line counts, and only in the very form in which it is documented.
"""

from __future__ import annotations

from typing import NamedTuple

DATAGRAM_BYTES = 4_096
"""systemd's own limit; a longer datagram is refused as a whole."""

SAYS_BYTES = 240
EXTEND_MOST = 86_400.0

_MICROSECONDS = 1e6
_DIGITS = 20


class Notice(NamedTuple):
    """What one datagram says.

    ``extend`` is in seconds, a day at most.  ``says`` is None if there is no STATUS.
    ``renames``: it names another process as the main one (MAINPID, MAINPIDFD).
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    beat: bool = False
    extend: float | None = None
    says: str | None = None
    renames: bool = False


def parse(data: bytes) -> Notice:
    """Read a datagram; never raises.

    STOPPING wins over READY, and READY over RELOADING, as in systemd.
    """
    fields: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        name, is_field, value = line.partition(b"=")
        if is_field:
            fields.setdefault(name, value)
    said = [name for name in (b"STOPPING", b"READY", b"RELOADING") if fields.get(name) == b"1"]
    strongest = said[0] if said else b""
    return Notice(
        ready=strongest == b"READY",
        reloading=strongest == b"RELOADING",
        stopping=strongest == b"STOPPING",
        beat=fields.get(b"WATCHDOG") == b"1",
        extend=_seconds(fields.get(b"EXTEND_TIMEOUT_USEC", b"")),
        says=printable(fields[b"STATUS"]) if b"STATUS" in fields else None,
        renames=b"MAINPID" in fields or b"MAINPIDFD" in fields,
    )


def _seconds(text: bytes) -> float | None:
    """Return microseconds as seconds; None for what is no such number, and for 0."""
    if not text.isdigit() or len(text) > _DIGITS:
        return None
    return min(int(text) / _MICROSECONDS, EXTEND_MOST) or None


def printable(data: bytes, most: int = SAYS_BYTES) -> str:
    """Return the beginning of a text that may be any bytes, with all but what prints escaped.

    In UTF-8 it has *most* bytes at most: no terminal, log or page shows what it does not say.
    """
    kept: list[str] = []
    left = most
    for character in data[:most].decode("utf-8", "backslashreplace"):
        shown = character if character.isprintable() else ascii(character)[1:-1]
        left -= len(shown.encode())
        if left < 0:
            break
        kept.append(shown)
    return "".join(kept)
