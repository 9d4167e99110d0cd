"""An exception of a signal handler, such as Ctrl-C's, in the middle of a call to an engine in this process."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, List, Type

import pytest

from synap import AsyncSynapClient, QueueMessage, SynapClient
from synap.commands import Command
from synap.engine.journal import Journal
from synap.errors import SynapError
from synap.host import EngineHost
from synap.host.base import Session
from synap.lanes.io.threads import Lock, Mailbox, apart
from synap.storage.lock import DirectoryLock
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService, name_of

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
"""Python says so of a pipeline's command that an exception came before."""


class Interrupt(BaseException):
    """What a handler raises."""


class Late(Exception):
    """What a handler raises that ends a call which takes too long."""


PLACES = 2000
"""More places than any call here has."""

HELD = "this Python may leave a lock held at its `with`"
"""From 3.14 on `__enter__` is called by an instruction of its own, behind which a signal handler may run."""


def interrupted(
    place: int, work: Callable[[], object], error: Type[BaseException] = Interrupt, within: str = "", real: bool = False
) -> bool:
    """Run `work` with an exception at one of the places where a signal handler may run; returns whether it has so many.

    Those are where a function of Python's begins, and where one in C has returned: in files whose path has `within`.
    The exception has to reach whoever called. `real`: a signal's handler raises it.
    """
    left = place

    def handle(number: int, frame: object) -> None:
        raise error

    def profile(frame: FrameType, event: str, about: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and within in frame.f_code.co_filename:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                if not real:
                    raise error
                signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle) if real else None
    gc.collect()
    gc.disable()  # what earlier exceptions left may have Python code to run as it ends, which swallows another one
    sys.setprofile(profile)
    try:
        work()
        assert left >= 0, "the exception was swallowed"
    except error:
        pass
    finally:
        sys.setprofile(None)
        gc.enable()
        if real:
            signal.signal(signal.SIGALRM, before)
    return left < 0


def at_each_place(
    work: Callable[[], object], check: Callable[[], None], error: Type[BaseException] = Interrupt, **where: Any
) -> None:
    """Interrupt `work` at each of its places, and see each time that all goes on.

    Not as it is done first, when msgspec makes what it needs, and goes on without that.
    """
    work()
    check()
    for place in range(PLACES):
        if not interrupted(place, work, error, **where):
            return
        check()
    raise AssertionError("it never got through")


# ------------------------------------------------------------------------------------------ directories


class Written:
    """What a client wrote, with a call that was interrupted before each call that was answered."""

    def __init__(self, client: SynapClient) -> None:
        self.client = client
        self.count = 0

    def maybe(self) -> None:
        """Write to what there was not before, in each way."""
        client, name = self.client, f"{self.count}"
        with client.pipeline(atomic=True) as pipeline:
            pipeline.kv.set(f"{name}:a", 1)
            pipeline.queue.publish(f"{name}:pair", 1)
            pipeline.kv.set(f"{name}:b", 1)
        client.queue.publish(name, "maybe")
        client.stream.publish(name, "tick", "maybe")

    def surely(self) -> None:
        """Write behind that, to the same."""
        client, name = self.client, f"{self.count}"
        client.queue.publish(name, "surely")
        client.stream.publish(name, "tick", "surely")
        client.kv.set(name, "surely")
        self.count += 1

    def state(self, client: SynapClient) -> Dict[str, Any]:
        """Return all that is there."""
        state: Dict[str, Any] = {key: client.kv.get(key).value for key in client.kv.scan(count=10_000).keys}
        for queue in client.queue.list():
            state[f"queue {queue}"] = [message.message for message in client.queue.peek(queue).messages]
        for room in client.stream.rooms():
            state[f"room {room}"] = [event.data for event in client.stream.history(room, from_offset=0).events]
        return state

    def check(self, url: str) -> None:
        """Close the client, and see that the directory holds all that was answered, and of the rest no half."""
        state = self.state(self.client)
        self.client.close()
        with SynapClient(url, timeout=PATIENCE) as client:
            assert self.state(client) == state
        for name in map(str, range(self.count)):
            assert state[f"queue {name}"][-1] == state[f"room {name}"][-1] == state[name] == "surely"
            assert len({f"{name}:a" in state, f"{name}:b" in state, f"queue {name}:pair" in state}) == 1


@pytest.mark.parametrize("error", [Interrupt, Late])
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_directory_holds_what_was_answered_wherever_an_exception_came(
    fsync: str, error: Type[BaseException], tmp_path: Path
) -> None:
    url = f"file://{tmp_path / 'data'}"
    written = Written(SynapClient(url, fsync=fsync, timeout=PATIENCE))
    written.client.connect()
    at_each_place(written.maybe, written.surely, error)
    written.check(url)


@pytest.mark.parametrize("error", [Interrupt, Late])
def test_a_directory_holds_what_was_answered_whenever_a_signal_came(
    error: Type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_over = sys.unraisablehook  # as Python does in callbacks of the collector (Hypothesis has one)
    monkeypatch.setattr(sys, "unraisablehook", lambda one: one.exc_type is error or passed_over(one))

    def handle(number: int, frame: object) -> None:
        if due:
            due.clear()
            raise error

    due: List[bool] = []
    chance = random.Random(1)
    url = f"file://{tmp_path / 'data'}"
    written = Written(SynapClient(url, fsync="everysec", timeout=PATIENCE))
    written.client.connect()
    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(300):
            try:
                due.append(True)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-6, 1e-3))
                written.maybe()
                due.clear()
            except error:
                pass
            written.surely()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    written.check(url)


def test_a_message_goes_back_whose_consumer_was_interrupted(tmp_path: Path) -> None:
    got: List[QueueMessage] = []

    def work() -> None:
        message = client.queue.consume("q", timeout=PATIENCE)
        assert message is not None
        got.append(message)

    def check() -> None:
        if not got:
            work()
        client.queue.nack("q", got.pop().message_id)

    with SynapClient(f"file://{tmp_path / 'data'}", fsync="everysec", timeout=PATIENCE) as client:
        client.queue.create("q", ack_deadline=int(PATIENCE) * 2, max_retries=PLACES)
        client.queue.publish("q", 1)
        at_each_place(work, check, within="uninterrupted.py")


def test_a_directory_is_free_again_wherever_an_exception_came_as_it_was_opened(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'data'}"
    clients: List[SynapClient] = []

    def work() -> None:
        clients.append(SynapClient(url, timeout=PATIENCE))
        clients[-1].kv.set("key", 1)

    def check() -> None:
        clients.pop().close()
        DirectoryLock(str(tmp_path / "data")).release()

    at_each_place(work, check, within=str(Path("lanes", "inprocess")))
    clients.pop().close()


def test_a_handler_may_use_the_client_whose_call_it_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(number: int, frame: object) -> None:
        client.kv.incr("handled")

    def execute(host: EngineHost, session: Session, number: int, command: Command, *about: Any, **named: Any) -> None:
        if command.name == "queue.publish":
            os.kill(os.getpid(), signal.SIGALRM)
        really(host, session, number, command, *about, **named)

    really = EngineHost.execute
    monkeypatch.setattr(EngineHost, "execute", execute)
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with SynapClient(f"file://{tmp_path / 'data'}", timeout=PATIENCE) as client:
            client.queue.publish("q", 1)
            assert client.kv.get("handled").value == 1
            assert client.queue.stats("q").depth == 1
    finally:
        signal.signal(signal.SIGALRM, before)


WHOLE = str(Path("synap", "host")), str(Path("synap", "engine")), str(Path("synap", "storage"))


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("fsync", ["always", "everysec"])
@pytest.mark.parametrize("within", WHOLE)
def test_an_event_loop_s_turn_that_was_interrupted_ends_the_writing_to_its_directory(
    within: str, fsync: str, real: bool, tmp_path: Path
) -> None:
    """A half of it is in memory, maybe, and never in the log."""

    async def pair() -> None:
        async with client.pipeline(atomic=True) as pipeline:
            pipeline.kv.set("a", 1)
            pipeline.queue.publish("pair", 1)
            pipeline.kv.set("b", 1)

    async def surely() -> bool:
        try:
            await client.queue.publish("pair", "surely")
            await client.kv.set("surely", 1)
        except SynapError as refused:
            return "signal handler" not in refused.message
        return True

    for place in range(0, PLACES, 11):
        url = f"file://{tmp_path / str(place)}"
        client = AsyncSynapClient(url, fsync=fsync, timeout=PATIENCE, retries=0)
        with closing(asyncio.new_event_loop()) as loop:
            run = loop.run_until_complete
            run(client.kv.set("before", 1))
            more = interrupted(place, partial(run, pair()), Late if real else Interrupt, within=within, real=real)
            answered = run(surely())
            run(client.close())
        with SynapClient(url, timeout=PATIENCE) as again:
            assert again.kv.get("before")
            assert bool(again.kv.get("surely")) is answered
            messages = again.queue.peek("pair").messages if "pair" in again.queue.list() else []
            there = [message.message for message in messages]
            assert ("surely" in there) is answered
            assert again.kv.get("a").found is again.kv.get("b").found is (1 in there)
        if not more:
            return
    raise AssertionError("it never got through")


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.skipif(sys.version_info >= (3, 14), reason=HELD)
@pytest.mark.parametrize("real", [False, True])
def test_an_exception_reaches_the_caller_from_within_the_memory_and_an_atomic_batch_is_undone(real: bool) -> None:
    def pair() -> None:
        with client.pipeline(atomic=True) as pipeline:
            pipeline.queue.publish("q", 1)
            pipeline.stream.publish("r", "tick", 1)

    def check() -> None:
        queues, rooms = client.queue.list(), client.stream.rooms()
        assert (queues, rooms) in (([], []), (["q"], ["r"]))
        if queues:
            client.queue.delete("q")
            client.stream.delete("r")

    with SynapClient("memory://", timeout=PATIENCE) as client:
        at_each_place(pair, check, Late if real else Interrupt, real=real)


def test_all_is_undone_though_a_change_can_not_be(caplog: pytest.LogCaptureFixture) -> None:
    undone: List[int] = []
    Journal.roll_back([(undone.append, (1,)), (undone.remove, (7,)), (undone.append, (2,))])
    assert undone == [2, 1]
    assert "can't be undone" in caplog.text


# ------------------------------------------------------------------------------------------ the sync client's own work


def answering(peer: Peer) -> None:
    peer.hello()
    while True:
        request = peer.request()
        answers = {"queue.consume": None, "kv.get": {"found": True, "value": 1, "ttl": None}}
        peer.answer(request, answers.get(name_of(request)))


@pytest.mark.skipif(sys.version_info < (3, 10), reason=HELD)
@pytest.mark.parametrize("waits", [False, True])
def test_no_place_of_the_pool_is_lost_wherever_an_exception_comes(waits: bool) -> None:
    def check() -> None:
        assert client.kv.get("key").value == 1

    with ScriptedService(answering) as service:
        client = SynapClient(service.url, transport="native", pool_size=1, timeout=PATIENCE, spin=False)
        with client:
            check()
            at_each_place(lambda: client.queue.consume("q", timeout=PATIENCE) if waits else client.kv.get("key"), check)
            lane: Any = client._calls.lane
            assert len(lane._slots) == 1
            assert not lane._waiting


@pytest.mark.skipif(not (3, 10) <= sys.version_info < (3, 14), reason=HELD)
def test_a_mailbox_and_a_lock_stay_free_wherever_an_exception_comes() -> None:
    def locked() -> None:
        with lock:
            pass

    def both() -> bool:
        locked()
        return box.put(1)

    def check() -> None:
        assert apart(both, name="other").result(PATIENCE)

    box, lock = Mailbox[int](PLACES * 4), Lock()
    for work in (locked, lambda: box.put(1), box.poll, lambda: [box.put(1), box.get()]):
        at_each_place(work, check)
