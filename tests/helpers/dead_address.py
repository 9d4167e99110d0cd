"""An address that takes no connection and refuses none."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import Iterator, Tuple

__all__ = ["dead_address"]


@contextmanager
def dead_address() -> Iterator[Tuple[str, int]]:
    """Hold such an address: a listener whose queue is full, so that attempts to connect go unanswered."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()
