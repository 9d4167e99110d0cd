"""Key-value."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, Dict, List

import pytest

from synap import AsyncSynapClient, GetResult, KeyNotFoundError, SynapError
from tests.helpers.patience import PATIENCE, about


async def gone(client: AsyncSynapClient, key: str) -> bool:
    """Wait until a key has expired."""
    deadline = time.monotonic() + PATIENCE
    while await client.kv.exists(key):
        assert time.monotonic() < deadline, f"{key} didn't expire"
        await asyncio.sleep(0.05)
    return True


# ---- set and get


async def test_set_answers_success_and_the_key(client: AsyncSynapClient, name: str) -> None:
    result = await client.kv.set(name, 1)
    assert (result.success, result.key, result.previous) == (True, name, None)


async def test_set_answers_what_was_there_before(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, {"version": 1})
    assert (await client.kv.set(name, {"version": 2})).previous == {"version": 1}
    assert (await client.kv.get(name)).value == {"version": 2}


async def test_get_on_a_missing_key_is_not_found(client: AsyncSynapClient, name: str) -> None:
    result = await client.kv.get(name)
    assert (result.found, result.value, result.ttl) == (False, None, None)


async def test_get_with_required_raises_and_names_the_key(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        await client.kv.get(name, required=True)
    assert caught.value.code == "KEY_NOT_FOUND"
    assert caught.value.details == {"key": name}
    await client.kv.set(name, 0)
    assert (await client.kv.get(name, required=True)).value == 0


async def test_what_one_client_sets_another_gets(client: AsyncSynapClient, other: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "from here")
    assert (await other.kv.get(name)).value == "from here"


@pytest.mark.parametrize("key", ["k" * 1_024, "ü" * 512, "with space", "\x00", "a/b?c#d%20", "😀", '"'], ids=ascii)
async def test_a_key_is_any_text_of_1_to_1024_bytes(client: AsyncSynapClient, key: str) -> None:
    await client.kv.set(key, key)
    assert (await client.kv.get(key)).value == key
    assert await client.kv.delete(key) == 1


@pytest.mark.parametrize(
    "key", ["", "k" * 1_025, "ü" * 513, "\ud800"], ids=["empty", "long", "long_in_bytes", "no_utf8"]
)
async def test_a_key_that_is_empty_too_long_or_not_utf8_is_refused(client: AsyncSynapClient, key: str) -> None:
    calls: Any = [
        lambda: client.kv.set(key, 1),
        lambda: client.kv.get(key),
        lambda: client.kv.delete(key),
        lambda: client.kv.exists(key),
        lambda: client.kv.incr(key),
        lambda: client.kv.expire(key, 1),
        lambda: client.kv.persist(key),
        lambda: client.kv.ttl(key),
        lambda: client.kv.mset({key: 1}),
        lambda: client.kv.mget(key),
    ]
    for call in calls:
        with pytest.raises(SynapError) as caught:
            await call()
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "key" in caught.value.message or "UTF-8" in caught.value.message


async def test_a_key_must_be_a_string(client: AsyncSynapClient) -> None:
    key: Any = 7
    with pytest.raises(SynapError) as caught:
        await client.kv.get(key)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "7" in caught.value.message


# ---- conditions


async def test_nx_sets_only_what_is_not_there(client: AsyncSynapClient, name: str) -> None:
    assert (await client.kv.set(name, "first", nx=True)).success
    assert not (await client.kv.set(name, "second", nx=True)).success
    assert (await client.kv.get(name)).value == "first"


async def test_xx_sets_only_what_is_there(client: AsyncSynapClient, name: str) -> None:
    assert not (await client.kv.set(name, "first", xx=True)).success
    assert not (await client.kv.get(name)).found
    await client.kv.set(name, "first")
    assert (await client.kv.set(name, "second", xx=True)).success
    assert (await client.kv.get(name)).value == "second"


async def test_a_condition_that_fails_leaves_the_ttl_alone(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=500)
    await client.kv.set(name, 2, nx=True)
    assert await client.kv.ttl(name) in about(500)


async def test_nx_and_xx_together_are_refused(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.set(name, 1, nx=True, xx=True)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "nx" in caught.value.message
    assert "xx" in caught.value.message
    assert not await client.kv.exists(name)


@pytest.mark.without("crashing")
async def test_of_many_that_set_with_nx_one_succeeds(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    calls = [who.kv.set(name, number, nx=True) for number in range(20) for who in (client, other)]
    results = await asyncio.gather(*calls)
    assert sum(result.success for result in results) == 1


# ---- time to live


async def test_ttl_comes_back_in_whole_seconds_rounded_up(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=600)
    for ttl in ((await client.kv.get(name)).ttl, await client.kv.ttl(name)):
        assert type(ttl) is int
        assert ttl in about(600)


async def test_ttl_is_none_where_there_is_none(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1)
    assert (await client.kv.get(name)).ttl is None
    assert await client.kv.ttl(name) is None


@pytest.mark.once_per_place
async def test_a_key_is_gone_once_its_ttl_has_passed(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=1)
    await client.kv.set(f"{name}:stays", 1)
    assert await gone(client, name)
    assert not (await client.kv.get(name)).found
    assert (await client.kv.set(name, 2, nx=True)).success
    assert await client.kv.incr(f"{name}:stays") == 2


@pytest.mark.once_per_place
async def test_a_key_that_is_stored_anew_after_its_ttl_stays(client: AsyncSynapClient, name: str) -> None:
    """However it is stored, it is found by its prefix too, also once other keys have expired."""
    anew: Dict[str, Any] = {
        "set": lambda key: client.kv.set(key, 1),
        "nx": lambda key: client.kv.set(key, 1, nx=True),
        "keep_ttl": lambda key: client.kv.set(key, 1, keep_ttl=True),
        "mset": lambda key: client.kv.mset({key: 1}),
        "incr": lambda key: client.kv.incr(key),
    }
    keys = [f"{name}:{how}" for how in anew]
    await client.kv.mset(dict.fromkeys(keys, 0), ttl=1)
    for key in keys:
        assert await gone(client, key)
    for key, store in zip(keys, anew.values()):
        await store(key)
    for number in range(len(keys)):
        await client.kv.set(f"{name}!{number}", 1, ttl=600)
    assert sorted(await scan_all(client, f"{name}:", 100)) == sorted(keys)
    assert await client.kv.clear(f"{name}:") == len(keys)


async def test_set_without_ttl_drops_an_earlier_one(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=600)
    await client.kv.set(name, 2)
    assert await client.kv.ttl(name) is None


async def test_incr_and_decr_keep_the_ttl(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=600)
    await client.kv.incr(name)
    await client.kv.decr(name)
    assert await client.kv.ttl(name) in about(600)


async def test_expire_gives_a_ttl_and_persist_takes_it(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "value")
    await client.kv.expire(name, 600)
    assert await client.kv.ttl(name) in about(600)
    await client.kv.persist(name)
    assert await client.kv.ttl(name) is None
    assert (await client.kv.get(name)).value == "value"


async def test_ttl_expire_and_persist_raise_on_a_missing_key(client: AsyncSynapClient, name: str) -> None:
    calls: Any = [client.kv.ttl(name), client.kv.expire(name, 5), client.kv.persist(name)]
    for call in calls:
        with pytest.raises(KeyNotFoundError) as caught:
            await call
        assert caught.value.details == {"key": name}


@pytest.mark.parametrize("ttl", [0, -1, 1.5, "60", True], ids=repr)
async def test_a_ttl_that_is_no_whole_second_or_more_is_refused(client: AsyncSynapClient, name: str, ttl: Any) -> None:
    await client.kv.set(f"{name}:there", 1)
    calls: Any = [
        lambda: client.kv.set(name, 1, ttl=ttl),
        lambda: client.kv.mset({name: 1}, ttl=ttl),
        lambda: client.kv.expire(f"{name}:there", ttl),
    ]
    for call in calls:
        with pytest.raises(SynapError) as caught:
            await call()
        assert caught.value.code == "INVALID_PAYLOAD"
        assert "ttl" in caught.value.message
        assert repr(ttl) in caught.value.message
    assert not await client.kv.exists(name)
    assert await client.kv.ttl(f"{name}:there") is None


# ---- delete, exists, several at once


async def test_delete_answers_how_many_there_were(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:1": 1, f"{name}:2": 2})
    assert await client.kv.delete(f"{name}:1", f"{name}:2", f"{name}:3") == 2
    assert await client.kv.delete(f"{name}:1") == 0
    assert not await client.kv.exists(f"{name}:2")


async def test_a_key_that_is_named_twice_is_deleted_once(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1)
    assert await client.kv.delete(name, name) == 1


async def test_exists_says_so(client: AsyncSynapClient, name: str) -> None:
    assert await client.kv.exists(name) is False
    await client.kv.set(name, None)
    assert await client.kv.exists(name) is True


async def test_mget_answers_in_the_order_that_was_asked(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:a": 1, f"{name}:b": "two"}, ttl=600)
    found = await client.kv.mget(f"{name}:b", f"{name}:none", f"{name}:a", f"{name}:b")
    assert [result.found for result in found] == [True, False, True, True]
    assert [result.value for result in found] == ["two", None, 1, "two"]
    assert found[0].ttl in about(600)


async def test_mset_sets_all_or_nothing(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.mset({f"{name}:a": 1, "": 2})
    assert caught.value.code == "INVALID_PAYLOAD"
    assert not await client.kv.exists(f"{name}:a")


async def test_mset_without_ttl_drops_earlier_ones(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=600)
    await client.kv.mset({name: 2})
    assert await client.kv.ttl(name) is None


# ---- counting


async def test_incr_and_decr_start_at_zero(client: AsyncSynapClient, name: str) -> None:
    assert await client.kv.incr(f"{name}:up") == 1
    assert await client.kv.decr(f"{name}:down") == -1
    assert (await client.kv.get(f"{name}:down")).value == -1


async def test_incr_and_decr_take_any_whole_amount(client: AsyncSynapClient, name: str) -> None:
    assert await client.kv.incr(name, amount=5) == 5
    assert await client.kv.incr(name, -7) == -2
    assert await client.kv.decr(name, -10) == 8
    assert await client.kv.decr(name, 8) == 0
    assert await client.kv.incr(name, 0) == 0


@pytest.mark.parametrize("value", ["5", 5.0, True, None, [5], {"n": 5}], ids=repr)
async def test_incr_on_anything_but_an_integer_is_wrong_type(client: AsyncSynapClient, name: str, value: Any) -> None:
    await client.kv.set(name, value)
    for count in (client.kv.incr, client.kv.decr):
        with pytest.raises(SynapError) as caught:
            await count(name)
        assert caught.value.code == "WRONG_TYPE"
    assert (await client.kv.get(name)).value == value


async def test_counting_past_64_bits_overflows_and_changes_nothing(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 2**63 - 1)
    with pytest.raises(SynapError) as caught:
        await client.kv.incr(name)
    assert caught.value.code == "INTEGER_OVERFLOW"
    assert (await client.kv.get(name)).value == 2**63 - 1
    await client.kv.set(name, -(2**63))
    with pytest.raises(SynapError) as caught:
        await client.kv.decr(name)
    assert caught.value.code == "INTEGER_OVERFLOW"
    assert (await client.kv.get(name)).value == -(2**63)
    assert await client.kv.incr(name) == -(2**63) + 1
    for number in (2**63, 2**64 - 1):  # which can be stored, but counters have a sign
        await client.kv.set(name, number)
        for count in (client.kv.incr(name, -(2**63)), client.kv.decr(name, 2**63 - 1)):
            with pytest.raises(SynapError) as caught:
                await count
            assert caught.value.code == "INTEGER_OVERFLOW"
        assert (await client.kv.get(name)).value == number


@pytest.mark.parametrize(("value", "after"), [(-(2**63), 0), (-1, 2**63 - 1), (0, None), (None, None), ("5", None)])
async def test_the_lowest_number_of_64_bits_can_be_subtracted(
    client: AsyncSynapClient, name: str, value: Any, after: Any
) -> None:
    if value is not None:
        await client.kv.set(name, value)
    if after is not None:
        assert await client.kv.decr(name, -(2**63)) == after
    else:
        with pytest.raises(SynapError) as caught:
            await client.kv.decr(name, -(2**63))
        assert caught.value.code == ("WRONG_TYPE" if value == "5" else "INTEGER_OVERFLOW")
    assert await client.kv.get(name) == GetResult(value is not None, value if after is None else after, None)


@pytest.mark.without("crashing")
async def test_no_increment_is_lost_among_many(client: AsyncSynapClient, other: AsyncSynapClient, name: str) -> None:
    counts = await asyncio.gather(*(who.kv.incr(name) for _ in range(50) for who in (client, other)))
    assert sorted(counts) == list(range(1, 101))


# ---- scan


async def scan_all(client: AsyncSynapClient, prefix: str, count: int) -> list[str]:
    keys: list[str] = []
    cursor = None
    for _ in range(1_000):
        page = await client.kv.scan(prefix=prefix, cursor=cursor, count=count)
        assert len(page.keys) <= count
        keys += page.keys
        if not page.has_more:
            return keys
        assert isinstance(page.cursor, str)
        cursor = page.cursor
    raise AssertionError("the scan doesn't end")


@pytest.mark.parametrize("count", [1, 7, 25, 100])
@pytest.mark.without("crashing")
async def test_scan_returns_every_key_with_the_prefix_once(client: AsyncSynapClient, name: str, count: int) -> None:
    keys = [f"{name}:{number}" for number in range(25)]
    await client.kv.mset(dict.fromkeys(keys, 1))
    await client.kv.set(f"{name}", 1)
    await client.kv.set(f"{name};", 1)
    assert sorted(await scan_all(client, f"{name}:", count)) == sorted(keys)


async def test_scan_of_nothing_is_an_empty_page(client: AsyncSynapClient, name: str) -> None:
    page = await client.kv.scan(prefix=name)
    assert (page.keys, page.has_more) == ([], False)


async def test_a_prefix_is_taken_literally(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}*a": 1, f"{name}[b]": 1, f"{name}xa": 1})
    assert (await client.kv.scan(prefix=f"{name}*")).keys == [f"{name}*a"]
    assert (await client.kv.scan(prefix=f"{name}[b]")).keys == [f"{name}[b]"]


async def test_keys_that_stay_are_scanned_exactly_once_however_many_come_and_go(
    client: AsyncSynapClient, name: str
) -> None:
    stay = {f"{name}:stay:{number:03}" for number in range(60)}
    go = {f"{name}:go:{number:03}" for number in range(60)}
    await client.kv.mset(dict.fromkeys(stay | go, 1))
    seen: list[str] = []
    cursor = None
    for turn in range(1_000):
        page = await client.kv.scan(prefix=f"{name}:", cursor=cursor, count=10)
        seen += page.keys
        if not page.has_more:
            break
        cursor = page.cursor
        fresh = {f"{name}:{letter}:new:{turn}": 1 for letter in "agsz"}
        await client.kv.mset(fresh)
        await client.kv.delete(*(f"{name}:go:{number:03}" for number in range(turn * 5, turn * 5 + 5)), "-")
        touched = sorted(stay)[turn % 60]
        await client.kv.set(touched, turn)
    assert len(seen) == len(set(seen)), "a key came twice"
    assert stay <= set(seen)


async def test_keys_that_are_set_anew_while_a_scan_is_under_way_are_all_there(
    client: AsyncSynapClient, name: str
) -> None:
    keys = [f"{name}:{number}" for number in range(20)]
    await client.kv.mset(dict.fromkeys(keys, 1))
    page = await client.kv.scan(prefix=f"{name}:", count=10)
    seen = list(page.keys)
    await client.kv.delete(*seen)
    await client.kv.mset(dict.fromkeys(seen, 2))
    while page.has_more:
        page = await client.kv.scan(prefix=f"{name}:", cursor=page.cursor, count=10)
        seen += page.keys
    assert set(keys) <= set(seen)


@pytest.mark.parametrize("cursor", ["", "0", "made-up", "ü", "A" * 64], ids=repr)
async def test_a_cursor_that_was_never_issued_is_refused(client: AsyncSynapClient, name: str, cursor: str) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.scan(prefix=name, cursor=cursor)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "cursor" in caught.value.message


async def test_a_cursor_that_was_tampered_with_is_refused(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{number}": 1 for number in range(5)})
    cursor = (await client.kv.scan(prefix=f"{name}:", count=2)).cursor
    assert cursor is not None
    for place in (0, len(cursor) // 2, len(cursor) - 1):
        swapped = "A" if cursor[place] != "A" else "B"
        with pytest.raises(SynapError) as caught:
            await client.kv.scan(prefix=f"{name}:", cursor=cursor[:place] + swapped + cursor[place + 1 :], count=2)
        assert caught.value.code == "INVALID_PAYLOAD"


@pytest.mark.parametrize("count", [0, -1, 10_001, 1.5, "10"], ids=repr)
async def test_a_count_that_is_no_page_is_refused(client: AsyncSynapClient, count: Any) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.scan(count=count)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "count" in caught.value.message


# ---- conditions on the value


VALUES = ["text", "", 0, 7, 127, 128, -1, 1.0, True, False, None, [1, {"a": None}], {"b": 1, "a": [1.5]}, "ü" * 300]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_if_value_stores_only_over_that_very_value(client: AsyncSynapClient, name: str, value: Any) -> None:
    await client.kv.set(name, value)
    assert not await client.kv.set(name, "other", if_value=["not", value])
    assert (await client.kv.get(name)).value == value
    assert await client.kv.set(name, "other", if_value=value)
    assert (await client.kv.get(name)).value == "other"


async def test_if_value_tells_types_apart(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1)
    for other in (1.0, True, "1", [1]):
        assert not await client.kv.set(name, "other", if_value=other)
    assert not await client.kv.set(name + "missing", 1, if_value=None)
    assert not await client.kv.exists(name + "missing")


async def test_a_value_is_compared_with_one_written_in_the_other_format(make: Any, target: Any, name: str) -> None:
    client, other = make(), make(format="msgpack" if target.format == "json" else "json")
    lists: List[Any] = [[] for _ in range(30_000)]
    large = ["x" * 70_000, '"\n' * 30_000, lists, {"a": {"b": lists}, "c": [1, -1, 1.5, None, "ü"] * 10_000}]
    for value in [*VALUES, *large]:
        await client.kv.set(name, value)
        assert await other.kv.delete(name, if_value=[value]) == 0
        assert await other.kv.delete(name, if_value=value) == 1, str(value)[:80]
        assert not await client.kv.exists(name)


@pytest.mark.parametrize("size", [1, 100_000])
async def test_bytes_are_not_the_text_that_stands_for_them_in_json(
    make: Callable[..., AsyncSynapClient], name: str, size: int
) -> None:
    json, packed = make(format="json"), make(format="msgpack")
    for value in (b"x" * size, [b"x" * size]):
        await packed.kv.set(name, value)
        text = (await json.kv.get(name)).value
        assert await json.kv.delete(name, if_value=text) == 0
        await json.kv.set(name, text)
        assert await packed.kv.delete(name, if_value=value) == 0
        assert await packed.kv.delete(name, if_value=text) == 1


async def test_delete_and_expire_with_a_value(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "mine")
    assert await client.kv.delete(name, if_value="theirs") == 0
    assert await client.kv.expire(name, 500, if_value="theirs") is False
    assert await client.kv.ttl(name) is None
    assert await client.kv.expire(name, 500, if_value="mine") is True
    assert await client.kv.ttl(name) in about(500)
    assert await client.kv.delete(name, if_value="mine") == 1
    assert await client.kv.delete(name, if_value="mine") == 0
    assert await client.kv.expire(name, 500, if_value="mine") is False


async def test_conditions_that_exclude_each_other_are_refused(client: AsyncSynapClient, name: str) -> None:
    together = {"ttl": 5, "keep_ttl": True}
    unmet: List[Dict[str, Any]] = [{**together, "xx": True}, {**together, "if_value": 1}]
    impossible: List[Dict[str, Any]] = [{"nx": True, "if_value": 1}, together, *unmet]
    for options in impossible:
        with pytest.raises(SynapError) as refused:
            await client.kv.set(name, 1, **options)
        assert refused.value.code == "INVALID_PAYLOAD"
    with pytest.raises(SynapError) as refused:
        await client.kv.delete(name, name + "2", if_value=1)
    assert refused.value.code == "INVALID_PAYLOAD"
    assert not await client.kv.exists(name)


async def test_keep_ttl_leaves_the_expiry_as_it_is(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1, ttl=500)
    await client.kv.set(name, 2, keep_ttl=True)
    assert await client.kv.ttl(name) in about(500)
    await client.kv.set(name, 3)
    assert await client.kv.ttl(name) is None
    await client.kv.set(name + "new", 1, keep_ttl=True)
    assert await client.kv.ttl(name + "new") is None


async def test_results_are_true_where_they_succeeded(client: AsyncSynapClient, name: str) -> None:
    assert await client.kv.set(name, 0, nx=True)
    assert not await client.kv.set(name, 0, nx=True)
    assert await client.kv.get(name)
    assert not await client.kv.get(name + "missing")


# ---- clear


async def test_clear_deletes_all_keys_with_the_prefix_and_no_other(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{number:05}": number for number in range(3_500)})
    await client.kv.set(f"{name};", "behind")
    await client.kv.set(name, "before")
    assert await client.kv.clear(f"{name}:") == 3_500
    assert (await client.kv.scan(prefix=name)).keys == [name, f"{name};"]
    assert await client.kv.clear(f"{name}:") == 0


@pytest.mark.without("crashing")  # a call that is cut short may have deleted some
async def test_what_is_stored_while_it_is_cleared_stays(
    client: AsyncSynapClient, other: AsyncSynapClient, name: str
) -> None:
    await client.kv.mset({f"{name}:{number:05}": number for number in range(5_000)})
    clearing = asyncio.ensure_future(client.kv.clear(f"{name}:"))
    stored = 0
    while not clearing.done() and stored < 1_000:
        await other.kv.set(f"{name}:new{stored}", stored)
        stored += 1
    deleted = await clearing
    left = (await client.kv.scan(prefix=f"{name}:", count=10_000)).keys
    assert deleted + len(left) == 5_000 + stored
    assert all(key.startswith(f"{name}:new") for key in left)


async def test_clear_can_not_be_in_a_batch(client: AsyncSynapClient, name: str) -> None:
    (result,) = await client.batch([{"command": "kv.clear", "payload": {"prefix": name}}])
    assert result.status == "error"
    assert result.error is not None
    assert result.error["code"] == "INVALID_COMMAND"


async def test_a_cursor_is_good_for_the_prefix_it_was_issued_for(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{letter}:{number}": 1 for letter in "ab" for number in range(4)})
    cursor = (await client.kv.scan(prefix=f"{name}:a", count=2)).cursor
    with pytest.raises(SynapError) as caught:
        await client.kv.scan(prefix=f"{name}:", cursor=cursor, count=2)
    assert caught.value.code == "INVALID_PAYLOAD"
    assert "cursor" in caught.value.message
