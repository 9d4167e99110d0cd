"""Receives a request's large value where it is stored.

An event loop hands out what it reads as `bytes`: a large value would be copied from its own buffer to those, again to
be joined, and again out of its request. While a session is in the middle of such a request, or has just had one, its
transport reads into a buffer of the session's reader instead. Small requests would take longer on this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from synap.wire.frames import FrameReader

if TYPE_CHECKING:
    from synap.server.native import NativeSession


class InPlace(asyncio.BufferedProtocol):
    """The protocol of a session's transport from `begin` until a read that is no part of a large body."""

    __slots__ = ("_allocated", "_fresh", "_on", "_reader", "_session", "_transport")

    def __init__(
        self,
        session: NativeSession,
        reader: FrameReader,
        transport: asyncio.Transport,
        allocated: Callable[[int], None],
    ) -> None:
        self._session = session
        self._allocated = allocated
        """Called with the bytes that are allocated for the rest of a body. It may end the connection."""
        self._fresh = 0
        """Of those the ones it was not called for yet: connections must not end while they are asked for a buffer."""
        self._reader = reader
        self._transport = transport
        self._on = False

    def begin(self) -> None:
        """Let the transport read into the reader's buffers."""
        if not self._on:
            self._on = True
            self._transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        reader = self._reader
        began = reader.in_place
        buffer = reader.buffer()
        if reader.in_place and not began:
            self._fresh = len(buffer)
        return buffer

    def buffer_updated(self, nbytes: int) -> None:
        reader = self._reader
        if reader.in_place:
            if self._fresh:
                fresh, self._fresh = self._fresh, 0
                self._allocated(fresh)
            self._session.received_in_place(nbytes)
            return
        self._session.data_received(bytes(reader.room[:nbytes]))
        if reader.empty and not self._transport.is_closing():
            self._on = False
            self._transport.set_protocol(self._session)

    # ---- what else transports tell
    def pause_writing(self) -> None:
        self._session.pause_writing()

    def resume_writing(self) -> None:
        self._session.resume_writing()

    def eof_received(self) -> None:
        self._session.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.connection_lost(exc)
