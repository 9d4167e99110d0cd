"""What may be stored comes back equal and of the same type; what can't be is refused by its place."""

from __future__ import annotations

import base64
import itertools
import math
from typing import Any, Dict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap import commands as c
from synap.config import FORMATS
from synap.errors import SynapError
from synap.wire import values
from synap.wire.codec import CODECS, JSON, MSGPACK, find

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


DOCUMENTED = ("INVALID_PAYLOAD", "INVALID_REQUEST")


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def stored(value: Any, format: str) -> bytes:
    """Take a value the way it takes from a client to the engine."""
    codec = CODECS[format]
    kept: bytes = codec.decode_payload(c.KV_SET, codec.encode_payload(c.KV_SET, c.KvSet("k", value))).value
    return kept


def fetched(value: bytes, format: str) -> Any:
    """Take a stored value the way it takes from the engine to a client."""
    codec = CODECS[format]
    return codec.decode_result(c.KV_GET, codec.encode_answer(c.GetAnswer(True, value))).value


@given(json_values, st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_a_json_value_comes_back_the_same_in_whatever_format_it_is_read(value: Any, wrote: str, reads: str) -> None:
    assert same(fetched(stored(value, wrote), reads), value)


@given(json_values, st.sampled_from(FORMATS))
def test_a_stored_value_tells_its_format_by_its_first_byte(value: Any, format: str) -> None:
    assert (stored(value, format)[0] < 0x80) == (format == "json")


@given(st.binary())
def test_bytes_come_back_as_bytes_in_messagepack_and_as_base64_in_json(value: bytes) -> None:
    kept = stored(value, "msgpack")
    assert fetched(kept, "msgpack") == value
    assert fetched(kept, "json") == base64.b64encode(value).decode()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, math.nan]}, "$.a[1]"),
        ([math.inf], "$[0]"),
        ({"a": {"b": 2**64}}, "$.a.b"),
        (-(2**63) - 1, "$"),
        ({1: 2}, "$"),
        ({"when": object()}, "$.when"),
        ([{"x": {3, 4}}], "$[0].x"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_come_back_equal_is_refused_with_its_place(value: Any, place: str, format: str) -> None:
    with pytest.raises(SynapError) as refused:
        stored(value, format)
    assert refused.value.code == "INVALID_PAYLOAD"
    assert refused.value.details["path"] == place


class Text(str):
    """A string with something of its own, as many libraries have them."""


class Number(int):
    """An integer of the same sort."""


class Table(Dict[str, Any]):
    """A dictionary of the same sort."""


@pytest.mark.parametrize("format", FORMATS)
def test_what_derives_from_a_plain_type_is_stored_as_that_type(format: str) -> None:
    assert same(fetched(stored(Table(a=[Text("x"), Number(3)]), format), format), {"a": ["x", 3]})


def test_bytes_are_refused_in_json_with_their_place() -> None:
    with pytest.raises(SynapError, match=r"\$\.image\.data.*msgpack"):
        stored({"image": {"data": b"x"}}, "json")


@pytest.mark.parametrize("format", FORMATS)
def test_a_value_nested_too_deep_is_refused(format: str) -> None:
    deep: Any = None
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(SynapError, match="nested"):
        stored(deep, format)


@pytest.mark.parametrize(
    "text",
    [
        b"123456789012345678901234567890",
        b"1e400",
        b'"\xff"',
        b"[1,}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a": NaN}',
        b"'a'",
    ],
)
def test_a_stranger_cannot_store_what_a_client_could_not_read(text: bytes) -> None:
    with pytest.raises(SynapError) as refused:
        JSON.decode_payload(c.KV_SET, b'{"key":"k","value":' + text + b"}")
    assert refused.value.code in DOCUMENTED


@pytest.mark.parametrize("packed", [b"\xcb\x7f\xf8" + bytes(6), b"\x81\x01\x02", b"\xd6\xff\x00\x00\x00\x00", b"\xc1"])
def test_messagepack_that_json_cannot_show_is_refused(packed: bytes) -> None:
    with pytest.raises(SynapError) as refused:
        MSGPACK.decode_payload(c.KV_SET, b"\x82\xa3key\xa1k\xa5value" + packed)
    assert refused.value.code in DOCUMENTED


@given(st.binary(max_size=200), st.sampled_from(sorted(c.BY_CODE)), st.sampled_from(FORMATS))
def test_any_bytes_as_a_payload_are_decoded_or_refused_as_documented(body: bytes, code: int, format: str) -> None:
    refusal = None
    try:
        CODECS[format].decode_payload(c.BY_CODE[code], body)
    except SynapError as error:
        refusal = error.code
    assert refusal in (None, *DOCUMENTED)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"queue":"q","message":1,"priority":12}', "priority must be 0..9, got 12"),
        (b'{"queue":"q","message":1,"priority":"high"}', "priority must be 0..9, got 'high'"),
        (b'{"queue":"","message":1}', "queue must be a string of 1 to 256 bytes of UTF-8, got ''"),
        (b'{"queue":"q"}', "queue.publish needs the field 'message'"),
        (b'{"queue":"q","message":1,"prio":1}', "queue.publish knows no field 'prio'"),
        (b'{"queue":"q","message":1,"\\nprio":1}', "queue.publish knows no field '\\nprio'"),
        (b'{"queue":"q","message":1,"headers":{"a":1}}', "headers"),
        (b"[]", "payload must be an object, got []"),
    ],
)
def test_a_refusal_says_what_was_wrong_and_what_would_be_right(body: bytes, words: str) -> None:
    with pytest.raises(SynapError) as refused:
        JSON.decode_payload(c.QUEUE_PUBLISH, body)
    assert words in refused.value.message


def test_a_refusal_names_an_extension_type_of_messagepack() -> None:
    extension = msgspec.msgpack.Ext(5, b"abcd")
    for key, shown in ((extension, "extension type 5"), ([extension], "[extension type 5]")):
        with pytest.raises(SynapError) as refused:
            MSGPACK.decode_payload(c.KV_GET, msgspec.msgpack.encode({"key": key}))
        assert refused.value.message == f"key must be a string of 1 to 1,024 bytes of UTF-8, got {shown}"


def test_a_refusal_takes_and_says_little_of_what_was_sent() -> None:
    """A request of 32 KB took a second, and one of twice the length four: the square of a name's length."""
    names = ["\n" + " - at `$" * 10_000 + "\n", " - at `$" * 10_000, "\n" * 100_000, "x" * 100_000]
    for name in names:
        for codec in CODECS.values():
            with pytest.raises(SynapError, match=r"kv\.get knows no field") as refused:
                codec.decode_payload(c.KV_GET, codec.encode({"key": "a", name: 1}))
            assert len(refused.value.message) + len(refused.value.details["field"]) < 500
    for name in names:
        with pytest.raises(SynapError, match="state must be") as refused:
            JSON.decode_payload(c.QUEUE_PEEK, JSON.encode({"queue": "a", "state": name}))
        assert len(refused.value.message) < 500


def test_lists_as_keys_are_refused_before_a_dictionary_is_made_of_them() -> None:
    # These have the same hash: in a dictionary each would be compared with all before it.
    keys = list(itertools.islice(itertools.product((-1, -2), repeat=12), 4000))
    assert len({hash(key) for key in keys}) == 1
    packed = b"\xdf" + len(keys).to_bytes(4, "big") + b"".join([msgspec.msgpack.encode(key) + b"\x01" for key in keys])
    for inner in (packed, b"\x91\x81\xa1k" + packed, b"\x91" * (values.MAX_DEPTH - 1) + packed):
        with pytest.raises(SynapError) as refused:
            values.from_msgpack(inner)
        assert refused.value.message == "value at $ can't be stored: keys must be strings"
    with pytest.raises(SynapError, match="nested deeper"):
        values.from_msgpack(b"\x91" * values.MAX_DEPTH + packed)
    with pytest.raises(SynapError, match=r"payload must be an object$"):
        MSGPACK.decode_payload(c.KV_SET, packed)
    with pytest.raises(SynapError, match=r"bytes of UTF-8$"):
        MSGPACK.decode_payload(c.KV_GET, b"\x81\xa3key" + packed)


@given(
    st.recursive(
        st.text() | st.integers(-5, 2**63) | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_large_value_with_a_large_dictionary_is_taken_as_it_is(value: Any) -> None:
    many = {f"key {number}": value for number in range(300)}
    packed = msgspec.msgpack.encode([value, many])
    assert values.from_msgpack(packed) == packed


def test_the_number_of_a_command_in_a_batch_has_63_bits() -> None:
    # Beyond, any number of them could have the same hash.
    for number in (2**63 - 1, 2**63):
        body = msgspec.json.encode({"commands": [{"command": "kv.get", "payload": {"key": "k"}, "number": number}]})
        if number < 2**63:
            assert JSON.decode_payload(c.BATCH, body).commands[0].number == number
        else:
            with pytest.raises(SynapError, match="63 bits"):
                JSON.decode_payload(c.BATCH, body)


def test_an_unknown_command_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(SynapError, match=r"kv\.sett.*did you mean 'kv\.set'") as refused:
        find("kv.sett")
    assert refused.value.code == "INVALID_COMMAND"


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize(
    ("text", "fine"),
    [("x", True), ("\\n", True), ("\u00e9", True), ("\\ud800", False), ("\x01", False), ("\\q", False), ('"', False)],
)
def test_a_large_text_is_judged_like_a_small_one(size: int, text: str, fine: bool) -> None:
    """Large ones without escapes aren't decoded to be judged."""

    class Message(msgspec.Struct):
        value: msgspec.Raw

    body = b'{"value": "' + b"x" * size + text.encode() + b'"}'
    try:
        kept = values.from_json(msgspec.json.decode(body, type=Message).value)
    except (SynapError, msgspec.DecodeError):
        assert not fine
    else:
        assert fine
        assert msgspec.json.decode(kept) == msgspec.json.decode(body)["value"]
