"""What integrations share: a client for all threads of a process, which values count, and calls of many keys.

Frameworks create a cache or session object for each thread, or for each request; connections are shared by them.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, TypeVar

from synap import SynapClient

T = TypeVar("T")

TOGETHER = 1000
"""Keys, or topics, of one call: a service takes 10,000, and answers 64 MiB."""

_lock = threading.Lock()
_clients: Dict[Tuple[Optional[str], Tuple[Tuple[str, Any], ...]], SynapClient] = {}


def shared_client(url: Optional[str], options: Mapping[str, Any]) -> SynapClient:
    """Return this process's client for `url` and `options`, the fields of `ClientConfig`, creating it on first use.

    Raises `INVALID_REQUEST` for an option that doesn't exist or can't be used.
    """
    key = (url, tuple(sorted(options.items())))
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = SynapClient(url=url, **options)
    return client


def slices(all_of_them: Iterable[T]) -> Iterator[List[T]]:
    """Yield as many as go into one call, none where there are none."""
    items = list(all_of_them)
    return (items[first : first + TOGETHER] for first in range(0, len(items), TOGETHER))


def close_shared_clients() -> None:
    """Close all of them, as happens at exit. A later `shared_client` creates a new one."""
    with _lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        client.close()


atexit.register(close_shared_clients)


def is_counter(value: object) -> bool:
    """Return whether a cache stores `value` as an integer, so that the service can count, and not pickled.

    A bool is none, and neither are integers beyond 64 bits.
    """
    return type(value) is int and -(2**63) <= value < 2**63
