"""Keys: values, conditions, expiry, counters, scans."""

from __future__ import annotations

import base64
import functools
import itertools
import random
from typing import Any, Callable, List, Optional, Sequence

import msgspec
import pytest

from synap import commands as c
from synap.engine import keyvalue
from synap.engine.callers import WAITING
from synap.engine.cursors import SEALED, read_cursor, write_cursor
from synap.engine.engine import Limits
from synap.engine.journal import Journal
from synap.engine.keyvalue import CLEARED_AT_ONCE
from synap.engine.values import integer
from synap.errors import SynapError
from tests.helpers.world import World

X: Any = b'"x"'
Y: Any = b'"y"'


def read(world: World, key: str) -> c.GetAnswer:
    return world.get(c.GetAnswer, c.KvGet(key))


def test_a_value_is_found_until_it_is_deleted(world: World) -> None:
    assert world(c.KvSet("a", X)) == c.SetAnswer(True, "a")
    assert read(world, "a") == c.GetAnswer(True, X, None)
    assert world(c.KvDel(["a", "a", "b"])) == c.DeletedAnswer(1)
    assert read(world, "a") == c.GetAnswer(False)


def test_set_says_what_was_there_before_unless_it_is_large(world: World) -> None:
    large: Any = b'"' + b"x" * 70_000 + b'"'
    world(c.KvSet("a", X))
    assert world(c.KvSet("a", large)).previous == X
    assert world(c.KvSet("a", X)).previous is None


def test_a_condition_that_fails_changes_nothing_and_shows_what_is_there(world: World) -> None:
    assert world(c.KvSet("a", X, xx=True)) == c.SetAnswer(False, "a")
    world(c.KvSet("a", X))
    assert world(c.KvSet("a", Y, nx=True)) == c.SetAnswer(False, "a", X)
    assert read(world, "a").value == X
    assert world.error(c.KvSet("a", X, nx=True, xx=True)).code == "INVALID_PAYLOAD"


def test_an_expired_key_is_not_there_even_if_nobody_let_time_pass(world: World) -> None:
    world(c.KvSet("a", X, ttl=10))
    world.now += 10
    assert not read(world, "a").found
    assert world(c.KvMGet(["a"])).values == [c.GetAnswer(False)]
    assert world(c.KvScan()).keys == []
    assert world(c.KvDel(["a"])).deleted == 0
    world.now += 1
    assert world(c.KvSet("a", Y, nx=True)).success


@pytest.mark.parametrize("now", [0.0, 1.1, 1_700_000_000.123456, 1_700_000_000.7])
def test_the_remaining_time_is_rounded_up(world: World, now: float) -> None:
    world.now = now
    world(c.KvSet("a", X, ttl=10))
    assert read(world, "a").ttl == 10
    world.now = now + 0.5
    assert read(world, "a").ttl == 10
    world.now = now + 9.75
    assert read(world, "a").ttl == 1


def test_set_without_ttl_drops_an_earlier_one_and_incr_keeps_it(world: World) -> None:
    number: Any = b"1"
    world(c.KvSet("a", number, ttl=10))
    world(c.KvIncr("a"))
    assert world(c.KvTtl("a")).ttl == 10
    world(c.KvSet("a", number))
    assert world(c.KvTtl("a")).ttl is None


def test_expire_and_persist_change_the_time_a_key_has(world: World) -> None:
    world(c.KvSet("a", X))
    world(c.KvExpire("a", 5))
    world(c.KvPersist("a"))
    world.sleep(10)
    assert read(world, "a").found
    world(c.KvExpire("a", 5))
    world.sleep(5)
    assert world.engine.stats()["keys"] == 0


@pytest.mark.parametrize("payload", [c.KvTtl("nope"), c.KvExpire("nope", 1), c.KvPersist("nope")], ids=repr)
def test_what_needs_a_key_names_the_one_that_is_missing(world: World, payload: Any) -> None:
    error = world.error(payload)
    assert (error.code, error.details) == ("KEY_NOT_FOUND", {"key": "nope"})


def test_keys_are_limited_in_bytes_not_in_characters(world: World) -> None:
    assert world(c.KvSet("é" * 512, X)).success
    assert world.error(c.KvSet("é" * 513, X)).code == "INVALID_PAYLOAD"
    assert world.error(c.KvSet("\ud800", X)).code == "INVALID_PAYLOAD"


# ---- counters


def test_a_counter_starts_at_zero(world: World) -> None:
    assert world(c.KvIncr("n")).value == 1
    assert world(c.KvDecr("n", 5)).value == -4
    assert read(world, "n").value == b"-4"


@pytest.mark.parametrize("value", [b'"1"', b"1.0", b"true", b"null", b"[1]", b"\xca\x00\x00\x00\x00", b"\x91\x01"])
def test_only_integers_count(world: World, value: Any) -> None:
    world(c.KvSet("n", value))
    assert world.error(c.KvIncr("n")).code == "WRONG_TYPE"
    assert read(world, "n").value == value


def test_a_counter_that_would_overflow_keeps_its_value(world: World) -> None:
    most: Any = b"%d" % (2**63 - 1)
    world(c.KvSet("n", most, ttl=5))
    assert world.error(c.KvIncr("n")).code == "INTEGER_OVERFLOW"
    assert read(world, "n") == c.GetAnswer(True, most, 5)
    assert world(c.KvDecr("n", 2)).value == 2**63 - 3
    assert world(c.KvDecr("m", -(2**62))).value == 2**62


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"0", 0),
        (b"-12", -12),
        (b"\xcc\x07", 7),
        (b"\xcd\x01\x00", 256),
        (b"\xce\x00\x01\x00\x00", 65536),
        (b"\xcf" + b"\xff" * 8, 2**64 - 1),
        (b"\xd0\x80", -128),
        (b"\xd1\xff\x00", -256),
        (b"\xd3" + b"\xff" * 8, -1),
        (b"\xff", -1),
        (b"\xe0", -32),
        (b"-", None),
        (b"1e3", None),
        (b"\xcc", None),
    ],
)
def test_integers_are_read_in_both_formats(value: bytes, number: Any) -> None:
    assert integer(value) == number


# ---- several at once


def test_mset_stores_all_or_none(world: World) -> None:
    world(c.KvMSet([c.Pair("a", X), c.Pair("b", Y, ttl=5)]))
    assert world(c.KvMGet(["a", "b", "c"])).values == [
        c.GetAnswer(True, X),
        c.GetAnswer(True, Y, 5),
        c.GetAnswer(False),
    ]
    assert world.error(c.KvMSet([c.Pair("new", X), c.Pair("é" * 600, X)])).code == "INVALID_PAYLOAD"
    assert not read(world, "new").found


def test_del_with_a_key_that_is_refused_deletes_nothing(world: World) -> None:
    world(c.KvSet("a", X))
    assert world.error(c.KvDel(["a", "é" * 600])).code == "INVALID_PAYLOAD"
    assert read(world, "a").found


def test_a_write_that_would_pass_the_memory_limit_is_refused_and_smaller_ones_are_not() -> None:
    world = World(limits=Limits(memory=10_000))
    value: Any = b'"' + b"x" * 6000 + b'"'
    world(c.KvSet("a", value))
    assert world.error(c.KvSet("b", value)).code == "MEMORY_LIMIT"
    assert world.error(c.KvMSet([c.Pair("b", value)])).code == "MEMORY_LIMIT"
    assert world.error(c.QueuePublish("q", value)).code == "MEMORY_LIMIT"
    assert world.error(c.StreamPublish("r", "t", value)).code == "MEMORY_LIMIT"
    assert world(c.QueueList()).queues == []
    assert world(c.KvSet("a", X)).success
    assert world(c.KvSet("b", value)).success


# ---- scans


def scan(world: World, prefix: str, count: int) -> List[str]:
    keys: List[str] = []
    cursor = None
    while True:
        page = world.get(c.ScanAnswer, c.KvScan(prefix, cursor, count))
        assert len(page.keys) <= count
        assert page.has_more == (page.cursor is not None)
        keys += page.keys
        cursor = page.cursor
        if cursor is None:
            return keys


def test_a_scan_pages_through_the_keys_of_a_prefix(world: World) -> None:
    for number in range(25):
        world(c.KvSet(f"user:{number:02}", X))
        world(c.KvSet(f"zebra:{number:02}", X))
    assert scan(world, "user:", 10) == [f"user:{number:02}" for number in range(25)]
    assert len(scan(world, "", 7)) == 50
    assert scan(world, "none", 7) == []


class Even:
    """Sees the keys with an even number of two beginnings."""

    def __init__(self, begin: Sequence[str]) -> None:
        self.begin = begin

    def allows(self, name: str) -> bool:
        return name.startswith(("user:", "zebra:")) and int(name[-3:]) % 2 == 0


@pytest.mark.parametrize("hidden", [1, 7, 100_000])
@pytest.mark.parametrize("begin", [("zebra:", "user:", "user:1"), ("",)])
def test_a_page_ends_after_many_keys_that_its_caller_may_not_see(
    world: World, monkeypatch: pytest.MonkeyPatch, hidden: int, begin: Sequence[str]
) -> None:
    monkeypatch.setattr(keyvalue, "HIDDEN", hidden)
    for number in range(120):
        for name in ("a", "user:", "x", "zebra:"):
            world(c.KvSet(f"{name}{number:03}", X))
    for prefix, count in (("", 7), ("user:", 1), ("user:1", 10), ("zebra:", 100), ("x", 3), ("", 3)):
        keys: List[str] = []
        cursor: Optional[str] = None
        for _ in range(1000):
            asked: Any = c.KvScan(prefix, cursor, count)
            asked.only = Even(begin)
            page = world.get(c.ScanAnswer, asked)
            keys += page.keys
            cursor = page.cursor
            if cursor is None:
                break
            text = cursor.lstrip("~")
            told = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[8:]  # behind a signature
            assert told == keys[-1].encode() if cursor == text else not told.startswith((b"user:", b"zebra:"))
        expected = [f"{name}{number:03}" for name in ("user:", "zebra:") for number in range(0, 120, 2)]
        assert keys == [name for name in expected if name.startswith(prefix)]


def test_keys_that_stay_are_returned_once_whatever_comes_and_goes(world: World) -> None:
    chance = random.Random(3)
    staying = [f"{chance.random()}" for _ in range(200)]
    for key in staying:
        world(c.KvSet(key, X))
    found: List[str] = []
    cursor = None
    while True:
        page = world.get(c.ScanAnswer, c.KvScan(None, cursor, 7))
        found += page.keys
        for _ in range(20):
            key = f"{chance.random()}!"
            world(c.KvSet(key, X))
            if chance.random() < 0.5:
                world(c.KvDel([key]))
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(key for key in found if not key.endswith("!")) == sorted(staying)
    assert len(found) == len(set(found))


def test_a_cursor_that_was_never_issued_is_refused(world: World) -> None:
    for key in ("a1", "a2", "b1"):
        world(c.KvSet(key, X))
    cursor = world(c.KvScan("a", None, 1)).cursor
    # Some of these stand for the same bytes as the cursor that was issued.
    flipped = [cursor[:-1] + letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh0189-_" if letter != cursor[-1]]
    for wrong in ("", "0", "a1", "ü", cursor + "A", cursor[1:], cursor + "=", cursor + "==", *flipped):
        assert world.error(c.KvScan("a", wrong, 1)).code == "INVALID_PAYLOAD"
    assert world.error(c.KvScan("b", cursor, 1)).code == "INVALID_PAYLOAD"
    assert world(c.KvScan("a", cursor, 1)).keys == ["a2"]


def test_a_sealed_cursor_is_of_no_use_to_tell_which_key_it_hides() -> None:
    """Else whoever guesses the key could see, by what is accepted, that it is the one."""
    secret, hidden = b"s" * 32, "secret:1"
    sealed = write_cursor(secret, "", hidden, SEALED)
    assert read_cursor(secret, "", sealed) == hidden
    data = base64.urlsafe_b64decode(sealed[1:] + "=" * (-len(sealed[1:]) % 4))
    guess = base64.urlsafe_b64encode(data[:8] + hidden.encode()).decode().rstrip("=")
    plain = write_cursor(secret, "", hidden)
    assert read_cursor(secret, "", plain) == hidden
    for wrong in (guess, SEALED + guess, sealed[1:], SEALED + sealed, SEALED + plain, SEALED):
        with pytest.raises(SynapError):
            read_cursor(secret, "", wrong)


def test_a_cursor_of_the_longest_key_is_taken_and_longer_ones_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cursor of megabytes kept other callers waiting."""
    secret, last = b"s" * 32, "0fff" + "é" * 512
    for kind in ("", SEALED):
        assert read_cursor(secret, "p" * 1024, write_cursor(secret, "p" * 1024, last, kind)) == last
    monkeypatch.setattr(base64, "b64decode", lambda *arguments, **kwargs: pytest.fail("it was looked at"))
    with pytest.raises(SynapError, match="cursor must be one that"):
        read_cursor(secret, "", "A" * 2000)


@pytest.mark.parametrize("stored", [b"[" + b"{}," * 5_000 + b"{}]", b"\xdd\0\0\x13\x88" + b"\x90" * 5_000])
def test_a_stored_value_is_never_decoded_to_be_compared(
    monkeypatch: pytest.MonkeyPatch, world: World, stored: Any
) -> None:
    """Comparing one byte with megabytes of the other format kept all callers waiting."""
    asked: Any = b"\xc0" if stored[0] < 0x80 else b"null"
    world(c.KvSet("k", stored))
    decoded: List[bytes] = []

    def noting(decode: Callable[[bytes], Any], data: bytes) -> Any:
        decoded.append(data)
        return decode(data)

    for codec in (msgspec.json, msgspec.msgpack):
        monkeypatch.setattr(codec, "decode", functools.partial(noting, codec.decode))
    assert not world(c.KvSet("k", X, if_value=asked)).success
    assert world(c.KvDel(["k"], if_value=asked)).deleted == 0
    assert not world(c.KvExpire("k", 5, if_value=asked)).success
    assert decoded == [asked] * 3


def test_json_that_was_not_written_as_msgspec_does_equals_only_itself(world: World) -> None:
    spaced: Any = b'{"a": 1}'
    packed: Any = msgspec.msgpack.encode({"a": 1})
    world(c.KvSet("k", spaced))
    tight: Any = b'{"a":1}'
    for asked in (packed, tight):
        assert not world(c.KvSet("k", X, if_value=asked)).success
    assert world(c.KvSet("k", packed, if_value=spaced)).success
    assert world(c.KvDel(["k"], if_value=spaced)).deleted == 1


def test_clearing_spares_what_was_stored_since_it_began(world: World) -> None:
    for number in range(3 * CLEARED_AT_ONCE):
        world(c.KvSet(f"k{number:06}", X))
    assert world(c.KvClear("k"), number=1) is WAITING
    last = f"k{3 * CLEARED_AT_ONCE - 1:06}"
    world(c.KvSet(last, Y))
    world(c.KvSet("kz", Y))
    world.sleep(1)
    assert world.client.answers[1].deleted == 3 * CLEARED_AT_ONCE - 1
    assert world(c.KvScan("k", None, 10)).keys == [last, "kz"]


def test_clearing_counts_no_key_that_had_expired(world: World) -> None:
    world(c.KvSet("k1", X, ttl=5))
    world(c.KvSet("k2", X))
    world.now += 10  # and nobody has looked since
    assert world(c.KvClear("k")).deleted == 1


def test_a_page_ends_after_many_keys_that_have_expired(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(keyvalue, "HIDDEN", 100)
    for number in range(250):
        world(c.KvSet(f"k{number:03}", X, ttl=1))
    world(c.KvSet("last", X))
    world.now += 2
    pages = [world.get(c.ScanAnswer, c.KvScan())]
    while pages[-1].cursor is not None:
        pages.append(world.get(c.ScanAnswer, c.KvScan(cursor=pages[-1].cursor)))
    assert [page.keys for page in pages] == [[], [], ["last"]]


def test_clearing_ends_whatever_is_stored_behind_it_or_where_it_will_not_look(world: World) -> None:
    """It went on to the end of the prefix as it was by then, and remembered every key that anybody stored."""
    for number in range(3 * CLEARED_AT_ONCE):
        world(c.KvSet(f"k{number:06}", X))
    assert world(c.KvClear("k"), number=1) is WAITING
    (clearing,) = world.engine.keys.clearings
    stored = 0
    while 1 not in world.client.answers:
        for _ in range(1000):  # more than it looks at in one turn
            world(c.KvMSet([c.Pair(f"{place}{stored:06}", X) for place in ("a", "k000", "k9", "z")]))
            stored += 1
        world.engine.advance(world.now)
        assert stored <= 10_000
    assert world.client.answers[1].deleted == 3 * CLEARED_AT_ONCE
    assert not clearing.spared
    assert len(world.engine.keys.values) == 4 * stored


def test_clearing_ends_although_keys_are_stored_between_those_that_it_has_still_to_look_at(world: World) -> None:
    for number in range(3 * CLEARED_AT_ONCE):
        world(c.KvSet(f"k{number:06}", X))
    assert world(c.KvClear("k"), number=1) is WAITING
    for turn in itertools.count():
        if 1 in world.client.answers:
            break
        assert turn < 100
        for number in range(1000):
            world(c.KvSet(f"k{world.random.randrange(1000, 3000):06}.{turn}.{number}", X))
        world.engine.advance(world.now)
    assert world.client.answers[1].deleted == 3 * CLEARED_AT_ONCE


@pytest.mark.parametrize("how", ["aborted", "refused by the disk"])
def test_clearing_deletes_what_was_changed_meanwhile_where_that_is_undone(how: str) -> None:
    world = World(durable=True)
    for number in range(3 * CLEARED_AT_ONCE):
        world(c.KvSet(f"k{number:06}", X))
    assert world(c.KvClear("k"), number=1) is WAITING
    last, before = (f"k{3 * CLEARED_AT_ONCE - behind:06}" for behind in (1, 2))
    world(c.KvSet(before, Y))
    world.engine.collect()
    changes = [c.KvSet(last, Y), c.KvSet(before, X)]
    if how == "aborted":
        outcomes = world.batch(*changes, c.QueueStats("none"), atomic=True)
        assert outcomes == ["BATCH_ABORTED", "BATCH_ABORTED", "QUEUE_NOT_FOUND"]
    else:
        for change in changes:
            world(change)
        Journal.roll_back(world.engine.collect()[1])
    world.sleep(1)
    assert world.client.answers[1].deleted == 3 * CLEARED_AT_ONCE - 1
    assert world.engine.keys.values == {before: Y}
