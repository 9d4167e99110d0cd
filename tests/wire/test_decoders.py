"""The decoders of a command, and what converts its values, are built when they are first used."""

from __future__ import annotations

from typing import Callable

import pytest

from synap.commands import COMMANDS, KV_SET, GetAnswer, KvSet
from synap.wire.codec import Codec, Later, built

FORMATS = ("json", "msgpack")


@pytest.mark.parametrize("format", FORMATS)
def test_a_decoder_is_built_by_its_first_call_and_then_stands_in_the_table_itself(format: str) -> None:
    codec = Codec(format)
    body = codec.encode({"key": "k", "value": "v"})
    first = codec.decoders[KV_SET.code]
    kept: Callable[[bytes], KvSet] = first
    assert kept(body).key == "k"
    itself = codec.decoders[KV_SET.code]
    assert itself is not first
    assert bytes(itself(body).value) == bytes(kept(body).value)
    assert codec.decoders[KV_SET.code] is itself, "the first one built another"
    assert built(first) is built(itself) is itself


@pytest.mark.parametrize("format", FORMATS)
def test_every_command_s_decoders_can_be_built(format: str) -> None:
    codec = Codec(format)
    for command in COMMANDS.values():
        assert built(codec.decoders[command.code]) is codec.decoders[command.code]
        assert built(codec.results[command.name]) is codec.results[command.name]


@pytest.mark.parametrize("format", FORMATS)
def test_what_converts_the_values_of_an_answer_or_payload_is_built_by_its_first_use(format: str) -> None:
    codec = Codec(format)
    payload = KvSet(key="k", value="v")  # type: ignore[arg-type]  # as a client makes it
    for table, kind in ((codec.renderers, GetAnswer), (codec._outgoing, KvSet)):
        assert type(table[kind]) is Later
    value = codec.decoders[KV_SET.code](codec.encode_payload(KV_SET, payload)).value
    assert codec.decode(codec.encode_answer(GetAnswer(True, bytes(value))))["value"] == "v"
    for table, kind in ((codec.renderers, GetAnswer), (codec._outgoing, KvSet)):
        assert type(table[kind]) is not Later
