"""A write whose answer was lost stays in doubt until the service says what became of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from synap import SynapError
from synap.wire.handshake import accept
from tests.client.conftest import Make
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService

EARLIER = "an earlier attempt may have taken effect"


def loses_the_first(peer: Peer) -> bool:
    """End the client's first connection after its request; returns whether this is that one."""
    if peer.number == 0:
        peer.hello()
        peer.request()
    return peer.number == 0


async def failure(call: Any) -> SynapError:
    with pytest.raises(SynapError) as caught:
        await asyncio.wait_for(call, PATIENCE)
    return caught.value


@pytest.mark.parametrize(
    "code",
    ["UNAUTHORIZED", "FORBIDDEN", "INVALID_COMMAND", "INVALID_REQUEST", "PAYLOAD_TOO_LARGE", "MEMORY_LIMIT"],
)
async def test_what_a_service_refuses_before_it_looks_for_the_answer_leaves_the_doubt(make: Make, code: str) -> None:
    """A key's rights may be gone since, a node be full, or an older service be asked than before."""

    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.hello()
            peer.refuse(peer.request(), code)

    with ScriptedService(script) as service:
        error = await failure(make(service.url).kv.incr("n"))
    assert (error.code, error.may_have_happened) == (code, True)
    assert EARLIER in error.message


async def test_a_service_that_fails_inside_leaves_the_doubt(make: Make) -> None:
    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.hello()
            peer.refuse(peer.request(), "INTERNAL_ERROR")

    with ScriptedService(script) as service:
        error = await failure(make(service.url).kv.incr("n"))
    assert (error.code, error.may_have_happened) == ("INTERNAL_ERROR", True)


async def test_a_key_that_was_removed_meanwhile_leaves_the_doubt(make: Make) -> None:
    """A service ends the connections of such a key, and refuses the handshake of the next."""

    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.head()
            body = json.dumps({"error": {"code": "UNAUTHORIZED", "message": "unknown", "details": {}}}).encode()
            peer.say(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with ScriptedService(script) as service:
        error = await failure(make(service.url).kv.incr("n"))
    assert (error.code, error.may_have_happened) == ("UNAUTHORIZED", True)


async def test_a_request_that_a_new_connection_does_not_take_leaves_the_doubt(make: Make) -> None:
    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.head()
            peer.say(accept("scripted", 1000))
            peer.frame()

    with ScriptedService(script) as service:
        error = await failure(make(service.url).kv.set("key", "x" * 2000))
    assert (error.code, error.may_have_happened) == ("PAYLOAD_TOO_LARGE", True)


async def test_closing_the_client_while_it_connects_again_leaves_the_doubt(make: Make) -> None:
    loop = asyncio.get_running_loop()
    connecting = asyncio.Event()

    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.head()
            loop.call_soon_threadsafe(connecting.set)
            peer.frame()

    with ScriptedService(script) as service:
        client = make(service.url)
        call = asyncio.ensure_future(client.kv.incr("n"))
        await asyncio.wait_for(connecting.wait(), PATIENCE)
        await client.close()
        error = await failure(call)
    assert (error.code, error.may_have_happened) == ("CONNECTION_FAILED", True)
    assert EARLIER in error.message


async def test_what_only_reads_is_never_in_doubt(make: Make) -> None:
    def script(peer: Peer) -> None:
        if not loses_the_first(peer):
            peer.hello()
            peer.refuse(peer.request(), "FORBIDDEN")

    with ScriptedService(script) as service:
        error = await failure(make(service.url).kv.get("key"))
    assert (error.code, error.may_have_happened) == ("FORBIDDEN", False)
