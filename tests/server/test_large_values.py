"""Large values arrive as they were sent, however they are received and whatever else is in flight."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from synap import AsyncSynapClient, SynapClient
from synap.commands import COMMANDS
from synap.errors import PermissionDeniedError, RateLimitError
from synap.server import keyfile
from synap.server.grants import Quota
from synap.testing.server import ThrowawayServer
from synap.wire.codec import CODECS
from synap.wire.frames import HEADER, Kind, frame
from synap.wire.parts import MOST
from tests.helpers.certificates import Authority
from tests.helpers.loops import LOOPS, loop_environment
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native, wait_for
from tests.helpers.still_rates import StillRates

SIZES = [70_000, 131_072, 300_000, 1_000_000, MOST - 20, MOST + 20, 3_000_000]


def text(number: int, size: int, kind: str = "plain") -> str:
    """A text of `size` bytes that no other number has."""
    mark = f"{number:09d}|"
    tail = {"plain": "", "accents": "é" * 7, "quotes": '"\\\n' * 5}[kind]
    return (mark * (size // len(mark) + 1))[: size - len(tail.encode())] + tail


def set_frame(number: int, format: str, key: str, value: Any, **more: Any) -> bytes:
    body = CODECS[format].encode({"key": key, "value": value, **more})
    return frame(Kind.REQUEST, number, body, COMMANDS["kv.set"].code)


@pytest.fixture(scope="module", params=LOOPS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(environment=loop_environment(request.param, tmp_path_factory)) as running:
        yield running
    assert "Traceback" not in "".join(running.output)


@pytest.mark.parametrize("format", sorted(CODECS))
@pytest.mark.parametrize("kind", ["plain", "accents", "quotes"])
def test_values_that_drip_in_on_several_connections_at_once(service: ThrowawayServer, format: str, kind: str) -> None:
    dice = random.Random(f"{format}{kind}")
    connections = [Native(service, format) for _ in range(4)]
    values = {}
    streams = []
    for which in range(len(connections)):
        stream = b""
        for number, size in enumerate(dice.sample(SIZES, 4), 1):
            key = f"{format}:{kind}:{which}:{number}"
            values[key] = text(which * 10 + number, size, kind)
            more = {"ttl": 1000} if number == 2 else {}
            stream += set_frame(2 * number, format, key, values[key], **more) + set_frame(
                2 * number + 1, format, "s", 1
            )
        streams.append(memoryview(stream))
    while any(streams):
        which = dice.choice([which for which, stream in enumerate(streams) if stream])
        size = dice.choice([1, 12, 100, 65_536, 400_000, 2_000_000])
        connections[which].socket.sendall(streams[which][:size])
        streams[which] = streams[which][size:]
    for connection in connections:
        answers = [connection.read() for _ in range(8)]
        assert [(one.kind, one.id) for one in answers] == [(Kind.ANSWER, number) for number in range(2, 10)]
        connection.close()
    with SynapClient(url=service.url, format=format) as client:
        for key, value in values.items():
            assert client.kv.get(key, required=True).value == value


@pytest.mark.parametrize("format", sorted(CODECS))
@pytest.mark.parametrize("transport", ["native", "websocket"])
async def test_many_large_values_at_once_some_cancelled(service: ThrowawayServer, format: str, transport: str) -> None:
    async with AsyncSynapClient(url=service.url, format=format, transport=transport, timeout=PATIENCE) as client:

        async def turn(number: int) -> None:
            value = text(number, SIZES[number % 6])
            await client.kv.set(f"at once:{number}", value)
            assert (await client.kv.get(f"at once:{number}", required=True)).value == value
            assert (await client.kv.get(f"at once:{number}", required=True)).value == value

        turns = [asyncio.ensure_future(turn(number)) for number in range(16)]
        gets = [asyncio.ensure_future(client.kv.get(f"at once:{number}")) for number in range(16)]
        await asyncio.sleep(0)
        for cancelled in [*turns[::4], *gets[::2]]:
            cancelled.cancel()
        outcomes = await asyncio.gather(*turns, *gets, return_exceptions=True)
        assert {type(one) for one in outcomes} <= {type(None), asyncio.CancelledError, type(await client.kv.get("s"))}
        await asyncio.gather(*(turn(number) for number in range(16)))


@pytest.mark.parametrize("format", sorted(CODECS))
def test_large_values_of_threads(service: ThrowawayServer, format: str) -> None:
    with SynapClient(url=service.url, format=format, timeout=PATIENCE) as client, ThreadPoolExecutor(6) as threads:

        def turn(number: int) -> bool:
            value = text(number, SIZES[number % 6], "accents")
            client.kv.set(f"threads:{number}", value)
            return bool(client.kv.get(f"threads:{number}", required=True).value == value)

        assert all(threads.map(turn, range(16)))


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_values_stay_as_they_were_read_whatever_is_read_after_them(
    service: ThrowawayServer, asynchronous: bool
) -> None:
    kept: list[Any] = []
    values: list[Any] = [bytes([number]) * 500_000 for number in range(8)]
    values += [{"inner": [value, text(number, 400_000)]} for number, value in enumerate(values)]
    if asynchronous:
        async with AsyncSynapClient(url=service.url, format="msgpack") as client:
            for number, value in enumerate(values):
                await client.kv.set(f"kept:{number}", value)
            for number in range(len(values)):
                kept.append((await client.kv.get(f"kept:{number}", required=True)).value)
    else:
        with SynapClient(url=service.url, format="msgpack") as blocking:
            for number, value in enumerate(values):
                blocking.kv.set(f"kept:{number}", value)
            for number in range(len(values)):
                kept.append(blocking.kv.get(f"kept:{number}", required=True).value)
    assert kept == values


def _put(heard: asyncio.Queue[Any], topic: str, message: Any) -> None:
    heard.put_nowait(message)


async def test_large_messages_and_events(service: ThrowawayServer) -> None:
    values = [text(number, SIZES[number % 4]) for number in range(8)]
    for format in sorted(CODECS):
        heard: asyncio.Queue[Any] = asyncio.Queue()
        async with AsyncSynapClient(url=service.url, format=format, timeout=PATIENCE) as client:
            async with await client.pubsub.subscribe(["large"], functools.partial(_put, heard)):
                for value in values:
                    await client.queue.publish("large", value, headers={"a": "b"})
                    await client.stream.publish("large", "e", value)
                    await client.pubsub.publish("large", value)
                messages = [await client.queue.consume("large", timeout=PATIENCE) for _ in values]
                assert [one.message for one in messages if one is not None] == values
                events = (await client.stream.history("large", limit=1000)).events
                assert [event.data for event in events][-len(values) :] == values
                assert [await asyncio.wait_for(heard.get(), PATIENCE) for _ in values] == values
                for one in messages:
                    assert one is not None
                    await client.queue.ack("large", one.message_id)


@pytest.mark.parametrize("format", sorted(CODECS))
async def test_large_values_over_tls(tmp_path: Path, format: str) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("localhost")
    with ThrowawayServer(arguments=["--tls-cert", str(own.cert), "--tls-key", str(own.key)]) as running:
        async with AsyncSynapClient(
            url=running.url, tls_ca=str(authority.path), format=format, timeout=PATIENCE
        ) as client:

            async def turn(number: int) -> None:
                value = text(number, SIZES[number % 6], "accents")
                await client.kv.set(f"tls:{number}", value)
                assert (await client.kv.get(f"tls:{number}", required=True)).value == value

            await asyncio.gather(*(turn(number) for number in range(20)))


def announce(server: ThrowawayServer, size: int, sent: int) -> socket.socket:
    native = Native(server)
    with contextlib.suppress(OSError):  # the service may end it meanwhile
        native.send(
            HEADER.pack(size, Kind.REQUEST, 0, COMMANDS["kv.set"].code, 1) + b'{"key":"k","value":"%b' % (b"x" * sent)
        )
    return native.socket


def test_memory_for_what_is_only_announced_is_counted() -> None:
    """Of six that announce 2 MiB each and send a tenth of it, four stay below a limit of 10 MiB."""
    with ThrowawayServer(arguments=["--transit-limit", "10MiB"]) as narrow:
        http = Http(narrow)
        announced = [announce(narrow, MOST, 200_000) for _ in range(6)]

        def four_stay() -> bool:
            figures = http.do("admin.stats").payload["transit"]
            return bool(figures["ended_too_much_total"] >= 2 and figures["bytes"] == 4 * (HEADER.size + MOST))

        wait_for(four_stay)
        for connection in announced:
            connection.close()
        http.close()


@pytest.mark.parametrize("format", sorted(CODECS))
def test_what_is_refused_is_refused_alike_large_and_small(service: ThrowawayServer, format: str) -> None:
    refused = []
    for size in (10, 1_000_000):
        native = Native(service, format)
        native.send(set_frame(1, format, "k", "x" * size, ttl=-1), set_frame(2, format, "", "x" * size))
        native.send(set_frame(3, format, "k", "x" * size, other=1), set_frame(4, format, "k", "x" * size))
        refused.append([native.read() for _ in range(4)])
        native.close()
    small, large = refused
    assert [one.kind for one in small] == [one.kind for one in large] == [Kind.ERROR] * 3 + [Kind.ANSWER]
    for one, other in zip(small[:3], large[:3]):
        said, of_large = (CODECS[format].decode_error(each.body) for each in (one, other))
        assert (one.id, said.code, said.details) == (other.id, of_large.code, of_large.details)
        assert said.message.startswith(of_large.message)  # of a large request nothing is quoted


@pytest.mark.parametrize("format", sorted(CODECS))
def test_grants_and_rate_limits_hold_for_large_values_too(tmp_path: Path, still_rates: StillRates, format: str) -> None:
    path, key, rated = tmp_path / "keys.toml", keyfile.new_key(), keyfile.new_key()
    keyfile.add(path, "orders", key, ["kv:*:orders*"], Quota())
    keyfile.add(path, "rated", rated, ["*:*:*"], Quota(requests=2))
    large = "x" * 1_000_000
    with ThrowawayServer(arguments=["--keys-file", str(path)], environment=still_rates.environment) as running:
        with SynapClient(url=running.url, api_key=key, format=format) as client:
            for _ in range(2):
                client.kv.set("orders:1", large)
                with pytest.raises(PermissionDeniedError):
                    client.kv.set("secrets", large)
            assert client.kv.get("orders:1", required=True).value == large
        with SynapClient(url=running.url, api_key=rated, format=format, retries=0) as client:
            for number in range(2):
                client.kv.set(f"rated:{number}", large)
            with pytest.raises(RateLimitError):
                client.kv.set("rated:2", large)


@pytest.mark.parametrize("transport", ["native", "websocket"])
def test_what_is_leased_fits_one_answer_in_the_format_in_which_it_is_largest(
    service: ThrowawayServer, transport: Any
) -> None:
    """A control character has one byte in MessagePack, and six in JSON."""
    name = f"growing:{transport}"
    with SynapClient(url=service.url, format="msgpack") as client:
        for size in (4_000_000, 4_000_000, 4_000_000, 10_000_000):
            client.queue.publish(name, "\x01" * size)
    with SynapClient(url=service.url, format="json", transport=transport, timeout=PATIENCE) as client:
        assert [len(client.queue.consume_many([name])) for _ in range(3)] == [2, 1, 1]
