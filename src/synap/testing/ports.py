"""Ports of this machine that nobody else gets, for processes that are started later, or once more."""

from __future__ import annotations

import os
import socket
import sys
import weakref


class ReservedPort:
    """A free port of 127.0.0.1, `number`, for a process that is told to listen there.

    A port that is found and let go may belong to any other connection by the time it is used. On Linux this one is
    held, bound without listening, as long as the object lives: a process that binds it by number and with SO_REUSEADDR,
    as servers do, gets it; who asks for any port, or connects from any, isn't given it. Connecting to it while nobody
    listens is refused. Elsewhere it is a port that was free a moment ago.
    """

    def __init__(self) -> None:
        with socket.socket() as holder:
            if os.name == "posix":
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            self.number: int = holder.getsockname()[1]
            if sys.platform == "linux":
                weakref.finalize(self, os.close, holder.detach())
