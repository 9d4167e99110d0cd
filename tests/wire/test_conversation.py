"""The client's side of a native connection, without a socket: what each frame does, and what ends it."""

from __future__ import annotations

import random
from typing import Any, List, Optional

import pytest
from tests.helpers.frames import FrameReader

from synap.commands import (
    KV_GET,
    KV_SET,
    PUBSUB_SUBSCRIBE,
    PUBSUB_UNSUBSCRIBE,
    STREAM_SUBSCRIBE,
    STREAM_UNSUBSCRIBE,
    Command,
)
from synap.errors import SynapError
from synap.wire.codec import JSON
from synap.wire.compression import compress
from synap.wire.conversation import MISSED, SILENCE, UNREAD, Conversation, Fault, Listener, Numbers
from synap.wire.frames import GZIP, HEADER, Kind, frame
from synap.wire.outcomes import unreadable


class Asked:
    """A request in flight that keeps its outcome."""

    def __init__(self, command: Command = KV_GET) -> None:
        self.command = command
        self.outcome: Any = None
        self.large = False

    @property
    def answered(self) -> bool:
        return self.outcome is not None

    def expect_large(self) -> None:
        self.large = True

    def answer(self, body: bytes) -> None:
        assert not self.answered
        self.outcome = body

    def fail(self, error: BaseException) -> None:
        assert not self.answered
        self.outcome = error


class Heard(Listener):
    """Keeps what is pushed."""

    def __init__(self) -> None:
        self.items: List[Any] = []
        self.end: Optional[SynapError] = None

    def push(self, item: Any) -> None:
        self.items.append(item)

    def ended(self, error: SynapError) -> None:
        self.end = error

    def lost(self, error: SynapError) -> None:
        self.end = error


def asking(*numbers: int, command: Command = KV_GET) -> Any:
    """Make a conversation with requests in flight; returns it and them."""
    conversation = Conversation(JSON)
    calls = [Asked(command) for _ in numbers]
    conversation.calls.update(zip(numbers, calls))
    return (conversation, *calls)


def said(conversation: Conversation) -> List[Any]:
    """Return the frames that the conversation wants to send."""
    return FrameReader().feed(conversation.take_out())


def error(code: str, message: str = "words") -> bytes:
    return JSON.encode({"code": code, "message": message, "details": {}})


def message(topic: str) -> bytes:
    return JSON.encode({"topic": topic, "message": 1, "metadata": {}, "timestamp": 1, "message_id": "m"})


@pytest.mark.parametrize("cut", [1, 5, 12, 13, 1000])
def test_answers_go_to_their_calls_in_any_order_and_in_any_pieces(cut: int) -> None:
    conversation, first, second = asking(1, 2)
    data = frame(Kind.ANSWER, 2, b'"two"') + frame(Kind.ERROR, 1, error("KEY_NOT_FOUND"))
    for start in range(0, len(data), cut):
        conversation.feed(data[start : start + cut])
    assert first.outcome.code == "KEY_NOT_FOUND"
    assert second.outcome == b'"two"'


def test_an_answer_to_a_number_that_is_not_in_flight_is_dropped() -> None:
    conversation, call = asking(2)
    conversation.feed(frame(Kind.ANSWER, 1, b"1") + frame(Kind.ERROR, 3, error("WRONG_TYPE")))
    assert not call.answered
    conversation.feed(frame(Kind.ANSWER, 2, b"2") + frame(Kind.ANSWER, 2, b"again"))
    assert call.outcome == b"2"


def test_a_request_that_was_withdrawn_is_forgotten_and_cancelled() -> None:
    conversation, call = asking(1)
    conversation.withdraw(1)
    assert [(one.kind, one.id) for one in said(conversation)] == [(Kind.CANCEL, 1)]
    conversation.feed(frame(Kind.ANSWER, 1, b"1"))
    assert not call.answered


def test_an_answer_that_is_alone_is_taken_without_cutting_frames() -> None:
    conversation, call = asking(7)
    data = frame(Kind.ANSWER, 7, b"{}")
    assert conversation.take_alone(memoryview(data), len(data))
    assert call.outcome == b"{}"
    for other in (data + b"x", data[:-1], frame(Kind.PONG, 7), frame(Kind.ANSWER, 7, compress(b"{}"), flags=GZIP)):
        assert not asking(7)[0].take_alone(memoryview(other), len(other))
    assert not asking(7, 8)[0].take_alone(memoryview(data), len(data))


@pytest.mark.parametrize("number", [1, 2])
def test_a_broken_answer_fails_its_call_and_nothing_else(number: int) -> None:
    """Compressed wrongly, an error that is none: the connection goes on."""
    conversation, first, second = asking(1, 2, command=KV_SET)
    broken = [frame(Kind.ANSWER, 1, b"not gzip", flags=GZIP), frame(Kind.ERROR, 2, b"[]")][number - 1]
    conversation.feed(broken + frame(Kind.ANSWER, 3 - number, b"{}"))
    failed, fine = (first, second) if number == 1 else (second, first)
    assert failed.outcome.code == "CONNECTION_LOST"
    assert failed.outcome.may_have_happened
    assert "the answer is not one to kv.set" in failed.outcome.message
    assert fine.outcome == b"{}"


def test_a_subscription_is_heard_from_its_answer_on() -> None:
    conversation, call = asking(1, command=PUBSUB_SUBSCRIBE)
    heard = Heard()
    conversation.subscribing(PUBSUB_SUBSCRIBE, 1, heard)
    conversation.feed(
        frame(Kind.MESSAGE, 9, message("too early"))
        + frame(Kind.ANSWER, 1, b'{"subscription_id": 9, "topics": []}')
        + frame(Kind.MESSAGE, 9, message("a"))
        + frame(Kind.MESSAGE, 9, compress(message("b")), flags=GZIP)
        + frame(Kind.MESSAGE, 8, message("another's"))
        + frame(Kind.ENDED, 9, error("SLOW_CONSUMER"))
        + frame(Kind.MESSAGE, 9, message("too late"))
    )
    assert call.answered
    assert [item.topic for item in heard.items] == ["a", "b"]
    assert heard.end is not None
    assert heard.end.code == "SLOW_CONSUMER"


def test_a_subscription_whose_asker_has_gone_is_ended_when_its_answer_comes() -> None:
    conversation, _ = asking(1, command=PUBSUB_SUBSCRIBE)
    conversation.subscribing(PUBSUB_SUBSCRIBE, 1, Heard())
    conversation.withdraw(1)
    conversation.take_out()
    conversation.feed(frame(Kind.ANSWER, 1, b'{"subscription_id": 9, "topics": []}'))
    [ending] = said(conversation)
    assert (ending.kind, ending.code, ending.id) == (Kind.REQUEST, PUBSUB_UNSUBSCRIBE.code, UNREAD)
    assert JSON.decode(ending.body) == {"subscription_id": 9}
    assert not conversation.listeners


def test_an_unreadable_answer_to_subscribing_fails_the_call_at_once() -> None:
    conversation, call = asking(1, command=STREAM_SUBSCRIBE)
    conversation.subscribing(STREAM_SUBSCRIBE, 1, Heard())
    conversation.feed(frame(Kind.ANSWER, 1, b'"nonsense"'))
    assert call.outcome.code == "CONNECTION_LOST"


def test_pings_are_answered_and_a_draining_service_gets_nothing_more() -> None:
    conversation, call = asking(1)
    ping = Asked()
    conversation.ping(5, ping)
    conversation.feed(frame(Kind.PING, 7) + frame(Kind.PONG, 5, b"{}") + frame(Kind.PONG, 6) + frame(Kind.GOAWAY))
    assert ping.outcome == b"{}"
    assert not conversation.open
    assert [(one.kind, one.id) for one in said(conversation)] == [(Kind.PING, 5), (Kind.PONG, 7)]
    conversation.feed(frame(Kind.ANSWER, 1, b"still comes"))
    assert call.outcome == b"still comes"


FAULTS = {
    "too long": (HEADER.pack(2**32 - 1, Kind.ANSWER, 0, 0, 1), "a body may have"),
    "no known kind": (HEADER.pack(0, 77, 0, 0, 1), "frame kind must be"),
    "a client's frame": (frame(Kind.REQUEST, 1), "frames of kind 1 are a client's"),
    "an event that is none": (frame(Kind.EVENT, 9, b"[]"), "unreadable data"),
    "an end that is none": (frame(Kind.ENDED, 9, b"[]"), "unreadable data"),
    "an error about the connection": (frame(Kind.ERROR, 0, error("FORBIDDEN", "not from there")), "not from there"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_ends_the_connection_comes_after_what_was_right(fault: str) -> None:
    conversation, call, other = asking(1, 2)
    conversation.listeners[9] = Heard()
    data, why = FAULTS[fault]
    with pytest.raises(Fault, match=why):
        conversation.feed(frame(Kind.ANSWER, 1, b"right") + data)
    if fault not in ("too long", "no known kind"):
        assert call.outcome == b"right"
    conversation.end("over")
    assert other.outcome.code == "CONNECTION_LOST"


def test_the_end_fails_what_is_in_flight_and_tells_what_never_left() -> None:
    conversation, sent, unsent = asking(1, 2, command=KV_SET)
    heard = conversation.listeners[9] = Heard()
    ping = Asked()
    conversation.ping(1, ping)
    conversation.take_out()
    conversation.out.append(frame(Kind.REQUEST, 2, b"{}", KV_SET.code))
    assert conversation.end("the cable was cut") == [heard]
    assert not conversation.open
    assert (sent.outcome.may_have_happened, unsent.outcome.may_have_happened) == (True, False)
    assert "the cable was cut" in sent.outcome.message
    assert ping.outcome.code == "CONNECTION_FAILED"
    assert not conversation.calls
    assert not conversation.out


def test_silence_is_pinged_and_then_ends_the_connection() -> None:
    conversation = Conversation(JSON)
    conversation.heard = now = 1000.0
    assert conversation.watch(now + SILENCE - 1) == now + SILENCE
    for missed in range(1, MISSED + 1):
        conversation.watch(now + missed * SILENCE)
        assert [one.kind for one in said(conversation)] == [Kind.PING]
        assert conversation.missed == missed
    with pytest.raises(Fault, match="fallen silent"):
        conversation.watch(now + (MISSED + 1) * SILENCE)


def test_only_what_nobody_may_ask_for_again_is_confirmed() -> None:
    numbers = Numbers("0" * 32)
    numbers.number = 9
    assert numbers.confirmed({}) == 10
    assert numbers.confirmed({4: None, 7: None}) == 4
    numbers.parked[3] = True
    assert numbers.confirmed({4: None}) == 3


def test_a_body_that_is_too_large_is_refused_and_others_compressed_where_that_is_wanted() -> None:
    conversation = Conversation(JSON, max_body=2000)
    with pytest.raises(SynapError, match="a request may have 2000 bytes, this one has 2001; nothing was sent"):
        conversation.fit(b"x" * 2001, 0)
    assert conversation.fit(b"x" * 2000, 1) == (b"x" * 2000, 1)
    body, flags = Conversation(JSON, compression=True).fit(b"x" * 2000, 1)
    assert len(body) < 200
    assert flags == 1 | GZIP


DEEP = b"[" * 200_000 + b"]" * 200_000
"""What an earlier version took, and no Python reads."""


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(("kind", "ending"), [(Kind.EVENT, STREAM_UNSUBSCRIBE), (Kind.MESSAGE, PUBSUB_UNSUBSCRIBE)])
def test_an_item_that_is_too_deep_ends_its_subscription_and_nothing_else(
    kind: int, ending: Command, squeezed: bool
) -> None:
    conversation, call = asking(7)
    poisoned, other = Heard(), Heard()
    conversation.listeners.update({1: poisoned, 2: other})
    if kind == Kind.EVENT:
        item = b'{"event_id":"e","offset":%d,"event_type":"t","data":%b,"timestamp":0,"metadata":{},"room":"r"}'
    else:
        item = b'{"message_id":"m%d","topic":"t","message":%b,"timestamp":0,"metadata":{}}'
    body, flags = (compress(item % (0, DEEP)), GZIP) if squeezed else (item % (0, DEEP), 0)
    fine = item % (1, b"1")
    conversation.feed(frame(kind, 1, body, 0, flags) + frame(kind, 1, fine) + frame(kind, 2, fine))
    conversation.feed(frame(Kind.ANSWER, 7, b"{}"))
    assert poisoned.end is not None
    assert poisoned.end.code == "WRONG_TYPE"
    assert not poisoned.items
    assert len(other.items) == 1
    assert call.outcome == b"{}"
    (asked,) = FrameReader(1 << 20).feed(conversation.take_out())
    assert (asked.kind, asked.id, asked.code) == (Kind.REQUEST, UNREAD, ending.code)


def test_an_answer_that_is_too_deep_is_an_error_of_its_own_call() -> None:
    with pytest.raises(SynapError, match="nested") as caught:
        JSON.decode_result(KV_GET, b'{"found":true,"value":%b,"ttl":null}' % DEEP)
    assert caught.value.code == "WRONG_TYPE"
    for command, happened in ((KV_GET, False), (KV_SET, True)):
        error = unreadable(command, RecursionError())
        assert (error.code, error.may_have_happened) == ("WRONG_TYPE", happened)


@pytest.mark.parametrize(
    ("kind", "flags", "large"), [(Kind.ANSWER, 0, True), (Kind.ANSWER, GZIP, False), (Kind.ERROR, 0, False)]
)
def test_a_call_learns_that_its_answer_was_received_in_place(kind: int, flags: int, large: bool) -> None:
    conversation, call, other = asking(1, 2)
    body = (
        random.Random(1).getrandbits(2_400_000).to_bytes(300_000, "big")
        if kind == Kind.ANSWER
        else error("WRONG_TYPE", "x" * 300_000)
    )
    data = frame(kind, 1, compress(body) if flags else body, flags=flags) + frame(Kind.ANSWER, 2, b"2")
    while data:
        buffer = conversation.reader.buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        conversation.filled(count)
        data = data[count:]

    assert call.large is large
    assert other.outcome == b"2"
    assert not other.large
    assert kind == Kind.ERROR or (type(call.outcome) is memoryview) == large
    assert kind == Kind.ERROR or bytes(call.outcome) == body
