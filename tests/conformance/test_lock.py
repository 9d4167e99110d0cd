"""A lock is held by one at a time, renewed, given back only by its holder, and handed to who waits longest."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, List, Tuple

import pytest

from synap import AsyncSynapClient, LockLostError, SynapError, TimeoutError
from synap.client._async.lock import HANDOVER_PREFIX
from synap.client.colocation import colocated
from tests.conformance.conftest import Make
from tests.helpers.patience import PATIENCE


async def test_a_lock_is_a_key_that_one_holds(client: AsyncSynapClient, name: str) -> None:
    async with client.lock(name, ttl=30) as lock:
        assert lock.held
        assert not lock.lost
        assert lock.fence == 1
        assert (await client.kv.get(f"lock:{name}")).found
        assert 0 < (await client.kv.ttl(f"lock:{name}") or 0) <= 30
        with pytest.raises(TimeoutError, match="was not free within 0 seconds"):
            await client.lock(name, wait=0).__aenter__()
    assert not lock.held
    assert not await client.kv.exists(f"lock:{name}")


async def test_the_fence_grows_with_each_holder(client: AsyncSynapClient, name: str) -> None:
    fences: List[int] = []
    for _ in range(5):
        async with client.lock(name) as lock:
            fences.append(lock.fence)
    assert fences == sorted(set(fences))


async def test_what_keeps_a_lock_from_being_taken_is_told(
    client: AsyncSynapClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await client.kv.set(colocated(f"lock:{name}", ":fence"), "no number")
    with pytest.raises(SynapError) as caught:
        await client.lock(name).acquire()
    assert caught.value.code == "WRONG_TYPE"
    del caught  # and the handles that its traceback holds
    gc.collect()
    assert "never asked for" not in caplog.text


async def test_acquire_says_whether_it_was_free(client: AsyncSynapClient, name: str) -> None:
    first, second = client.lock(name), client.lock(name)
    with pytest.raises(SynapError, match="wait must be"):
        await first.acquire(wait=-1)
    assert await first.acquire()
    assert not await second.acquire(wait=0)
    assert not await second.acquire(wait=0.05)
    await first.release()
    assert await second.acquire(wait=0)
    assert second.fence > first.fence
    await second.release()
    with pytest.raises(SynapError, match="doesn't hold"):
        await second.release()


@pytest.mark.without("crashing")
async def test_who_waits_is_served_when_it_is_given_back_first_come_first_served(make: Make, name: str) -> None:
    client = make()
    order: List[int] = []
    async with client.lock(name):
        waiting = await _wait_in_line(client, name, order, 5)
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert order == [0, 1, 2, 3, 4]
    async with client.lock(name):
        pass
    assert await client.queue.list() == [] or not any(name in queue for queue in await client.queue.list())


async def _waiters(client: AsyncSynapClient, name: str) -> int:
    key = f"lock:{name}"
    queue = colocated(key, ":waiting")
    return (await client.queue.stats(queue)).consumers if queue in await client.queue.list() else 0


@pytest.mark.without("crashing", "sync")
async def test_who_is_cancelled_while_waiting_costs_nobody_a_place_in_the_line(make: Make, name: str) -> None:
    client = make()
    order: List[int] = []
    held = client.lock(name)
    assert await held.acquire()
    waiting = await _wait_in_line(client, name, order, 4)
    waiting[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[3]
    await held._release_abandoned("what it does in the background, and again here, where its end is seen")
    while await _waiters(client, name) > 3:
        await asyncio.sleep(0.01)
    assert (await client.queue.stats(colocated(f"lock:{name}", ":waiting"))).published_total == 0
    await held.release()
    await asyncio.wait_for(asyncio.gather(*waiting[:3]), PATIENCE)
    assert order == [0, 1, 2]


@pytest.mark.without("crashing", "failing")
async def test_the_release_of_a_lock_that_was_lost_costs_nobody_a_place_in_the_line(make: Make, name: str) -> None:
    client = make()
    order: List[int] = []
    lost, another = client.lock(name), client.lock(name)
    assert await lost.acquire()
    await client.kv.delete(f"lock:{name}")
    assert await another.acquire()
    waiting = await _wait_in_line(client, name, order, 2)
    with pytest.raises(LockLostError):
        await lost.release()
    assert (await client.queue.stats(colocated(f"lock:{name}", ":waiting"))).published_total == 0
    await another.release()
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert order == [0, 1]


async def _wait_in_line(client: AsyncSynapClient, name: str, order: List[int], count: int) -> List[Any]:
    """Have so many wait for a lock, one after the other; `order` tells who got it, once it is free."""

    async def hold(number: int) -> None:
        async with client.lock(name, wait=PATIENCE):
            order.append(number)

    waiting: List[Any] = []
    for number in range(count):
        waiting.append(asyncio.ensure_future(hold(number)))
        while await _waiters(client, name) <= number:
            await asyncio.sleep(0.01)
    return waiting


@pytest.mark.without("crashing")
async def test_who_gives_up_waiting_stands_in_nobodys_way(make: Make, name: str) -> None:
    client = make()
    async with client.lock(name):
        with pytest.raises(TimeoutError):
            async with client.lock(name, wait=0.1):
                pass
    async with client.lock(name, wait=0) as lock:
        assert lock.held


@pytest.mark.only("memory", "native")
@pytest.mark.once_per_place
async def test_a_lock_is_renewed_while_the_block_runs(client: AsyncSynapClient, name: str) -> None:
    async with client.lock(name, ttl=15) as lock:
        ttls = [await client.kv.ttl(f"lock:{name}") or 0]
        while ttls[-1] <= min(ttls):
            await asyncio.sleep(0.05)
            ttls.append(await client.kv.ttl(f"lock:{name}") or 0)
        assert lock.held
        assert min(ttls) > 0


@pytest.mark.without("crashing")
async def test_a_lock_that_another_has_by_now_is_not_given_back(client: AsyncSynapClient, name: str) -> None:
    lock = client.lock(name)
    assert await lock.acquire()
    await client.kv.set(f"lock:{name}", "somebody else", ttl=60)
    with pytest.raises(LockLostError) as caught:
        await lock.release()
    assert caught.value.code == "LOCK_LOST"
    assert caught.value.details == {"lock": name, "fence": lock.fence}
    assert (await client.kv.get(f"lock:{name}")).value == "somebody else"


@pytest.mark.only("memory", "native")
@pytest.mark.once_per_place
async def test_a_block_whose_lock_is_lost_is_cancelled(client: AsyncSynapClient, name: str) -> None:
    reached: List[str] = []

    async def work() -> None:
        async with client.lock(name, ttl=6) as lock:
            reached.append("begun")
            await client.kv.delete(f"lock:{name}")
            await asyncio.sleep(PATIENCE)
            reached.append(f"ended {lock}")

    with pytest.raises(LockLostError):
        await asyncio.wait_for(work(), PATIENCE)
    assert reached == ["begun"]


@pytest.mark.only("sync")
async def test_a_block_of_the_sync_client_hears_of_it_at_its_end(client: AsyncSynapClient, name: str) -> None:
    with pytest.raises(LockLostError):
        async with client.lock(name, ttl=1):
            await client.kv.delete(f"lock:{name}")


@pytest.mark.without("crashing")
async def test_an_error_of_the_block_goes_before_a_lost_lock(client: AsyncSynapClient, name: str) -> None:
    async def work() -> None:
        async with client.lock(name):
            await client.kv.delete(f"lock:{name}")
            raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await work()


@pytest.mark.without("crashing")
async def test_a_block_that_is_cancelled_gives_the_lock_back(client: AsyncSynapClient, name: str) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with client.lock(name):
            begun.set()
            await asyncio.sleep(PATIENCE)

    task = asyncio.ensure_future(work())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with client.lock(name, wait=PATIENCE):
        pass


@pytest.mark.only("native")
@pytest.mark.once_per_place
async def test_a_release_that_is_cancelled_gives_the_lock_back_all_the_same(
    client: AsyncSynapClient, name: str
) -> None:
    for turns in range(1, 1000, 3):
        lock = client.lock(name, ttl=1_000_000, wait=PATIENCE)
        await lock.acquire()
        releasing = asyncio.ensure_future(lock.release())
        for _ in range(turns):
            await asyncio.sleep(0)
        if not releasing.cancel():
            assert turns > 2
            return
        with pytest.raises(asyncio.CancelledError):
            await releasing
    raise AssertionError("it never got through")


@pytest.mark.only("memory", "native")
@pytest.mark.once_per_place
async def test_a_dead_holders_lock_goes_to_who_waits_when_it_expires(make: Make, name: str) -> None:
    dead, heir = make(), make()
    await dead.kv.set(f"lock:{name}", "a process that was killed", ttl=1)
    async with heir.lock(name, wait=PATIENCE) as lock:
        assert lock.held


async def test_only_one_is_inside_at_any_time(client: AsyncSynapClient, name: str) -> None:
    inside = most = 0
    fences: List[int] = []

    async def hold() -> None:
        nonlocal inside, most
        async with client.lock(name, wait=PATIENCE) as lock:
            inside += 1
            most = max(most, inside)
            fences.append(lock.fence)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.wait_for(asyncio.gather(*(hold() for _ in range(10))), PATIENCE)
    assert most == 1
    assert fences == sorted(set(fences))


async def test_a_lock_is_not_taken_twice_by_one_object(client: AsyncSynapClient, name: str) -> None:
    async with client.lock(name) as lock:
        with pytest.raises(SynapError, match="holds the lock"):
            await lock.acquire()


@pytest.mark.only("native")
@pytest.mark.once_per_place
async def test_who_gives_up_on_a_shared_object_leaves_the_lock_to_who_has_it(
    client: AsyncSynapClient, name: str
) -> None:
    shared = client.lock(name)
    async with client.lock(name):
        trying = {asyncio.ensure_future(shared.acquire()) for _ in range(2)}
        await asyncio.wait(trying, timeout=0.01)
    _, waiting = await asyncio.wait(trying, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert shared.held
    await shared.release()


async def test_what_a_lock_cannot_be_made_with_is_refused(client: AsyncSynapClient) -> None:
    wrong: List[Tuple[Any, str]] = [
        ({"name": ""}, "name must be"),
        ({"name": 5}, "name must be"),
        ({"name": "a", "ttl": 0}, "ttl must be"),
        ({"name": "a", "ttl": 1.5}, "ttl must be"),
        ({"name": "a", "wait": -1}, "wait must be"),
        ({"name": "a", "wait": float("nan")}, "wait must be"),
    ]
    for arguments, said in wrong:
        with pytest.raises(SynapError, match=said):
            client.lock(**arguments)


@pytest.mark.without("crashing")
async def test_an_old_note_takes_no_lock_from_who_holds_it_by_now(make: Make, name: str) -> None:
    holder, waiter = make().lock(name), make().lock(name)
    assert await holder.acquire()
    key = f"lock:{name}"
    waiting = colocated(key, ":waiting")
    await make().queue.publish(waiting, HANDOVER_PREFIX + "from a holder of before")
    for wait in (0.2, 2, 20):  # on a busy machine 0.2 seconds may be over before there is time to ask for a note
        assert not await waiter.acquire(wait=wait)
        if (await make().queue.stats(waiting)).depth == 0:
            break
    else:
        pytest.fail("nobody took the note")
    await holder.release()
