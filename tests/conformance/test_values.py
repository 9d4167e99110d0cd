"""Anything JSON can hold comes back equal and of the same type, whatever it went through."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from synap import AsyncSynapClient, SynapError
from tests.conformance.conftest import Make
from tests.helpers.seen import Seen

DEEP: Any = "bottom"
for _ in range(100):
    DEEP = [DEEP]

VALUES: Any = {
    "text": "plain",
    "digits": "123",
    "no_text": "",
    "text_true": "true",
    "text_null": "null",
    "unicode": "ünïcode ✓ 😀 \u2028",
    "control": '\x00\x1f"\\/\n',
    "one": 1,
    "zero": 0,
    "minus_one": -1,
    "small": 127,
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "unsigned": 2**64 - 1,
    "float_one": 1.0,
    "float_zero": 0.0,
    "float_large": 1.7976931348623157e308,
    "float_tiny": 5e-324,
    "float_third": 1 / 3,
    "float_beyond_int": 1e22,
    "true": True,
    "false": False,
    "none": None,
    "list": [1, 1.0, "1", True, None],
    "no_list": [],
    "dict": {"a": {"b": [1, {"c": None}]}, "": 0, "key with spaces": "ü"},
    "no_dict": {},
    "deep": DEEP,
    "long": "x" * 100_000,
    "many": list(range(5_000)),
}


def same(left: Any, right: Any) -> bool:
    """Say whether two values are equal and of the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


async def test_a_value_comes_back_equal_and_of_the_same_type(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{label}": value for label, value in VALUES.items()})
    got = await client.kv.mget(*(f"{name}:{label}" for label in VALUES))
    for (label, value), result in zip(VALUES.items(), got):
        assert result.found
        assert same(result.value, value), label


@pytest.mark.parametrize("label", ["digits", "float_one", "true", "none", "small", "dict"])
async def test_a_value_that_is_set_alone_comes_back_the_same(client: AsyncSynapClient, name: str, label: str) -> None:
    await client.kv.set(name, VALUES[label])
    result = await client.kv.get(name)
    assert result.found
    assert same(result.value, VALUES[label])


async def test_a_stored_none_is_found(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, None)
    result = await client.kv.get(name)
    assert (result.found, result.value) == (True, None)
    assert await client.kv.exists(name)


async def test_a_tuple_comes_back_as_a_list(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, (1, ("a", 2)))
    assert (await client.kv.get(name)).value == [1, ["a", 2]]


async def test_messages_keep_their_types(client: AsyncSynapClient, name: str) -> None:
    for value in VALUES.values():
        await client.queue.publish(name, value)
    for label, value in VALUES.items():
        message = await client.queue.consume(name)
        assert message is not None
        assert same(message.message, value), label


async def test_events_keep_their_types(client: AsyncSynapClient, name: str) -> None:
    for label, value in VALUES.items():
        await client.stream.publish(name, label, value)
    events = (await client.stream.history(name)).events
    for (label, value), event in zip(VALUES.items(), events):
        assert event.event_type == label
        assert same(event.data, value), label


async def test_pushed_events_keep_their_types(client: AsyncSynapClient, name: str) -> None:
    for value in VALUES.values():
        await client.stream.publish(name, "value", value)
    seen = Seen()
    await client.stream.subscribe(name, seen, replay=True)
    events = await seen.first(len(VALUES))
    for (label, value), event in zip(VALUES.items(), events):
        assert same(event.data, value), label


@pytest.mark.without("crashing")
async def test_topic_messages_keep_their_types(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.pubsub.subscribe([name], seen)
    for value in VALUES.values():
        await client.pubsub.publish(name, value)
    for (label, value), (topic, message) in zip(VALUES.items(), await seen.first(len(VALUES))):
        assert topic == name
        assert same(message, value), label


@pytest.mark.only("json")
async def test_a_value_written_in_one_format_is_readable_in_the_other(make: Make, name: str) -> None:
    json, msgpack = make(), make(format="msgpack")
    for writer, reader in ((json, msgpack), (msgpack, json)):
        for label, value in VALUES.items():
            await writer.kv.set(name, value)
            assert same((await reader.kv.get(name)).value, value), label


@pytest.mark.only("json")
async def test_messages_and_events_written_in_one_format_are_readable_in_the_other(make: Make, name: str) -> None:
    json, msgpack = make(), make(format="msgpack")
    value = VALUES["dict"]
    for number, (writer, reader) in enumerate(((json, msgpack), (msgpack, json))):
        await writer.queue.publish(name, value)
        message = await reader.queue.consume(name)
        assert message is not None
        assert same(message.message, value)
        await writer.stream.publish(name, "value", value)
        assert same((await reader.stream.history(name, from_offset=number)).events[0].data, value)


@pytest.mark.only("json")
async def test_a_number_written_in_one_format_counts_in_the_other(make: Make, name: str) -> None:
    json, msgpack = make(), make(format="msgpack")
    await msgpack.kv.set(name, 5)
    assert await json.kv.incr(name) == 6
    await json.kv.set(name, 41)
    assert await msgpack.kv.incr(name) == 42


@pytest.mark.only("msgpack")
async def test_bytes_come_back_with_msgpack(client: AsyncSynapClient, name: str) -> None:
    for value in (b"", b"\x00\xff" * 100, [b"a", {"b": b"c"}]):
        await client.kv.set(name, value)
        assert same((await client.kv.get(name)).value, value)
        await client.queue.publish(name, value)
        message = await client.queue.consume(name)
        assert message is not None
        assert same(message.message, value)


@pytest.mark.only("msgpack")
async def test_a_json_reader_sees_bytes_as_base64_text(make: Make, name: str) -> None:
    await make().kv.set(name, {"raw": b"\x00\xff"})
    assert (await make(format="json").kv.get(name)).value == {"raw": base64.b64encode(b"\x00\xff").decode()}


@pytest.mark.only("json")
async def test_bytes_are_refused_in_json_by_the_path_of_the_offender(client: AsyncSynapClient, name: str) -> None:
    for value, path in ((b"x", "$"), ({"a": [1, b"x"]}, "$.a[1]"), ([[], {"b": bytearray(b"x")}], "$[1].b")):
        with pytest.raises(SynapError) as caught:
            await client.kv.set(name, value)
        assert caught.value.code == "INVALID_PAYLOAD"
        assert path in caught.value.message
        assert caught.value.details["path"] == path
        assert not caught.value.may_have_happened
    assert not await client.kv.exists(name)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, float("nan"), float("inf"), float("-inf")], ids=str)
async def test_numbers_that_json_cannot_hold_are_refused_by_path(
    client: AsyncSynapClient, name: str, value: Any
) -> None:
    for offender, path in ((value, "$"), ({"deep": [value]}, "$.deep[0]")):
        with pytest.raises(SynapError) as caught:
            await client.kv.set(name, offender)
        assert caught.value.code == "INVALID_PAYLOAD"
        assert caught.value.details["path"] == path
    assert not await client.kv.exists(name)


@pytest.mark.parametrize(
    "value", [{1: "a"}, {"a": {None: 1}}, {1, 2}, object(), 1j], ids=lambda value: type(value).__name__
)
async def test_what_json_has_no_word_for_is_refused(client: AsyncSynapClient, name: str, value: Any) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.set(name, value)
    assert caught.value.code == "INVALID_PAYLOAD"


async def test_every_facility_refuses_what_cannot_be_stored(client: AsyncSynapClient, name: str) -> None:
    bad = {"a": float("nan")}
    calls = [
        client.kv.set(name, bad),
        client.kv.mset({name: bad}),
        client.queue.publish(name, bad),
        client.stream.publish(name, "type", bad),
        client.pubsub.publish(name, bad),
    ]
    for call in calls:
        with pytest.raises(SynapError) as caught:
            await call
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "NaN" in str(caught.value) or "nan" in str(caught.value)


async def test_a_value_nested_too_deep_is_refused_and_the_client_goes_on(client: AsyncSynapClient, name: str) -> None:
    value: Any = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(SynapError) as caught:
        await client.kv.set(name, value)
    assert caught.value.code == "INVALID_PAYLOAD"
    await client.kv.set(name, "fine")
    assert (await client.kv.get(name)).value == "fine"


async def test_a_large_value_comes_back(client: AsyncSynapClient, name: str) -> None:
    value = {"text": "0123456789abcdef" * 65_536}
    await client.kv.set(name, value)
    assert (await client.kv.get(name)).value == value
