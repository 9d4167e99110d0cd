"""What the colours share: locks, events, mailboxes, workers; and the promises of threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, List

import pytest

from synap.lanes import io
from synap.lanes.io import (
    AsyncEvent,
    AsyncLock,
    AsyncMailbox,
    Closed,
    Event,
    Lock,
    Mailbox,
    async_home,
    async_spawn,
    home,
    spawn,
)
from synap.lanes.io.threads import Promise
from tests.helpers.patience import PATIENCE


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_both_colours_have_the_same_words() -> None:
    for word in io.__all__:
        if word.startswith("Async") and word != "AsyncRaised":
            twin = getattr(io, word[len("Async") :])
            public = {name for name in vars(getattr(io, word)) if not name.startswith("_")}
            assert public <= {name for kind in twin.__mro__ for name in vars(kind)}, word
        elif word.startswith("async_"):
            assert word[len("async_") :] in io.__all__


# ------------------------------------------------------------------------------------------ async


async def test_an_async_lock_is_handed_over_in_order_and_past_the_cancelled() -> None:
    lock, order = AsyncLock(), []

    async def work(number: int) -> None:
        async with lock:
            order.append(number)
            await turns(2)

    await lock.acquire()
    workers = [asyncio.ensure_future(work(number)) for number in range(5)]
    await turns(2)
    workers[0].cancel()
    workers[3].cancel()
    lock.release()
    await asyncio.gather(*workers, return_exceptions=True)
    assert order == [1, 2, 4]
    assert await lock.acquire(0)


async def test_a_lock_given_to_one_who_is_being_cancelled_goes_on_to_the_next() -> None:
    lock = AsyncLock()
    await lock.acquire()
    first = asyncio.ensure_future(lock.acquire())
    second = asyncio.ensure_future(lock.acquire())
    await turns(2)
    lock.release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second


async def test_async_waits_run_out() -> None:
    lock, event, box = AsyncLock(), AsyncEvent(), AsyncMailbox[int](1)
    await lock.acquire()
    assert not await lock.acquire(0.01)
    assert not await event.wait(0.01)
    with pytest.raises(TimeoutError):
        await box.get(0.01)
    lock.release()
    event.set()
    box.put(2)
    assert await lock.acquire(0.01)
    assert await event.wait(0.01)
    assert await box.get(0.01) == 2


async def test_an_async_mailbox_is_bounded_and_gives_what_it_has_after_it_was_closed() -> None:
    box = AsyncMailbox[int](2)
    assert [box.put(number) for number in (1, 2, 3)] == [True, True, False]
    box.close()
    assert not box.put(4)
    assert [await box.get(), await box.get()] == [1, 2]
    with pytest.raises(Closed):
        await box.get()
    other = AsyncMailbox[int](2)
    waiting = asyncio.ensure_future(other.get())
    await turns(1)
    other.close(discard=True)
    with pytest.raises(Closed):
        await waiting


async def test_everybody_who_waits_at_an_async_mailbox_is_woken_when_it_is_closed() -> None:
    box = AsyncMailbox[int](2)
    waiting = [asyncio.ensure_future(box.get()) for _ in range(3)]
    await turns(1)
    box.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE)
    assert [type(outcome) for outcome in outcomes] == [Closed, Closed, Closed]


async def test_what_wakes_one_who_is_being_cancelled_at_an_async_mailbox_wakes_the_next() -> None:
    box = AsyncMailbox[int](2)
    first, second = asyncio.ensure_future(box.get()), asyncio.ensure_future(box.get())
    await turns(1)
    box.put(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, PATIENCE) == 1


async def test_an_async_worker_can_be_joined_and_its_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    go, seen = AsyncEvent(), []

    async def work(word: str) -> None:
        await go.wait()
        seen.append(word)
        raise ValueError("oops")

    worker = async_spawn(work, "done", name="the worker")
    assert not await worker.join(0.01)
    go.set()
    with caplog.at_level(logging.ERROR, "synap"):
        assert await worker.join(PATIENCE)
    assert seen == ["done"]
    assert "the worker ended with an error" in caplog.text


async def test_home_is_the_event_loop() -> None:
    assert async_home() is asyncio.get_running_loop()


# ------------------------------------------------------------------------------------------ sync


def test_waits_run_out() -> None:
    lock, event = Lock(), Event()
    promise, box = Promise[int](), Mailbox[int](1)
    with lock:
        assert not lock.acquire(0.01)
    assert lock.acquire(0.01)
    assert not event.wait(0.01)
    with pytest.raises(TimeoutError):
        promise.wait(0.01)
    with pytest.raises(TimeoutError):
        box.get(0.01)


def test_only_the_first_answer_to_a_promise_counts() -> None:
    promise = Promise[int]()
    results: List[bool] = []
    barrier = threading.Barrier(8)

    def settle(number: int) -> None:
        barrier.wait(PATIENCE)
        results.append(promise.resolve(number) if number % 2 else promise.fail(ValueError(number)))

    threads = [threading.Thread(target=settle, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == [False] * 7 + [True]
    assert promise.settled


def test_a_mailbox_is_bounded_and_gives_what_it_has_after_it_was_closed() -> None:
    box = Mailbox[int](2)
    assert [box.put(number) for number in (1, 2, 3)] == [True, True, False]
    box.close()
    assert [box.get(), box.get()] == [1, 2]
    with pytest.raises(Closed):
        box.get()


def test_closing_a_mailbox_wakes_who_waits() -> None:
    box, ends = Mailbox[int](2), []

    def take() -> None:
        try:
            box.get()
        except Closed:
            ends.append("closed")

    thread = threading.Thread(target=take)
    thread.start()
    box.close(discard=True)
    thread.join(PATIENCE)
    assert ends == ["closed"]


def test_a_worker_can_be_joined_and_its_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    go = Event()

    def work(word: Any) -> None:
        go.wait()
        raise ValueError(word)

    worker = spawn(work, "oops", name="the worker")
    assert not worker.join(0.01)
    with caplog.at_level(logging.ERROR, "synap"):
        go.set()
        assert worker.join(PATIENCE)
    assert "the worker ended with an error" in caplog.text


def test_home_is_the_process() -> None:
    assert home() == home()
