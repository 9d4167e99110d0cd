"""A release reads what an earlier one of the same shape wrote, its remembered answers included: gateways of both work
side by side, and who changed from one to the other may ask again."""

from __future__ import annotations

import json
from typing import Any, List

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.shape import FILE, caller_of, options, restore, shown


async def test_what_an_earlier_release_wrote_is_read(only_what_is_asked: None) -> None:
    written = json.loads(FILE.read_text("utf-8"))
    with ThrowawayCluster() as cluster:
        restore(cluster.nodes[0], written["keys"])
        host = ClusterHost(options(cluster.url))
        await host.open()
        try:
            await read(host, written["done"])
        finally:
            await host.close()


async def read(host: ClusterHost, done: List[Any]) -> None:
    """Ask again for all that was answered, then for all that is there."""
    caller = caller_of(host)

    async def again(number: int, name: str, payload: Any) -> Any:
        host.execute(caller, number, c.COMMANDS.get(name, c.BATCH), json.dumps(payload).encode(), True)
        host.end_turn()
        return shown((await caller.told.get())[1])

    for number, (name, payload, answer) in enumerate(done, 1):
        if name != "queue.consume":  # the leases are over, so it would take another message
            assert await again(number, name, payload) == answer, name
    caller.session = ""  # from here on, others ask

    async def ask(command: c.Command, **payload: Any) -> Any:
        return await caller.ask(0, command, **payload)

    assert sorted((await ask(c.KV_SCAN, prefix="")).keys) == ["a", "b", "{t}both", "{t}number", "{t}text"]
    found = (await ask(c.KV_MGET, keys=["a", "b", "{t}both", "{t}number", "{t}text"])).values
    assert [json.loads(answer.value) for answer in found] == [[1], {"x": None}, 1, 42, "v"]
    assert [answer.ttl is not None for answer in found] == [True, False, False, False, True]
    assert (await ask(c.KV_INCR, key="{t}number")).value == 43

    taken: List[Any] = [await ask(c.QUEUE_CONSUME, queue="jobs") for _ in range(4)]
    assert [taken.pop()] == [None]
    assert [json.loads(message.message) for message in taken] == [2, 1, 0]
    assert [(message.retry_count, message.headers) for message in taken] == [
        (1, {"h": "2"}),
        (0, {"h": "1"}),
        (0, {"h": "0"}),
    ]
    letter = await ask(c.QUEUE_CONSUME, queue="jobs.dlq")
    assert (json.loads(letter.message), letter.headers["x-dead-letter-reason"]) == (3, "rejected")
    (later,) = (await ask(c.QUEUE_PEEK, queue="jobs", state="delayed")).messages
    assert json.loads(later.message) == "later"
    figures = await ask(c.QUEUE_STATS, queue="jobs")
    assert (figures.published_total, figures.acked_total, figures.dead_lettered_total) == (6, 1, 1)

    events = (await ask(c.STREAM_HISTORY, room="room")).events
    assert [(event.offset, json.loads(event.data), event.metadata) for event in events] == [
        (number, number, {"m": str(number)}) for number in range(3)
    ]
    assert [(cursor.name, cursor.lag) for cursor in (await ask(c.STREAM_CURSORS, room="room")).cursors] == [
        ("reader", 1)
    ]
    assert (await ask(c.STREAM_PUBLISH, room="room", event_type="e", data=3)).offset == 3
    assert (await ask(c.QUEUE_LIST)).queues == ["jobs", "jobs.dlq"]
