"""The decoders of a command are built when they are first used."""

from __future__ import annotations

from typing import Callable

import pytest

from synap.commands import COMMANDS, KV_SET, KvSet
from synap.wire.codec import Codec, built

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
