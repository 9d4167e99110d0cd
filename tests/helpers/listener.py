"""A listener on a free loopback port, with a thread for each connection, that ends with its `with` block."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any, Callable, List, Optional, Type

__all__ = ["Listener", "end"]


GIVE_UP = 10
"""Seconds after which a script that doesn't end is left alone."""


class Listener:
    """Calls `accepted` with each connection, on the thread that listens; `begin` starts others."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads: List[threading.Thread] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def accepted(self, sock: socket.socket) -> None:
        """Take a connection."""
        raise NotImplementedError

    def sockets(self) -> List[socket.socket]:
        """Return those that are to be closed at the end."""
        raise NotImplementedError

    def begin(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function on a thread that is waited for at the end."""
        thread = threading.Thread(target=function, args=arguments, name=type(self).__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Any:
        self.begin(self._accept)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for sock in self.sockets():
            end(sock)
        for thread in self._threads:
            thread.join(GIVE_UP)
        for sock in self.sockets():
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.accepted(sock)


def end(sock: socket.socket) -> None:
    """End a connection in both directions; whoever reads or writes it is woken."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # ended already
