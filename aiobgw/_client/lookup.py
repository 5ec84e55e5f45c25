"""Find a worker by its name or token, on the board."""

from __future__ import annotations

from .._names import TOKEN_PREFIX
from .connection import Connection
from .remote import RemotePort


def find(connection: Connection, name_or_token: str) -> tuple[RemotePort, str] | None:
    """Return the way to the newest of that name, or the one of that token, and its name."""
    connection.check_open()
    if name_or_token.startswith(TOKEN_PREFIX):
        return _by_token(connection, name_or_token)
    same = [status for status in connection.workers() if status.name == name_or_token]
    if not same:
        return None
    return connection.port(same[-1].slot, same[-1].generation), same[-1].name


def _by_token(connection: Connection, token: str) -> tuple[RemotePort, str] | None:
    parsed = parse_token(token)
    if parsed is None or parsed[0] != connection.check_open().epoch:
        return None
    _, slot, generation = parsed
    if not 0 <= slot < connection.head().used:
        return None
    status = connection.read(slot)
    if status is None or status.generation != generation or status.state.value == "stopped":
        return None
    return connection.port(slot, generation), status.name


def parse_token(token: str) -> tuple[int, int, int] | None:
    """Return epoch, slot and generation of a token; None if it is none."""
    try:
        epoch, slot, generation = token[len(TOKEN_PREFIX) :].split(":")
        return int(epoch, 16), int(slot), int(generation)
    except ValueError:
        return None
