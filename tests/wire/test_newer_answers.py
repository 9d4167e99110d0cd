"""Answers of a newer service: clients ignore the fields that they don't know (docs/protocol.md, Versions)."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from msgspec import inspect

from synap.commands import COMMANDS, Command, EventAnswer, Figures, TopicMessage
from synap.wire.codec import JSON, MSGPACK, Codec

LATER = "of_a_later_release"


def sample(node: Any, *, later: bool) -> Any:
    """Return plain data that fits a type; `later`: with a field more in each object."""
    if isinstance(node, inspect.Metadata):
        return sample(node.type, later=later)
    if isinstance(node, inspect.UnionType):
        return sample(next(one for one in node.types if not isinstance(one, inspect.NoneType)), later=later)
    if isinstance(node, (inspect.StructType, inspect.DataclassType)):
        fields = {field.encode_name: sample(field.type, later=later) for field in node.fields}
        return {LATER: {"deep": [1]}, **fields} if later else fields
    if isinstance(node, inspect.ListType):
        return [sample(node.item_type, later=later)]
    if isinstance(node, inspect.DictType):
        return {"a": "b"}
    kinds: Dict[Any, Any] = {
        inspect.StrType: "text",
        inspect.IntType: 1,
        inspect.FloatType: 1.5,
        inspect.BoolType: True,
    }
    return kinds.get(type(node), "any value")


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize("command", [one for one in COMMANDS.values() if one.answer is not Figures], ids=str)
def test_a_field_more_in_each_object_of_an_answer_changes_nothing(command: Command, codec: Codec) -> None:
    info = inspect.type_info(command.answer)
    known, newer = (codec.encode(sample(info, later=later)) for later in (False, True))
    assert LATER.encode() in newer
    assert codec.decode_result(command, newer) == codec.decode_result(command, known)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_so_it_is_with_what_is_pushed(codec: Codec) -> None:
    for answer, decode in ((EventAnswer, codec.decode_event), (TopicMessage, codec.decode_message)):
        info = inspect.type_info(answer)
        known, newer = (codec.encode(sample(info, later=later)) for later in (False, True))
        assert decode(newer) == decode(known)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_so_it_is_with_errors(codec: Codec) -> None:
    error = {"code": "OF_A_LATER_RELEASE", "message": "m", "details": {"more": 1}, LATER: 1}
    read = codec.decode_error(codec.encode(error))
    assert (read.code, read.message, read.details) == ("OF_A_LATER_RELEASE", "m", {"more": 1})
