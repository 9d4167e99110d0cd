"""The order in which the addresses of a host are tried (RFC 8305, happy eyeballs)."""

from __future__ import annotations

import errno
import socket
from itertools import chain, zip_longest
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

ATTEMPT_DELAY = 0.25
"""Seconds until the next address is tried beside one that hasn't answered (RFC 8305, section 5)."""


class Address(NamedTuple):
    """Where to connect, as `socket.getaddrinfo` has it."""

    family: int
    type: int
    protocol: int
    place: Any


def in_turns(found: Sequence[Tuple[Any, ...]]) -> List[Address]:
    """Return the addresses of a look-up in the order to try them: families alternate (RFC 8305, section 4)."""
    by_family: Dict[int, List[Address]] = {}
    for family, kind, protocol, _, place in found:
        by_family.setdefault(family, []).append(Address(family, kind, protocol, place))
    turns = chain.from_iterable(zip_longest(*by_family.values()))
    return list(dict.fromkeys(address for address in turns if address is not None))


def numeric(host: str, port: int) -> List[Address]:
    """Return the address of a numeric `host`; an empty list for a name that has to be looked up."""
    try:
        return in_turns(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, UnicodeError):
        return []


def prepared(address: Address) -> socket.socket:
    """Return an unconnected, non-blocking socket for `address`. Raises `OSError`."""
    sock = socket.socket(address.family, address.type, address.protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def explained(failures: Sequence[OSError]) -> OSError:
    """Return one error for all addresses that failed."""
    if len({str(failure) for failure in failures}) == 1:
        return failures[0]
    text = "; ".join(dict.fromkeys(failure.strerror or str(failure) for failure in failures))
    refused = any(isinstance(failure, ConnectionRefusedError) for failure in failures)
    return ConnectionRefusedError(errno.ECONNREFUSED, text) if refused else OSError(text)
