"""What a cluster meets only partly: each row of the table in docs/cluster.md is held by what stands here beside it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Tuple

import pytest
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient, EventsLostError, QueueNotFoundError, SynapError
from synap import commands as c
from synap.cluster import batches, functions, host, keys, rooms
from synap.cluster.facility import Facility
from synap.cluster.running import Running
from synap.commands import COMMANDS
from synap.engine.limits import Limits
from synap.host import batches as host_batches
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import Asking, result
from tests.cluster.conftest import a_space, another_url, options
from tests.helpers.patience import PATIENCE

Serve = Callable[..., ThrowawayServer]
ROOT = Path(__file__).parents[2]
HELD: Dict[str, str] = {
    "atomic batch": "cluster/test_partly.py::test_an_atomic_batch_is_done_in_one_partition_or_refused",
    "`kv.mset`, `kv.del`": "cluster/test_partly.py::test_many_keys_of_one_tag_are_done_all_or_none",
    "`kv.mget`": "cluster/test_partly.py::test_many_large_values_are_not_all_read_at_once",
    "`queue.consume_many` with `ack`": "cluster/test_partly.py::test_acknowledgements_go_together_in_each_partition",
    "`queue.consume_many`": "cluster/test_consume_many.py"
    "::test_each_of_those_that_consume_in_one_turn_gets_one_whatever_the_others_got",
    "`kv.scan`": "cluster/test_partly.py::test_a_scan_gives_each_key_once_in_order_within_a_partition",
    "`kv.clear`": "conformance/test_kv.py::test_what_is_stored_while_it_is_cleared_stays",
    "leases and delays that end": "cluster/test_partly.py::test_what_is_due_waits_for_who_asks_for_it",
    "`from_offset` of a subscription, beyond the newest event": "cluster/test_partly.py"
    "::test_who_goes_on_behind_events_that_are_not_there_is_told",
    "`subscribers_notified`, `consumers`": "cluster/test_partly.py"
    "::test_those_of_a_gateway_that_died_are_counted_for_a_while",
    "order of a pipelined client's commands": "cluster/test_partly.py"
    "::test_what_a_client_has_under_way_is_executed_in_order_within_a_partition",
    "leases, delays, ttls, remembered answers": "cluster/test_checks.py::test_clocks_that_are_apart_are_told",
    "`subscribers_matched`": "cluster/test_topics.py::test_many_patterns_of_many_words_are_one_subscription",
    "`pubsub.stats`": "cluster/test_partly.py::test_subscriptions_of_all_gateways_are_counted",
    "`MEMORY_LIMIT`": "cluster/test_partly.py::test_a_full_node_is_told",
    "`oldest_message_age_secs`": "cluster/test_partly.py::test_a_delay_counts_as_age_once_its_message_was_leased",
    "`admin.stats`": "cluster/test_gateway.py::test_the_metrics_that_the_docs_name_are_in_a_scrape",
    "limits on how many queues and rooms there are": "cluster/test_partly.py::test_no_limit_stops_new_queues_and_rooms",
    "`synap backup`, `synap doctor`": "cluster/test_partly.py::test_backup_and_doctor_are_for_directories_and_services",
}
"""Row → the test that holds it."""


def rows() -> List[str]:
    """Return the first column of the table."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    table = text.partition("| what | on a cluster |\n")[2].partition("\n\n")[0]
    return [line.split(" | ")[0].lstrip("| ") for line in table.splitlines()[1:]]


def test_every_row_of_the_table_is_held() -> None:
    assert sorted(rows()) == sorted(HELD)
    for place in HELD.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place


@async_fixture
async def client(one_node: ThrowawayCluster) -> AsyncIterator[AsyncSynapClient]:
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as made:
        yield made


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda p: (p.kv.set("a", 1), p.kv.set("b", 1)), "isn't in that of 'a': give them a common {tag}"),
        (lambda p: tuple(p.kv.set("{t}", n) for n in range(batches.MOST + 1)), "at most 1000 commands"),
        (lambda p: p.kv.set("{t}", "x" * batches.MOST_BYTES), "at most 1,048,576 bytes"),
        (lambda p: p.kv.scan(), "can't be part of an atomic batch"),
        (lambda p: p.queue.list(), "can't be part of an atomic batch"),
        (lambda p: p.stream.rooms(), "can't be part of an atomic batch"),
        (lambda p: p.pubsub.publish("t", 1), "can't be part of an atomic batch"),
        (lambda p: p.pubsub.topics(), "can't be part of an atomic batch"),
        (lambda p: p.pubsub.topics("a"), "can't be part of an atomic batch"),
        (lambda p: p.pubsub.stats(), "can't be part of an atomic batch"),
        (lambda p: (p.stream.publish("r", "e", 1), p.stream.history("r")), "can't follow stream.publish"),
    ],
)
async def test_an_atomic_batch_is_done_in_one_partition_or_refused(
    client: AsyncSynapClient, fill: Any, words: str
) -> None:

    async def send() -> None:
        async with client.pipeline(atomic=True) as pipeline:
            asked = fill(pipeline)
        for one in asked if isinstance(asked, tuple) else (asked,):
            one.result()

    with pytest.raises(SynapError) as refused:
        await send()
    if refused.value.code == "BATCH_ABORTED":  # the first of several says that another failed
        assert words.startswith("can't follow")
    else:
        assert words in refused.value.message
    assert (await client.kv.scan()).keys == []
    assert await client.stream.rooms() == []


async def test_an_atomic_batch_does_not_clear(client: AsyncSynapClient) -> None:
    await client.kv.set("{t}a", 1)
    steps = [("kv.set", {"key": "{t}b", "value": 1}), ("kv.clear", {"prefix": "{t}"})]
    asked: List[Any] = [{"command": name, "payload": payload} for name, payload in steps]
    aborted, refused = await client.batch(asked, atomic=True)
    assert aborted.error is not None
    assert aborted.error["code"] == "BATCH_ABORTED"
    assert refused.error is not None
    assert refused.error["code"] == "INVALID_COMMAND"
    assert "kv.clear" in refused.error["message"]
    assert (await client.kv.scan()).keys == ["{t}a"]


async def test_many_keys_of_one_tag_are_done_all_or_none(client: AsyncSynapClient) -> None:
    names = [f"{{t}}{number}" for number in range(400)]
    await client.kv.mset(dict.fromkeys(names, 0))
    for value in range(1, 20):
        stored = client.kv.mset(dict.fromkeys(names, value))
        seen = client.kv.mget(*names)
        await stored
        assert len({result.value for result in await seen}) == 1
    assert await client.kv.delete(*names) == len(names)
    await client.kv.mset({f"k{number}": 1 for number in range(50)})  # of many partitions
    assert await client.kv.delete(*(f"k{number}" for number in range(50))) == 50


async def test_acknowledgements_go_together_in_each_partition(client: AsyncSynapClient) -> None:
    for queue in ("{a}", "{b}"):
        for number in range(2):
            await client.queue.publish(queue, number)
    first = await client.queue.consume_many(["{a}"], max=2)
    second = await client.queue.consume_many(["{b}"], max=2)
    await client.queue.ack("{b}", second[1].message_id)
    with pytest.raises(SynapError, match="holds no lease"):
        await client.queue.consume_many(["{c}"], timeout=0, ack=[*first, *second])
    assert (await client.queue.stats("{a}")).acked_total == 2
    assert (await client.queue.stats("{b}")).acked_total == 1


async def test_a_scan_gives_each_key_once_in_order_within_a_partition(client: AsyncSynapClient) -> None:
    names = [f"{{{tag}}}{number:02}" for tag in "abcdef" for number in range(20)]
    await client.kv.mset(dict.fromkeys(names, 1))
    found: List[str] = []
    cursor = None
    while True:
        page = await client.kv.scan(cursor=cursor, count=7)
        found += page.keys
        cursor = page.cursor
        if not page.has_more:
            break
    assert sorted(found) == sorted(names)
    for tag in "abcdef":
        mine = [name for name in found if name.startswith(f"{{{tag}}}")]
        assert mine == sorted(mine)


async def test_a_scan_skips_no_key_that_lies_behind_expired_ones(client: AsyncSynapClient) -> None:
    names = [f"{{{tag}}}{number:02}" for tag in "abcdef" for number in range(20)]
    expiring = [name for name in names if name.endswith(("00", "01", "02"))]
    await client.kv.mset(dict.fromkeys(names, 1))
    await client.kv.mset(dict.fromkeys(expiring, 1), ttl=1)
    while any(answer.found for answer in await client.kv.mget(*expiring)):
        await asyncio.sleep(0.01)
    found: List[str] = []
    cursor = None
    while True:
        page = await client.kv.scan(cursor=cursor, count=7)
        found += page.keys
        cursor = page.cursor
        if not page.has_more:
            break
    assert sorted(found) == sorted(set(names) - set(expiring))


async def test_those_of_a_gateway_that_died_are_counted_for_a_while(one_node: ThrowawayCluster, serve: Serve) -> None:
    space = a_space()
    given = ["--engine", one_node.url, *(f"--{name}={value}" for name, value in space.items())]
    gateway = serve(*given)
    dying = AsyncSynapClient(url=gateway.url, retries=0)
    async with AsyncSynapClient(url=one_node.url, engine=space) as client:
        await dying.stream.subscribe("r")
        waits = asyncio.ensure_future(dying.queue.consume("q", timeout=PATIENCE))

        async def counted() -> Tuple[int, int]:
            notified = (await client.stream.publish("r", "e", 1)).subscribers_notified
            return notified, (await client.queue.stats("q")).consumers

        await client.queue.create("q")
        await until(lambda: counted(), (1, 1))
        gateway.kill()
        assert rooms.LEASE == 15_000
        await until(lambda: counted(), (0, 0))
    with pytest.raises(SynapError):
        await waits
    await dying.close()


async def until(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Ask until something has come."""
    end = time.monotonic() + PATIENCE
    while (found := await ask()) != wanted:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)


async def test_what_a_client_has_under_way_is_executed_in_order_within_a_partition(
    one_node: ThrowawayCluster, serve: Serve
) -> None:
    gateway = serve("--engine", one_node.url, *(f"--{name}={value}" for name, value in a_space().items()))
    async with AsyncSynapClient(url=gateway.url) as client:
        for turn in range(5):
            asked: List[Any] = []
            for number in range(40):
                queue = f"{{t}}q{turn}.{number % 2}"
                asked += [
                    client.queue.consume(queue),
                    client.queue.publish(queue, number),
                    client.queue.consume(queue),
                    client.kv.set("{t}k", number),
                    client.kv.get("{t}k"),
                    client.kv.incr("{t}k"),
                ]
            answers: List[Any] = await asyncio.gather(*asked)
            assert answers[0::6] == [None] * 40
            assert [message.message for message in answers[2::6]] == list(range(40))
            assert [found.value for found in answers[4::6]] == list(range(40))


async def test_an_atomic_batch_that_changes_too_much_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stop its node for as long as there are dead letters."""
    monkeypatch.setattr(functions, "SOURCE", functions.SOURCE.replace(b"CHANGES = 200000", b"CHANGES = 100"))
    with ThrowawayCluster() as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
            await client.queue.create("q")
            for number in range(50):
                await client.queue.publish("q.dlq", number)
            async with client.pipeline(atomic=True) as pipeline:
                redriven = pipeline.queue.redrive("q")
            with pytest.raises(SynapError, match="at most 100 changes") as refused:
                redriven.result()
            assert refused.value.code == "INVALID_REQUEST"
            assert ((await client.queue.stats("q")).depth, (await client.queue.stats("q.dlq")).depth) == (0, 50)
            async with client.pipeline(atomic=True) as pipeline:
                pipeline.queue.redrive("q", limit=10)  # ten changes each
            assert ((await client.queue.stats("q")).depth, (await client.queue.stats("q.dlq")).depth) == (10, 40)
            assert await client.queue.redrive("q") == 40


@pytest.mark.parametrize(
    "command", [("kv.get", {"key": "{t}k"}), ("stream.history", {"room": "{t}r"}), ("queue.peek", {"queue": "{t}q"})]
)
async def test_an_atomic_batch_whose_answers_are_too_large_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, command: Tuple[str, Any]
) -> None:
    """A thousand reads of 1 MB were a gigabyte in its node's memory, three times, and stopped it for seconds."""
    monkeypatch.setattr(functions, "SOURCE", functions.SOURCE.replace(b"ANSWERS = 67108864", b"ANSWERS = 100000"))
    with ThrowawayCluster() as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}) as client:
            await client.kv.set("{t}k", "x" * 20_000)
            await client.stream.publish("{t}r", "e", "x" * 20_000)
            await client.queue.publish("{t}q", "x" * 20_000)
            name, payload = command
            read = {"command": name, "payload": payload}
            write: Dict[str, Any] = {"command": "kv.incr", "payload": {"key": "{t}n"}}
            assert len(await client.batch([write, *[read] * 4], atomic=True)) == 5
            *_, refused = await client.batch([write, *[read] * 5], atomic=True)
            assert refused.error is not None
            assert refused.error["code"] == "PAYLOAD_TOO_LARGE"
            assert refused.error["details"] == {"limit": 100_000}
            assert (await client.kv.get("{t}n")).value == 1


async def test_an_atomic_batch_that_reads_too_much_changes_nothing(
    client: AsyncSynapClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_CALLS", 101)
    read = {"command": "kv.mget", "payload": {"keys": ["{t}k"] * 50}}
    write: Dict[str, Any] = {"command": "kv.incr", "payload": {"key": "{t}n"}}
    assert len(await client.batch([write, read, read], atomic=True)) == 3
    *_, refused = await client.batch([write, read, read, write], atomic=True)
    assert refused.error is not None
    assert (refused.error["code"], refused.error["details"]) == ("PAYLOAD_TOO_LARGE", {"limit": 101})
    assert (await client.kv.get("{t}n")).value == 1


async def test_many_large_values_are_not_all_read_at_once(
    client: AsyncSynapClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 keys of 1 MB were 10 GB in the memory of a node, and of a gateway."""
    monkeypatch.setattr(keys, "MOST_BYTES", 100_000)
    monkeypatch.setattr(keys, "LEAST_BYTES", 10_000)
    names = [f"{tag}{number}" for tag in ("{t}", "{u}", "{v}") for number in range(20)]
    for number, name in enumerate(names):
        await client.kv.set(name, str(number) * 2500, ttl=100 if number % 2 else None)
    asked, read, found = [*names, "{t}none", *reversed(names)], Facility.read, []

    async def noted(*given: Any) -> Any:
        found.append(await read(*given))
        return found[-1]

    monkeypatch.setattr(Facility, "read", lambda *given: Running(noted(*given)).start())
    results = await client.kv.mget(*asked)
    assert [result.value for result in results] == [
        None if name == "{t}none" else str(names.index(name)) * 2500 for name in asked
    ]
    assert [result.ttl is not None for result in results[:4]] == [False, True, False, True]
    assert all(len(answers) < 20 for answers in found)
    assert sum(map(len, found)) == len(names) + 1, "each key is read once"


async def test_large_values_of_many_partitions_are_read_a_few_at_a_time(
    client: AsyncSynapClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each partition was asked for one whatever its size: 256 of 10 MB were 2.6 GB."""
    monkeypatch.setattr(keys, "MOST_BYTES", 100_000)
    monkeypatch.setattr(keys, "LEAST_BYTES", 10_000)
    pairs = {f"k{number}": "x" * (30_000 if number % 4 else 100) for number in range(80)}
    for name, value in pairs.items():
        await client.kv.set(name, value)
    read, under_way, most = Facility.read, [], 0

    async def noted(*given: Any) -> Any:
        nonlocal most
        under_way.append(given)
        answers = await read(*given)
        most = max(most, sum(map(len, answers)) * len(under_way))
        under_way.remove(given)
        return answers

    monkeypatch.setattr(Facility, "read", lambda *given: Running(noted(*given)).start())
    assert [result.value for result in await client.kv.mget(*pairs)] == list(pairs.values())
    assert most <= keys.FEW * 60_000


async def test_a_gateway_does_not_gather_more_values_than_an_answer_holds(
    one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "MAX_ANSWER", 100_000)
    gateway = host.ClusterHost(options(one_node, durability="none"))
    await gateway.open()
    try:
        asking = Asking(gateway)
        value: Any = b'"%s"' % (b"x" * 30_000)
        for number in range(4):
            await result(Running(gateway.facilities.keys.set(c.KvSet(f"k{number}", value), asking.request())).start())

        def mget(count: int) -> Any:
            names = [f"k{number}" for number in range(count)]
            return result(Running(gateway.facilities.keys.mget(c.KvMGet(names), asking.request())).start())

        assert len((await mget(3)).values) == 3
        with pytest.raises(SynapError, match="more than 100,000 bytes together") as refused:
            await mget(4)
        assert refused.value.code == "PAYLOAD_TOO_LARGE"
    finally:
        await gateway.close()


async def test_the_rest_of_a_batch_is_not_executed_once_its_answers_are_too_large(
    client: AsyncSynapClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway held them all until it knew that no answer holds them: 1,000 of 1 MB were three gigabytes."""
    monkeypatch.setattr(host_batches, "MAX_ANSWER", 500_000)
    await client.kv.set("k", "x" * 20_000)
    read = {"command": "kv.get", "payload": {"key": "k"}}
    write: Dict[str, Any] = {"command": "kv.incr", "payload": {"key": "n"}}
    results = await client.batch([*[read] * (batches.FIRST - 1), write, read, write])
    assert [result.status for result in results] == [*["success"] * batches.FIRST, "error", "error"]
    assert results[-1].error is not None
    assert results[-1].error["code"] == "PAYLOAD_TOO_LARGE"
    assert results[-1].error["message"].endswith("this command was not executed")
    assert (await client.kv.get("n")).value == 1


async def test_a_pipeline_is_executed_in_order_within_a_partition(client: AsyncSynapClient) -> None:
    async with client.pipeline() as pipeline:
        peeked, seen = [], []
        for number in range(40):
            pipeline.queue.publish("{t}q", number)
            peeked.append(pipeline.queue.peek("{t}q"))
            pipeline.kv.set("{t}k", number)
            seen.append(pipeline.kv.get("{t}k"))
            pipeline.kv.incr("{t}k")
    assert [len(page.result().messages) for page in peeked] == list(range(1, 41))
    assert [found.result().value for found in seen] == list(range(40))


async def test_what_is_asked_of_dead_letters_keeps_its_place(client: AsyncSynapClient) -> None:
    """What is due in their queue is settled before, in which nothing overtakes."""
    await client.queue.create("q")
    async with client.pipeline() as pipeline:
        stats = pipeline.queue.stats("q.dlq")
        pipeline.queue.publish("q.dlq", 1)
    with pytest.raises(QueueNotFoundError):
        stats.result()
    await client.queue.purge("q.dlq")
    async with client.pipeline() as pipeline:
        redriven = pipeline.queue.redrive("q")
        pipeline.queue.publish("q.dlq", 1)
    assert redriven.result() == 0
    await client.queue.purge("q.dlq")
    taken, _ = await asyncio.gather(client.queue.consume("q.dlq"), client.queue.publish("q.dlq", 1))
    assert taken is None


async def test_no_limit_stops_new_queues_and_rooms(one_node: ThrowawayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "Limits", lambda: Limits(queues=2, rooms=2))
    async with AsyncSynapClient(url=one_node.url, engine=a_space()) as client:
        for number in range(5):
            await client.queue.publish(f"q{number}", 1)
            await client.stream.publish(f"r{number}", "e", 1)
        assert len(await client.queue.list()) == len(await client.stream.rooms()) == 5


async def test_a_delay_counts_as_age_once_its_message_was_leased(client: AsyncSynapClient) -> None:
    await client.queue.publish("q", 1, delay=0.5)
    message = await client.queue.consume("q", timeout=PATIENCE)
    assert message is not None
    await client.queue.nack("q", message.message_id)
    assert ((await client.queue.stats("q")).oldest_message_age_secs or 0) >= 0.5


async def outlast_a_lease(client: AsyncSynapClient, queue: str) -> None:
    message = await client.queue.consume(queue, timeout=PATIENCE, ack_deadline=0.05)
    assert message is not None
    while time.time() < message.deadline + 0.01:
        await asyncio.sleep(0.005)


async def test_what_is_due_waits_for_who_asks_for_it(client: AsyncSynapClient, only_what_is_asked: None) -> None:
    await client.queue.create("q", max_retries=0, max_depth=1)
    await client.queue.publish("q", 1)
    await outlast_a_lease(client, "q")
    with pytest.raises(SynapError, match="QUEUE_FULL"):
        await client.queue.publish("q", 2)
    assert (await client.queue.stats("q")).dead_lettered_total == 1
    await client.queue.publish("q", 2)


async def test_who_looks_at_a_queue_or_puts_back_sees_what_is_due(
    client: AsyncSynapClient, only_what_is_asked: None
) -> None:
    await client.queue.create("q", max_retries=0)
    await client.queue.publish("q", 1)
    await outlast_a_lease(client, "q")
    assert [one.message for one in (await client.queue.peek("q.dlq")).messages] == [1]
    await outlast_a_lease(client, "q.dlq")
    assert [one.retry_count for one in (await client.queue.peek("q.dlq")).messages] == [1]
    await outlast_a_lease(client, "q.dlq")
    assert await client.queue.redrive("q") == 1


async def test_who_looks_at_a_queue_sees_32_of_what_is_due(client: AsyncSynapClient, only_what_is_asked: None) -> None:
    async with client.pipeline() as pipeline:
        for number in range(70):
            pipeline.queue.publish("q", number, delay=0.05)
    due = time.time() + 0.06
    while time.time() < due:
        await asyncio.sleep(0.005)
    assert len((await client.queue.peek("q", limit=100)).messages) == 32
    assert (await client.queue.stats("q")).depth == 64
    assert (await client.queue.stats("q")).depth == 70


async def test_who_goes_on_behind_events_that_are_not_there_is_told(client: AsyncSynapClient) -> None:
    await client.stream.publish("r", "e", 1)
    async with await client.stream.subscribe("r", from_offset=3) as subscription:
        with pytest.raises(EventsLostError) as told:
            await asyncio.wait_for(subscription.__aiter__().__anext__(), PATIENCE)
    assert told.value.details == {"room": "r", "from": 1, "to": 2}


async def test_subscriptions_of_all_gateways_are_counted(one_node: ThrowawayCluster) -> None:
    space = a_space()
    async with AsyncSynapClient(url=one_node.url, engine=space) as one:
        async with AsyncSynapClient(url=another_url(one_node), engine=space) as other:
            await one.pubsub.subscribe(["a", "b.*"])
            await other.pubsub.subscribe(["a"])
            await one.pubsub.publish("a", 1)
            stats = await one.pubsub.stats()
            assert (stats.subscriptions, stats.published_total) == (2, 1)
            assert (await other.pubsub.stats()).published_total == 0


async def test_a_full_node_is_told() -> None:
    with ThrowawayCluster(options=["--maxmemory", "8mb"]) as cluster:
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}, retries=0) as client:

            async def fill() -> None:
                for number in range(100):
                    await client.kv.set(f"k{number}", "x" * 100_000)

            with pytest.raises(SynapError) as full:
                await fill()
            assert full.value.code == "MEMORY_LIMIT"
            assert "maxmemory" in full.value.message
            assert await client.kv.delete("k0") == 1  # what frees memory is taken
            async with AsyncSynapClient(url=another_url(cluster), engine={"durability": "none"}, retries=0) as another:
                assert await another.kv.delete("k1") == 1  # also by who opens the cluster only now


async def test_what_a_full_disk_would_accept_a_full_node_accepts() -> None:
    with ThrowawayCluster() as cluster:
        (node,) = cluster.members
        async with AsyncSynapClient(url=cluster.url, engine={"durability": "none"}, retries=0) as client:
            for name in ("{t}q", "{t}other"):
                for number in range(8):
                    await client.queue.publish(name, number)
            await client.stream.publish("r", "e", 1)
            for number in range(3):
                await client.kv.set(f"{{t}}{number}", 1)
            held = [await client.queue.consume("{t}q") for _ in range(3)]
            ids = [message.message_id for message in held if message is not None]
            node.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(SynapError, match="maxmemory"):
                await client.queue.publish("{t}q", 1)
            accepted = {
                "queue.extend": client.queue.extend("{t}q", ids[0], 60),
                "queue.ack": client.queue.ack("{t}q", ids[0]),
                "queue.nack": client.queue.nack("{t}q", ids[1]),
                "queue.consume": client.queue.consume("{t}q", timeout=PATIENCE, ack=ids[2]),
                "stream.subscribe": client.stream.subscribe("r", name="n"),
                "stream.commit": client.stream.commit("r", "n", 0),
                "stream.forget": client.stream.forget("r", "n"),
                "stream.delete": client.stream.delete("r"),
                "queue.purge": client.queue.purge("{t}q"),
                "queue.delete": client.queue.delete("{t}q"),
                "kv.del": client.kv.delete("{t}0"),
            }
            for called in accepted.values():
                await called
            (message,) = await client.queue.consume_many(["{t}other"], max=1)
            await client.queue.consume_many(["{t}other"], max=1, ack=[message])
            async with client.pipeline(atomic=True) as pipeline:
                pipeline.kv.delete("{t}1")
                pipeline.queue.purge("{t}other")
            await client.kv.expire("{t}2", 60)
            await client.pubsub.subscribe(["t"])
            assert (await client.pubsub.publish("t", 1)).subscribers_matched == 1
            assert await client.kv.clear("{t}") == 1
            assert {command.name for command in COMMANDS.values() if command.sparing} == {
                *accepted,
                "queue.consume_many",
                "kv.clear",
            }


@pytest.mark.parametrize("command", ["backup", "doctor"])
def test_backup_and_doctor_are_for_directories_and_services(command: str, tmp_path: Path) -> None:
    arguments = [command, "valkey://127.0.0.1:1"] + ([str(tmp_path / "copy")] if command == "backup" else [])
    done = subprocess.run(
        [sys.executable, "-m", "synap", *arguments], capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    assert done.returncode != 0
    assert "directory" in done.stderr, done.stderr
