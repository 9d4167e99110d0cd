"""Frames of a WebSocket that come before its handshake is answered: they harm nobody, and leave no trace in the log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.server import ServerState

from synap.server.clients import ADMITTED
from synap.server.pinging_websocket import PingingWebSocket
from synap.server.run import uvicorn_config
from synap.server.settings import ServerConfig
from synap.server.uvicorn_glue import PATIENCE
from synap.wire.frames import Kind, frame
from tests.helpers.inside import service
from tests.server.test_door import UPGRADE

MASK = b"\x00\x00\x00\x00"


class Pipe(asyncio.Transport):
    """Keeps what is written; its protocol learns of its end in the loop's next round, as from a real one."""

    def __init__(self, protocol: PingingWebSocket) -> None:
        super().__init__()
        self.protocol = protocol
        self.said = b""
        self.over = False
        self.tells = True
        """Whether its protocol learns of its end."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.over

    def close(self) -> None:
        if not self.over:
            self.over = True
            if self.tells:
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 9) if name in ("peername", "sockname") else default


NONSENSE = {
    "reserved bits": b"\xff\x80" + MASK,
    "a reserved opcode": b"\x83\x80" + MASK,
    "no mask": b"\x81\x01a",
    "a fragment of nothing": b"\x00\x80" + MASK,
    "a long ping": b"\x89\xfe\x01\x00" + MASK + b"x" * 256,
    "a close code that there isn't": b"\x88\x82" + MASK + b"\x00\x01",
    "more than a message may have": b"\x82\xff\x7f" + b"\xff" * 7 + MASK,
}
SENSE = {
    "a ping": b"\x89\x80" + MASK,
    "a pong": b"\x8a\x80" + MASK,
    "a request": b"\x81\x95" + MASK + b'{"command":"no.such"}',
    "a close": b"\x88\x82" + MASK + b"\x03\xe8",
}


def accepted(settings: ServerConfig | None = None) -> tuple[PingingWebSocket, Pipe, ServerState, list[Any]]:
    """Accept a connection; returns what it is made of, and the failures nobody catches."""
    place = service(settings)
    config = uvicorn_config(place.config, place)
    config.load()
    state = ServerState()
    protocol = PingingWebSocket(config, state, {PATIENCE: 5.0, ADMITTED: lambda: None})
    pipe = Pipe(protocol)
    protocol.connection_made(pipe)
    failed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    return protocol, pipe, state, failed


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("data", [*NONSENSE.values(), *SENSE.values()], ids=[*NONSENSE, *SENSE])
async def test_frames_that_come_too_early_harm_nobody(
    data: bytes, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    protocol, pipe, state, failed = accepted()
    protocol.data_received(UPGRADE + b"\r\n")
    for _ in range(times):
        protocol.data_received(data)
    for _ in range(20):
        await asyncio.sleep(0)
    if data in NONSENSE.values():
        assert pipe.over
        assert b"101" not in pipe.said.partition(b"\r\n")[0]
    pipe.close()
    while state.tasks:
        await asyncio.sleep(0)
    assert not failed
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("data", [*NONSENSE.values(), SENSE["a close"]], ids=[*NONSENSE, "a close"])
async def test_who_is_refused_and_sent_nonsense_or_a_close_leaves_no_trace(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a TLS connection, and of one whose peer doesn't read, is told some rounds later."""
    protocol, pipe, state, failed = accepted(ServerConfig(api_keys=["0123456789abcdef"]))
    pipe.tells = False
    protocol.data_received(UPGRADE + b"\r\n" + data)
    while not pipe.over or state.tasks:
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    assert not failed
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


NATIVE = b"sec-websocket-protocol: synap.native\r\nsynap-session: %b\r\n" % (b"0" * 32)
ASKED = {
    "json": (b"", b"\x81\x95" + MASK + b'{"command":"no.such"}'),
    "native": (NATIVE, b"\x82\x8e" + MASK + frame(Kind.REQUEST, 1, b"{}", 1)),
}


@pytest.mark.parametrize("lane", ASKED)
@pytest.mark.parametrize("data", [*NONSENSE.values(), SENSE["a close"]], ids=[*NONSENSE, "a close"])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 4])
async def test_what_is_asked_right_before_nonsense_leaves_no_trace(
    lane: str, data: bytes, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    protocol, pipe, state, failed = accepted()
    headers, asked = ASKED[lane]
    protocol.data_received(UPGRADE + headers + b"\r\n")
    while not pipe.said:
        await asyncio.sleep(0)
    assert b"101" in pipe.said.partition(b"\r\n")[0], pipe.said
    protocol.data_received(asked)
    for _ in range(rounds):
        await asyncio.sleep(0)
    protocol.data_received(data)
    while not pipe.over or state.tasks:
        await asyncio.sleep(0)
    assert not failed
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
