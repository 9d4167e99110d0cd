"""What is built from the fields of payloads does what a look at each field would."""

from __future__ import annotations

from typing import Any, List

import pytest
from msgspec import UNSET

from synap import commands as c
from synap.errors import SynapError
from synap.shapes import VALUE, changer, value_fields
from synap.wire.codec import CODECS

HOLDERS = [command for command in c.COMMANDS.values() if not command.bundle and value_fields(command.payload)]


def payload_of(command: Any) -> Any:
    """Make a payload whose values are the names of their fields, and which holds nothing else."""
    payload = command.payload(**dict.fromkeys(command.payload.__struct_fields__))
    for field in value_fields(command.payload):
        if field.kind == VALUE:
            setattr(payload, field.name, field.name)
        else:
            items = [field.item(**dict.fromkeys(field.item.__struct_fields__)) for _ in range(3)]
            for item in items:
                for inner in value_fields(field.item):
                    setattr(item, inner.name, inner.name)
            setattr(payload, field.name, items)
    return payload


def values_of(payload: Any) -> List[Any]:
    found: List[Any] = []
    for field in value_fields(type(payload)):
        held = getattr(payload, field.name)
        found += [held] if field.kind == VALUE else [value for item in held for value in values_of(item)]
    return found


@pytest.mark.parametrize("command", HOLDERS, ids=lambda command: str(command.name))
def test_every_value_of_a_payload_is_changed_and_nothing_else(command: Any) -> None:
    payload = payload_of(command)
    before = values_of(payload)
    assert before
    change = changer(command.payload, str.upper)
    assert change is not None
    change(payload)
    assert values_of(payload) == [value.upper() for value in before]
    held = {field.name for field in value_fields(command.payload)}
    assert all(getattr(payload, name) is None for name in payload.__struct_fields__ if name not in held)


def test_a_value_that_is_not_given_or_of_the_spared_class_stays() -> None:
    given = c.KvSet("key", "text")  # type: ignore[arg-type]  # as in a client
    change = changer(c.KvSet, repr, str)
    assert change is not None
    change(given)
    assert given.value == "text"  # type: ignore[comparison-overlap]
    assert given.if_value is UNSET
    number: Any = 1
    change(other := c.KvSet("key", number, if_value=number))
    assert (other.value, other.if_value) == ("1", "1")  # type: ignore[comparison-overlap]


def test_a_payload_without_values_needs_no_change() -> None:
    assert changer(c.KvGet, repr) is None


@pytest.mark.parametrize("format", CODECS)
def test_an_error_says_which_item_of_a_list_it_is_about(format: str) -> None:
    value: Any = {"deep": object()}
    payload = c.KvMSet([c.Pair("a", "fine"), c.Pair("b", value)])  # type: ignore[arg-type]
    with pytest.raises(SynapError, match=r"^.*pairs\[1\]: value at \$\.deep "):
        CODECS[format].encode_payload(c.KV_MSET, payload)
