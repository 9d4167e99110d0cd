"""A pipeline is a batch with the client's methods: each gives a handle, with its result later."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from typing import List

import pytest

from synap import AsyncSynapClient, BatchResult, KeyNotFoundError, MessageNotFoundError, SynapError
from synap.client.handles import Handle
from tests.conformance.conftest import Make


@dataclass
class User:
    name: str


async def test_each_method_gives_a_handle_with_the_result_of_that_method(client: AsyncSynapClient, name: str) -> None:
    async with client.pipeline() as p:
        stored = p.kv.set(name, User("Alice"))
        read = p.kv.get(name, type=User)
        many = p.kv.mget(name, f"{name}-missing")
        count = p.kv.incr(f"{name}-count", 5)
        there = p.kv.exists(name)
        ttl = p.kv.ttl(name)
        made = p.queue.create(name, max_retries=1)
        published = p.queue.publish(name, {"n": 1}, priority=9)
        figures = p.queue.stats(name)
        event = p.stream.publish(name, "made", [1])
        page = p.stream.history(name, type=List[int])
        told = p.pubsub.publish(name, "hello")
        gone = p.kv.delete(name)
        assert len(p) == 13
    assert stored.result().success
    assert read.result().value == User("Alice")
    assert [result.found for result in many.result()] == [True, False]
    assert count.result() == 5
    assert there.result() is True
    assert ttl.result() is None
    assert made.result() is True
    assert published.result().position == 1
    assert figures.result().depth == 1
    assert event.result().offset == 0
    assert page.result().events[0].data == [1]
    assert told.result().subscribers_matched == 0
    assert gone.result() == 1


async def test_one_that_fails_stops_no_other(client: AsyncSynapClient, name: str) -> None:
    async with client.pipeline() as p:
        first = p.kv.set(name, "text")
        wrong = p.kv.incr(name)
        missing = p.kv.get(f"{name}-missing", required=True)
        gone = p.kv.ttl(f"{name}-missing")
        last = p.kv.get(name)
    assert first.result().success
    with pytest.raises(SynapError) as caught:
        wrong.result()
    assert caught.value.code == "WRONG_TYPE"
    for handle in (missing, gone):
        with pytest.raises(KeyNotFoundError):
            handle.result()
    assert last.result().value == "text"


async def test_an_atomic_one_takes_effect_as_a_whole_or_not_at_all(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, "text")
    async with client.pipeline(atomic=True) as p:
        stored = p.kv.set(f"{name}-other", 1)
        wrong = p.kv.incr(name)
        published = p.queue.publish(name, 1)
    codes: List[str] = []
    handles: List[Handle[object]] = [stored, wrong, published]
    for handle in handles:
        with pytest.raises(SynapError) as caught:
            handle.result()
        codes.append(caught.value.code)
    assert codes == ["BATCH_ABORTED", "WRONG_TYPE", "BATCH_ABORTED"]
    assert not await client.kv.exists(f"{name}-other")
    async with client.pipeline(atomic=True) as p:
        stored = p.kv.set(f"{name}-other", 1)
        published = p.queue.publish(name, 1)
    assert stored.result().success
    assert published.result().position == 1


async def test_a_message_is_acknowledged_together_with_its_effects(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, "work")
    message = await client.queue.consume(name)
    assert message is not None
    async with client.pipeline(atomic=True) as p:
        p.kv.incr(f"{name}-done")
        acked = p.queue.ack(name, message.message_id)
    assert acked.result() is None
    async with client.pipeline(atomic=True) as p:
        again = p.kv.incr(f"{name}-done")
        acked = p.queue.ack(name, message.message_id)
    with pytest.raises(MessageNotFoundError):
        acked.result()
    with pytest.raises(SynapError):
        again.result()
    assert (await client.kv.get(f"{name}-done")).value == 1


async def test_what_is_wrong_with_arguments_is_said_at_once(client: AsyncSynapClient, name: str) -> None:
    async with client.pipeline() as p:
        with pytest.raises(SynapError) as caught:
            p.kv.set(name, {"deep": float("nan")})
        assert caught.value.details == {"path": "$.deep"}
        with pytest.raises(SynapError):
            p.kv.get(5)  # type: ignore[call-overload]
        kept = p.kv.set(name, 1)
    assert kept.result().success


async def test_a_result_is_not_there_before_the_block_has_ended(client: AsyncSynapClient, name: str) -> None:
    async with client.pipeline() as p:
        handle = p.kv.set(name, 1)
        assert not handle.done
        with pytest.raises(SynapError, match="once the pipeline's block has ended"):
            handle.result()
    assert handle.done


async def test_a_block_left_by_an_exception_sends_nothing(client: AsyncSynapClient, name: str) -> None:
    async def fails() -> Handle[int]:
        async with client.pipeline() as p:
            handles.append(p.kv.incr(name))
            raise ValueError("changed my mind")

    handles: List[Handle[int]] = []
    with pytest.raises(ValueError, match="changed my mind"):
        await fails()
    with pytest.raises(SynapError, match="nothing was sent") as caught:
        handles[0].result()
    assert caught.value.code == "BATCH_ABORTED"
    assert not await client.kv.exists(name)


async def test_a_pipeline_is_used_once(client: AsyncSynapClient, name: str) -> None:
    pipeline = client.pipeline()
    async with pipeline as p:
        p.kv.set(name, 1)
    with pytest.raises(SynapError, match="has ended"):
        p.kv.set(name, 2)
    with pytest.raises(SynapError, match="used once"):
        await pipeline.__aenter__()


async def test_an_empty_pipeline_asks_for_nothing(client: AsyncSynapClient) -> None:
    async with client.pipeline(atomic=True) as p:
        assert len(p) == 0


@pytest.mark.only("memory")
@pytest.mark.without("sync")  # threads of the coat keep what they ran last, so nothing is collected at a known moment
async def test_a_failure_that_nobody_asked_for_is_logged(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.pipeline() as p:
        p.kv.set(name, "text")
        p.kv.incr(name)
    with caplog.at_level(logging.ERROR, "synap.client"):
        del p
        async with client.pipeline() as other:
            asked = other.kv.incr(name)
        with pytest.raises(SynapError):
            asked.result()
        del asked, other
        gc.collect()
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("kv.incr in a pipeline failed and its result was never asked for: [WRONG_TYPE]")


@pytest.mark.only("memory")
async def test_results_are_those_of_batch(make: Make, name: str) -> None:
    client = make()
    async with client.pipeline() as p:
        handle = p.kv.get(name)
    (result,) = await client.batch([{"command": "kv.get", "payload": {"key": name}}])
    assert result == BatchResult("success", {"found": False, "value": None, "ttl": None})
    assert not handle.result().found
