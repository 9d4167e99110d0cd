"""What grants match, and which commands need them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap.commands import (
    BY_CODE,
    COMMANDS,
    KV_CLEAR,
    KV_GET,
    KV_SET,
    QUEUE_CONSUME_MANY,
    QUEUE_STATS,
    Command,
    KvClear,
    QueueConsumeMany,
)
from synap.errors import PermissionDeniedError, SynapError
from synap.server.grants import FACILITIES, VERBS, Access, Grant, _guard
from synap.testing.server import ThrowawayServer
from synap.wire.codec import JSON, Codec, Later, built

Serve = Callable[..., ThrowawayServer]
REFUSED = {
    "json": b'{"key":"user:1","value":[18446744073709551616]}',
    "msgpack": b"\x82\xa3key\xa6user:1\xa5value\xd4\x05\x00",
}
"""A `set` of a value that can't be stored."""
LISTING = ("list", "scan", "rooms", "topics", "stats")


@pytest.mark.parametrize(
    ("grant", "facility", "verb", "name", "allowed"),
    [
        ("kv:read:user:*", "kv", "read", "user:1", True),
        ("kv:read:user:*", "kv", "read", "user:", True),
        ("kv:read:user:*", "kv", "read", "user", False),
        ("kv:read:user:*", "kv", "write", "user:1", False),
        ("kv:*:a*b*c", "kv", "manage", "axxbyyc", True),
        ("kv:*:a*b*c", "kv", "manage", "axxbyy", False),
        ("kv:*:*a*b*", "kv", "manage", "ba", False),
        ("kv:*:*ab*b*", "kv", "manage", "ab", False),
        ("kv:read:a.c", "kv", "read", "abc", False),
        ("kv:read:*", "kv", "read", "line\nbreak", True),
        ("*:*:*", "pubsub", "read", "#", True),
        ("pubsub:read:#", "pubsub", "read", "#", True),
        ("pubsub:read:#", "pubsub", "read", "a.*.b", True),
        ("pubsub:read:*", "pubsub", "read", "a", True),
        ("pubsub:read:*", "pubsub", "read", "a.b", False),
        ("pubsub:read:*", "pubsub", "read", "#", False),
        ("pubsub:read:a.*", "pubsub", "read", "a.#", False),
        ("pubsub:read:a.#", "pubsub", "read", "a.*.c.#", True),
        ("pubsub:read:a.#", "pubsub", "read", "*.b", False),
        ("pubsub:read:a.#.z", "pubsub", "read", "a.b.c.z", True),
        ("pubsub:read:a.#.z", "pubsub", "read", "a.z", True),
        ("pubsub:read:a.#.z", "pubsub", "read", "a.#", False),
    ],
)
def test_what_a_grant_matches(grant: str, facility: str, verb: str, name: str, allowed: bool) -> None:
    assert Access("k", False, [Grant(grant)]).may(facility, verb, name) is allowed


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=12))
def test_stars_stand_for_any_characters(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    assert Access("k", False, [Grant(f"kv:read:{pattern}")]).may("kv", "read", name) is expected


def test_a_name_made_for_it_does_not_keep_a_pattern_of_many_stars_busy() -> None:
    """By backtracking it takes longer than the universe has existed."""
    access = Access("k", False, [Grant("kv:read:*a*a*a*a*a*a*a*b")])
    assert not access.may("kv", "read", "a" * 1024)
    assert access.may("kv", "read", "a" * 1023 + "b")


def test_a_second_connection_with_a_key_compiles_nothing_anew() -> None:
    access = Access("k", False, [Grant("kv:*:user:*"), Grant("queue:*:emails")])
    for decoder in filter(None, access.guarded(JSON, access.check)):
        built(decoder)
    compiled = _guard.cache_info().misses
    for again in (access, Access("other", False, access.grants)):
        for decoder in filter(None, again.guarded(JSON, again.check)):
            built(decoder)
    assert _guard.cache_info().misses == compiled


def unbuilt(decoders: list[Any]) -> set[int]:
    return {code for code in BY_CODE if type(decoders[code]) is Later}


@pytest.mark.parametrize("command", [KV_GET, QUEUE_STATS], ids=["for some names", "for all"])
def test_a_connection_builds_a_decoder_when_it_is_used_and_then_keeps_it_itself(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec("json")
    access = Access("k", False, [Grant("kv:*:user:*"), Grant("queue:*:*")])
    decoders, others = (access.guarded(codec, access.check) for _ in range(2))
    assert unbuilt(decoders) == unbuilt(codec.decoders) == set(BY_CODE), "opening a connection built some"
    body = codec.encode({command.name_field: "user:1"})
    decoders[command.code](body)
    assert unbuilt(decoders) == unbuilt(codec.decoders) == set(BY_CODE) - {command.code}
    others[command.code](body)

    def build(self: Later, body: object) -> None:
        raise AssertionError("a request goes through what builds decoders")

    monkeypatch.setattr(Later, "__call__", build)
    for kept in (decoders, others, codec.decoders):
        assert getattr(kept[command.code](body), command.name_field) == "user:1"


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_every_command_s_guarded_decoder_can_be_built(format: str) -> None:
    codec = Codec(format)
    access = Access("k", False, [Grant("kv:*:user:*"), Grant("queue:*:*")])
    decoders = access.guarded(codec, access.check)
    for command in COMMANDS.values():
        itself = built(decoders[command.code])
        assert decoders[command.code] is itself
        assert (itself is codec.decoders[command.code]) == (command.code in access.open)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("fields", [{"value": 5}, {"value": "x", "if_value": [1]}, {"if_value": None, "value": 0.5}])
def test_a_guarded_decoder_stores_values_as_the_codec_s_does(format: str, fields: dict[str, Any]) -> None:
    codec = Codec(format)
    access = Access("k", False, [Grant("kv:*:user:*")])
    decode = access.guarded(codec, access.check)[KV_SET.code]
    body = codec.encode({"key": "user:1", **fields})
    assert decode(body) == codec.decoders[KV_SET.code](body)
    with pytest.raises(PermissionDeniedError):
        decode(codec.encode({"key": "other", **fields}))
    with pytest.raises(SynapError, match="can't be stored"):
        decode(REFUSED[format])


@pytest.mark.parametrize(
    ("pattern", "prefix", "allowed"),
    [
        ("user:*", "user:", True),
        ("user:*", "user:1", True),
        ("user:*", "user", False),
        ("*", "", True),
        ("user:1", "user:1", False),  # user:10 begins so, too
        ("a*b", "axb", False),
    ],
)
def test_clearing_needs_a_grant_of_all_that_begins_so(pattern: str, prefix: str, allowed: bool) -> None:
    access = Access("k", False, [Grant(f"kv:{KV_CLEAR.verb}:{pattern}")])
    if allowed:
        access.check(KV_CLEAR, KvClear(prefix))
    else:
        with pytest.raises(SynapError, match="no grant"):
            access.check(KV_CLEAR, KvClear(prefix))


@pytest.mark.parametrize(
    "text", ["", "kv", "kv:read", "kv:read:", "cave:read:*", "kv:look:*", "*", "admin:*:*", "kv:read:" + "*a" * 9]
)
def test_a_grant_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(SynapError, match="grant"):
        Grant(text)


def test_a_key_for_everything_is_looked_at_no_further() -> None:
    access = Access("k", False, [Grant("*:*:*")])
    assert access.permit is None
    for command in COMMANDS.values():
        if not command.admin:
            access.check(command, None)
    for grants in (["kv:*:*", "queue:*:*", "stream:*:*"], ["*:read:*"], ["*:*:a*"], []):
        narrow = Access("k", True, map(Grant, grants))
        assert narrow.permit is narrow, grants


def test_every_command_says_what_it_needs() -> None:
    for command in COMMANDS.values():
        if command.admin:
            assert command.verb == "admin"
        elif command.ends is not None:
            assert command.verb == ""
        else:
            assert command.verb in VERBS, command
            lists = command.verb == "read" and command.name.rpartition(".")[2] in LISTING
            assert lists or command.name_field in command.payload.__struct_fields__, command
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    for command in COMMANDS.values():
        assert f"| `{command.name}` |" in page, command


@pytest.mark.parametrize("facility", FACILITIES)
def test_short_cuts_of_rules_allow_what_their_grants_match(facility: str) -> None:
    chosen = random.Random(facility)
    for _ in range(2_000):
        pattern = ".".join(chosen.choices(("a", "b", "*", "#", "a*", ""), k=chosen.randint(1, 4))) or "*"
        name = ".".join(chosen.choices(("a", "b", "ab", "*", "#", ""), k=chosen.randint(1, 5)))
        grant = Grant(f"{chosen.choice((facility, '*'))}:read:{pattern}")
        access = Access("key", False, [grant])
        assert access.may(facility, "read", name) is grant.matches(facility, name), (pattern, name)


def contains(outer: list[str], inner: list[str]) -> bool:
    """Say plainly whether the pattern `outer` matches every topic that `inner`, a pattern or a topic, matches."""
    if not outer:
        return not inner
    if outer[0] == "#":
        return contains(outer[1:], inner) or (bool(inner) and contains(outer, inner[1:]))
    return bool(inner) and inner[0] != "#" and outer[0] in ("*", inner[0]) and contains(outer[1:], inner[1:])


WORDS = st.lists(st.sampled_from(["a", "b", "*", "#", "a#", "a.b", "$", ".", "\n"]), min_size=1, max_size=7)


@given(WORDS, WORDS)
def test_a_pattern_of_topics_is_contained_as_one_would_say(outer: list[str], inner: list[str]) -> None:
    pattern, name = ".".join(outer), ".".join(inner)
    grant = Grant(f"pubsub:read:{pattern}")
    assert grant.matches("pubsub", name) == contains(pattern.split("."), name.split("."))


@pytest.mark.parametrize("pattern", ["#.a.#.b", "#.a.*.#.b", ".".join(["#", "*"] * 8), ".".join(["#.a"] * 250)])
def test_no_name_makes_a_pattern_of_topics_take_long(pattern: str) -> None:
    """Ten thousand may be in one request, before others have their turn: none is gone over twice."""
    matches = Grant(f"pubsub:read:{pattern}").matches
    for _ in range(1000):
        matches("pubsub", ".".join(["a"] * 128))


@pytest.mark.parametrize("grants", [[], ["queue:consume:mine"]])
def test_a_refusal_names_the_first_that_no_grant_covers(grants: list[str]) -> None:
    access = Access("k", False, list(map(Grant, grants)))
    with pytest.raises(PermissionDeniedError) as caught:
        access.check(QUEUE_CONSUME_MANY, QueueConsumeMany(["mine", "theirs", "hers"][bool(not grants) :]))
    assert caught.value.message == "this key has no grant for queue.consume_many there (queue:consume:theirs)"
