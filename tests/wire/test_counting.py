"""Lists that are too long are refused before they are decoded; those that aren't are never taken for such."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import msgspec
import pytest

from synap.commands import BATCH, COMMANDS, Command
from synap.errors import SynapError
from synap.wire.codec import JSON, MSGPACK, Codec
from synap.wire.counting import bounds

FILLERS: List[Tuple[str, str, Any]] = [
    ("kv.del", "keys", "a"),
    ("kv.mget", "keys", "a"),
    ("kv.mset", "pairs", {"key": "a", "value": 1}),
    ("batch", "commands", {"command": "kv.get", "payload": {"key": "a"}}),
    ("pubsub.subscribe", "topics", "a"),
    ("queue.consume_many", "queues", "a"),
]
OTHERS: Dict[str, Dict[str, Any]] = {
    "queue.publish": {"queue": "q", "message": [[]] * 99_000},
    "stream.publish": {"room": "r", "event_type": "t", "data": 1},
}


def named(name: str) -> Command:
    return BATCH if name == "batch" else COMMANDS[name]


def outcome(codec: Codec, command: Command, body: bytes) -> str:
    try:
        for _ in codec.decode_in_steps(command, body):
            pass
    except SynapError as error:
        return error.message
    return "taken"


@pytest.mark.parametrize(("name", "field", "item"), FILLERS)
@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_too_many_items_are_refused_before_they_are_made(
    name: str, field: str, item: Any, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = named(name)
    body = codec.encode({field: [item] * 400_000})
    known = outcome(codec, command, codec.encode({field: [item] * (bounds(command.payload)[field] + 1)}))
    if codec is JSON:
        monkeypatch.setattr(JSON, "decode_fields", None)  # nothing decodes it
    assert outcome(codec, command, body).split(", got")[0] == known.split(", got")[0]


@pytest.mark.parametrize(("name", "field"), [("queue.publish", "headers"), ("stream.publish", "metadata")])
def test_too_many_headers_are_refused_whatever_the_message(name: str, field: str) -> None:
    body = JSON.encode({**OTHERS[name], field: {str(number): "" for number in range(100_000)}})
    assert f"{field} must be at most 128" in outcome(JSON, COMMANDS[name], body)
    body = JSON.encode({**OTHERS[name], field: {"a,[{": ",]}" * 30_000}})
    assert outcome(JSON, COMMANDS[name], body) == "taken"


@pytest.mark.parametrize(("name", "field", "item"), FILLERS)
def test_as_many_as_are_allowed_are_taken_whatever_is_in_them(name: str, field: str, item: Any) -> None:
    command = named(name)
    most = bounds(command.payload)[field]
    text = ',"[]{},' * 9
    if name == "kv.mset":
        items: Any = [{"key": text + str(number), "value": [[1, 2], {"a": [text]}]} for number in range(most)]
    elif name == "batch":
        items = [{"command": "kv.set", "payload": {"key": text, "value": [1, [2], 3]}}] * most
    else:
        items = [text + "x" * 20 * (field == "queues")] * most
    spaced = msgspec.json.format(JSON.encode({field: items}), indent=1)
    for body in (JSON.encode({field: items}), spaced):
        assert outcome(JSON, command, body) == "taken"
    assert f"{field} must be" in outcome(JSON, command, JSON.encode({field: [*items, items[0]]}))


def test_the_value_of_a_large_refused_request_is_not_written_out() -> None:
    body = JSON.encode({"key": 5, "value": [[]] * 100_000})
    told = outcome(JSON, COMMANDS["kv.set"], body)
    assert told.startswith("key must be a string of 1 to 1,024 bytes")
    assert "got" not in told
    assert "got 5" in outcome(JSON, COMMANDS["kv.set"], b'{"key":5,"value":1}')
