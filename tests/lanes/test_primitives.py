"""What the colours share: locks, events, mailboxes, background work."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import List

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
from tests.helpers.patience import PATIENCE


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_both_colours_have_the_same_words() -> None:
    for word in io.__all__:
        if word.startswith("Async") and word != "AsyncRaised":
            twin = getattr(io, word[len("Async") :])
            public = {name for name in vars(getattr(io, word)) if not name.startswith("_")}
            assert public <= set(dir(twin)), word
        elif word.startswith("async_"):
            assert word[len("async_") :] in io.__all__


# ------------------------------------------------------------------------------------------ async


async def test_an_async_lock_is_handed_over_in_order_and_past_the_cancelled() -> None:
    lock, order = AsyncLock(), []

    async def work(number: int) -> None:
        async with lock:
            order.append(number)
            await turns(2)

    async with lock:
        workers = [asyncio.ensure_future(work(number)) for number in range(5)]
        await turns(2)
        workers[0].cancel()
        workers[3].cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert order == [1, 2, 4]
    await asyncio.wait_for(work(5), PATIENCE)


async def test_a_lock_given_to_one_who_is_being_cancelled_goes_on_to_the_next() -> None:
    lock = AsyncLock()
    async with lock:
        first = asyncio.ensure_future(lock.__aenter__())
        second = asyncio.ensure_future(lock.__aenter__())
        await turns(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, PATIENCE)


async def test_an_async_wait_runs_out() -> None:
    event = AsyncEvent()
    assert not await event.wait(0.01)
    event.set()
    assert await event.wait(0.01)


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


async def test_errors_of_an_async_background_function_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def work(word: str) -> None:
        seen.append(word)
        raise ValueError("oops")

    with caplog.at_level(logging.ERROR, "synap"):
        async_spawn(work, "done", name="the worker")
        assert seen == []
        await turns(2)
    assert seen == ["done"]
    assert "the worker ended with an error" in caplog.text


async def test_home_is_the_event_loop() -> None:
    assert async_home() is asyncio.get_running_loop()


# ------------------------------------------------------------------------------------------ sync


def test_a_lock_excludes_and_a_wait_runs_out() -> None:
    lock, event = Lock(), Event()
    with lock:
        assert not event.wait(0.01)
    with lock:
        event.set()
    assert event.wait(0.01)


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


def test_errors_of_a_background_function_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    threads: List[threading.Thread] = []

    def work(word: str) -> None:
        threads.append(threading.current_thread())
        began.set()
        raise ValueError(word)

    began = Event()
    with caplog.at_level(logging.ERROR, "synap"):
        spawn(work, "oops", name="the worker")
        assert began.wait(PATIENCE)
        threads[0].join(PATIENCE)
    assert "the worker ended with an error" in caplog.text


def test_home_is_the_process() -> None:
    assert home() == home()
