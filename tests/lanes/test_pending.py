"""Whoever waits for an answer goes on in the turn that brings it, and nothing else about waiting is unusual."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from time import monotonic
from typing import Any, Callable, Coroutine, List, Tuple

import pytest

from synap.commands import KV_GET, KV_INCR, QUEUE_CONSUME, QUEUE_CONSUME_MANY, Command, KvGet, KvIncr
from synap.config import ClientConfig, parse_url
from synap.errors import SynapError
from synap.lanes.native.connection import Connection
from synap.lanes.opening import Upgrade
from synap.wire.codec import JSON
from synap.wire.conversation import MISSED, SILENCE, Numbers
from synap.wire.frames import MAX_BODY, Kind, frame
from synap.wire.handshake import accept
from tests.helpers.at_once import AT_ONCE


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: List[bytes] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


def connected() -> Tuple[Connection, Wire]:
    """Make a connection whose handshake is done."""
    upgrade = Upgrade(ClientConfig(url="http://127.0.0.1:1"), parse_url("http://127.0.0.1:1"), "0" * 32)
    connection = Connection(JSON, upgrade, False, lambda connection: None, lambda connection, reason: None)
    wire = Wire()
    connection.connection_made(wire)
    receive(connection, accept("test", MAX_BODY))
    wire.written.clear()
    return connection, wire


def receive(connection: Connection, data: bytes) -> None:
    """Hand over what came, as an event loop does."""
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


def answer(number: int, value: int) -> bytes:
    return frame(Kind.ANSWER, number, JSON.encode({"value": value}))


async def incr(connection: Connection, number: int) -> Any:
    return await connection.send(KV_INCR, number, JSON.encode(KvIncr("n")), monotonic(), 5.0)


async def in_a_callback(work: Callable[[], None]) -> None:
    """Do something where no task runs: in a callback of the event loop."""
    done = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            work()
        finally:
            done.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await done


async def started(*calls: Coroutine[Any, Any, Any]) -> List[asyncio.Task[Any]]:
    """Start tasks and let each come to its first wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_an_answer_resumes_its_task_before_the_read_is_over_and_what_that_says_leaves_with_it() -> None:
    connection, wire = connected()
    heard: List[int] = []

    async def ask_twice(number: int) -> None:
        heard.append((await incr(connection, number)).value)
        heard.append((await incr(connection, number + 10)).value)

    tasks = await started(ask_twice(1), ask_twice(2))
    wire.written.clear()

    def read() -> None:
        receive(connection, answer(1, 7) + answer(2, 8))
        assert heard == [7, 8]
        assert len(wire.written) == 1, "both further requests leave in one write, without another turn of the loop"

    await in_a_callback(read)
    await in_a_callback(lambda: receive(connection, answer(11, 9) + answer(12, 10)))
    await asyncio.gather(*tasks)
    assert heard == [7, 8, 9, 10]


async def test_a_lone_call_leaves_at_once_and_further_ones_of_the_turn_together() -> None:
    connection, wire = connected()

    writes: List[int] = []

    tasks = [asyncio.ensure_future(incr(connection, number)) for number in range(1, 12)]
    asyncio.get_running_loop().call_soon(lambda: writes.append(len(wire.written)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert writes == [1], "the first has left while the others are still made"
    assert len(wire.written) == 2
    answers = b"".join(answer(number, number) for number in range(1, 12))
    await in_a_callback(lambda: receive(connection, answers))
    assert [result.value for result in await asyncio.gather(*tasks)] == list(range(1, 12))


async def test_the_task_goes_on_in_its_own_context() -> None:
    connection, _ = connected()
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen: List[str] = []

    async def ask(who: str, number: int) -> None:
        name.set(who)
        await incr(connection, number)
        seen.append(name.get())

    tasks = await started(ask("a", 1), ask("b", 2))
    await in_a_callback(lambda: receive(connection, answer(2, 0) + answer(1, 0)))
    await asyncio.gather(*tasks)
    assert seen == ["b", "a"]
    assert name.get("nobody") == "nobody"


async def test_an_answer_that_comes_while_another_task_runs_is_had_all_the_same() -> None:
    connection, _ = connected()
    [task] = await started(incr(connection, 1))

    receive(connection, answer(1, 3))  # from within this test's task, as nested event loops do
    assert not task.done()
    assert (await task).value == 3


async def test_a_task_that_is_not_asyncio_s_own_goes_on_with_the_loop_s_next_round() -> None:
    """Whoever puts other tasks in their place (nest_asyncio) may run the loop within itself, where that is no socket's
    callback.
    """
    connection, _ = connected()
    task = asyncio.tasks._PyTask(incr(connection, 1))  # type: ignore[attr-defined]  # not in the stubs
    await asyncio.sleep(0)

    def read() -> None:
        receive(connection, answer(1, 3))
        assert not task.done()

    await in_a_callback(read)
    assert (await task).value == 3


@AT_ONCE
async def test_a_task_that_ends_the_program_takes_no_other_answer_with_it() -> None:
    connection, _ = connected()
    loop = asyncio.get_running_loop()
    raised: List[BaseException] = []

    async def leave() -> None:
        await incr(connection, 1)
        sys.exit("enough")

    leaving, staying = await started(leave(), incr(connection, 2))
    call_soon = loop.call_soon

    def catching(callback: Callable[..., Any], *arguments: Any, context: Any = None) -> Any:
        if arguments and isinstance(arguments[0], SystemExit):
            raised.append(arguments[0])
            return None
        return call_soon(callback, *arguments, context=context)

    loop.call_soon = catching  # type: ignore[assignment, method-assign]
    try:
        await in_a_callback(lambda: receive(connection, answer(1, 1) + answer(2, 2)))
    finally:
        loop.call_soon = call_soon  # type: ignore[method-assign]
    assert [str(error) for error in raised] == ["enough"], "the event loop is told"
    assert isinstance(leaving.exception(), SystemExit)
    assert (await staying).value == 2


async def test_a_cancelled_call_is_taken_back_and_its_late_answer_dropped() -> None:
    connection, wire = connected()
    cancelled, other = await started(incr(connection, 1), incr(connection, 2))
    wire.written.clear()

    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.sleep(0)
    assert b"".join(wire.written).endswith(frame(Kind.CANCEL, 1))
    await in_a_callback(lambda: receive(connection, answer(1, 1) + answer(2, 2)))
    assert (await other).value == 2
    assert not connection.pending


@pytest.mark.parametrize(
    ("command", "body", "reply", "kept"),
    [
        (QUEUE_CONSUME, b'{"queue":"q"}', b"null", True),
        (QUEUE_CONSUME_MANY, b'{"queues":["q"]}', b'{"messages":[]}', True),
        (KV_INCR, b'{"key":"n"}', b'{"value":1}', False),
    ],
)
async def test_an_answer_that_leases_messages_is_not_confirmed_before_its_caller_has_it(
    command: Command, body: bytes, reply: bytes, kept: bool
) -> None:
    """The service forgets what is confirmed, and then can't take a message back from a caller that was cancelled."""
    connection, _ = connected()
    numbers = Numbers("0" * 32)
    numbers.number = 1
    call = connection.send(command, 1, body, monotonic(), 5.0, numbers.parked)
    await in_a_callback(lambda: receive(connection, frame(Kind.ANSWER, 1, reply)))
    await call
    assert numbers.confirmed(connection.pending) == (1 if kept else 2)


@AT_ONCE
async def test_cancelling_between_answer_and_task_is_too_late_and_before_it_is_not() -> None:
    connection, _ = connected()
    first, second = await started(incr(connection, 1), incr(connection, 2))

    def read() -> None:
        first.cancel()
        receive(connection, answer(1, 1) + answer(2, 2))
        second.cancel()

    await in_a_callback(read)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).value == 2


async def test_an_error_and_the_loss_of_the_connection_reach_whoever_waits() -> None:
    connection, _ = connected()
    refused, lost = await started(incr(connection, 1), incr(connection, 2))

    error = {"code": "WRONG_TYPE", "message": "no number", "details": {}}
    await in_a_callback(lambda: receive(connection, frame(Kind.ERROR, 1, JSON.encode(error))))
    with pytest.raises(SynapError, match="no number"):
        await refused
    await in_a_callback(lambda: connection.connection_lost(None))
    with pytest.raises(SynapError) as failure:
        await lost
    assert (failure.value.code, failure.value.may_have_happened) == ("CONNECTION_LOST", True)


async def test_an_answer_that_is_none_of_the_command_s_is_an_error_of_the_call() -> None:
    connection, _ = connected()

    async def get() -> Any:
        return await connection.send(KV_GET, 1, JSON.encode(KvGet("k")), monotonic(), 5.0)

    [task] = await started(get())

    await in_a_callback(lambda: receive(connection, frame(Kind.ANSWER, 1, b'"what?"')))
    with pytest.raises(SynapError, match=r"not one to kv\.get"):
        await task


# ------------------------------------------------------------------------------------------ other Pythons


async def test_where_it_is_not_known_to_hold_tasks_wait_for_a_future_of_asyncio_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("synap.lanes.native.pending.RESUMES_AT_ONCE", False)
    connection, wire = connected()
    tasks = await started(*(incr(connection, number) for number in range(1, 6)))
    wire.written.clear()
    tasks[1].cancel()
    await in_a_callback(lambda: receive(connection, answer(1, 7) + frame(Kind.ANSWER, 3, b"[]")))
    assert (await tasks[0]).value == 7
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    with pytest.raises(SynapError, match=r"not one to kv\.incr"):
        await tasks[2]
    await asyncio.sleep(0)
    assert frame(Kind.CANCEL, 2) in b"".join(wire.written)
    error = JSON.encode({"code": "WRONG_TYPE", "message": "as it is", "details": {}})
    await in_a_callback(lambda: receive(connection, frame(Kind.ERROR, 4, error) + answer(2, 0)))
    with pytest.raises(SynapError, match="as it is"):
        await tasks[3]
    connection.connection_lost(None)
    with pytest.raises(SynapError, match="connection was lost before"):
        await tasks[4]
    assert not connection.pending


async def test_pings_that_were_missed_are_forgotten_once_something_comes() -> None:
    connection, _ = connected()
    conversation = connection.conversation
    now = conversation.heard
    for _ in range(MISSED):
        now += SILENCE
        conversation.watch(now)
    assert conversation.missed == MISSED
    receive(connection, frame(Kind.PONG, 0))
    assert conversation.missed == 0
    now = conversation.heard
    for _ in range(MISSED):  # as many as ever
        now += SILENCE
        conversation.watch(now)
