"""What an atomic batch takes back, and what that costs the node."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Tuple

import pytest

from synap import AsyncSynapClient
from synap import commands as c
from synap.cluster import functions
from synap.cluster.host import ClusterHost
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking
from tests.cluster.callers import Noted, batch

Steps = List[Tuple[str, Dict[str, Any]]]

K, T, N, Q, R = ({"key": "{t}plain"}, {"key": "{t}ttl"}, {"key": "{t}n"}, {"queue": "{t}q"}, {"room": "{t}r"})
BEFORE: Steps = [
    ("kv.set", {**K, "value": "as it was"}),
    ("kv.set", {**T, "value": "as it was", "ttl": 1000}),
    ("kv.set", {**N, "value": 5}),
    *[("queue.publish", {**Q, "message": number}) for number in range(5)],
    ("stream.publish", {**R, "event_type": "e", "data": 1}),
]
CHANGES: Dict[str, Steps] = {
    "expire": [("kv.expire", {**K, "ttl": 5}), ("kv.expire", {**T, "ttl": 5}), ("kv.expire", {**T, "ttl": 6})],
    "persist": [("kv.persist", T), ("kv.persist", K), ("kv.expire", {**T, "ttl": 5})],
    "set": [("kv.set", {**T, "value": 1}), ("kv.set", {**K, "value": 1, "ttl": 5}), ("kv.set", {**T, "value": 2})],
    "keep": [("kv.set", {**T, "value": 1, "keep_ttl": True}), ("kv.persist", T)],
    "expire, set": [("kv.expire", {**T, "ttl": 5}), ("kv.set", {**T, "value": 1}), ("kv.expire", {**T, "ttl": 7})],
    "del": [("kv.del", {"keys": [K["key"], T["key"], "{t}none"]})],
    "del, set": [("kv.del", {"keys": [T["key"]]}), ("kv.set", {**T, "value": 1, "ttl": 9}), ("kv.persist", T)],
    "set, del": [("kv.set", {"key": "{t}new", "value": 1, "ttl": 9}), ("kv.del", {"keys": ["{t}new"]})],
    "incr": [("kv.incr", N), ("kv.incr", {"key": "{t}new"}), ("kv.incr", N), ("kv.expire", {**N, "ttl": 9})],
    "purge": [("queue.purge", Q), ("queue.publish", {**Q, "message": 9}), ("queue.purge", Q)],
    "delete": [("queue.delete", Q), ("queue.publish", {**Q, "message": 9}), ("queue.delete", Q)],
    "room": [("stream.delete", R), ("stream.publish", {**R, "event_type": "e", "data": 2})],
}


async def atomic(host: ClusterHost, steps: Steps) -> List[Any]:
    told: List[Any] = []
    host.execute(Noted(host, told), 1, c.BATCH, batch(*((*step, None) for step in steps), atomic=True), decoded=True)
    while not told:
        await asyncio.sleep(0.001)
    results: List[Any] = told[0][3].results
    return results


@pytest.mark.parametrize("name", CHANGES)
async def test_all_is_as_it_was(asking: Asking, name: str, only_what_is_asked: None) -> None:
    assert {outcome.status for outcome in await atomic(asking.host, BEFORE)} == {"success"}
    before = await asking.dump()
    *_, failed = await atomic(asking.host, [*CHANGES[name], ("queue.ack", {**Q, "message_id": "none"})])
    assert failed.error.code in ("MESSAGE_NOT_FOUND", "QUEUE_NOT_FOUND")
    assert await asking.dump() == before
    assert {outcome.status for outcome in await atomic(asking.host, CHANGES[name])} == {"success"}
    assert await asking.dump() != before or name == "set, del"


async def test_no_value_is_copied_of_which_only_the_ttl_changes(one_node: ThrowawayCluster, asking: Asking) -> None:
    """400 of them on keys of 1 MB stopped a node for 3.6 s."""
    await atomic(asking.host, BEFORE)
    one_node.members[0].ask("CONFIG", "RESETSTAT")
    assert {outcome.status for outcome in await atomic(asking.host, [*CHANGES["expire"], *CHANGES["persist"]])} == {
        "success"
    }
    counts = one_node.members[0].ask("INFO", "commandstats")
    assert b"cmdstat_pexpiretime" in counts
    assert b"cmdstat_dump" not in counts


BODY = "x" * 20_000


@pytest.mark.parametrize(
    ("fill", "step"),
    [
        (("kv.set", {"key": "{t}%d", "value": BODY}), ("kv.set", {"key": "{t}%d", "value": 1})),
        (("kv.set", {"key": "{t}%d", "value": BODY}), ("kv.del", {"keys": ["{t}%d"]})),
        (("queue.publish", {"queue": "{t}%d", "message": BODY}), ("queue.purge", {"queue": "{t}%d"})),
        (("queue.publish", {"queue": "{t}%d", "message": BODY}), ("queue.delete", {"queue": "{t}%d"})),
        (("queue.publish", {"queue": "{t}%d.dlq", "message": BODY}), ("queue.redrive", {"queue": "{t}%d"})),
        (
            ("stream.publish", {"room": "{t}%d", "event_type": "e", "data": BODY}),
            ("stream.delete", {"room": "{t}%d"}),
        ),
    ],
)
async def test_an_atomic_batch_that_replaces_too_much_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, fill: Any, step: Any
) -> None:
    """The node held a copy of all that it replaced, at any size."""
    monkeypatch.setattr(functions, "SOURCE", functions.SOURCE.replace(b"REPLACED = 134217728", b"REPLACED = 100000"))

    def all_of(one: Any, count: int) -> List[Any]:
        name, payload = one
        return [
            {"command": name, "payload": {key: fitted(value, number) for key, value in payload.items()}}
            for number in range(count)
        ]

    def fitted(value: Any, number: int) -> Any:
        if isinstance(value, list):
            return [fitted(item, number) for item in value]
        return value % number if isinstance(value, str) and "%d" in value else value

    with ThrowawayCluster() as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
            for number in range(6):
                await client.queue.create(f"{{t}}{number}")
            for one in all_of(fill, 6):
                assert (await client.batch([one]))[0].status == "success"
            write: Dict[str, Any] = {"command": "kv.incr", "payload": {"key": "{t}n"}}
            errors = [result.error or {} for result in await client.batch([write, *all_of(step, 6)], atomic=True)]
            [refused] = [error for error in errors if error["code"] != "BATCH_ABORTED"]
            assert (refused["code"], refused["details"]) == ("PAYLOAD_TOO_LARGE", {"limit": 100_000})
            assert refused["message"].startswith(
                "what is replaced or deleted up to this one is more than 100,000 bytes"
            )
            assert not (await client.kv.get("{t}n")).found
            results = await client.batch([write, *all_of(step, 3)], atomic=True)
            assert [result.status for result in results] == ["success"] * 4
