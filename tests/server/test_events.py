"""`GET /api/v1/stream/subscribe`: a room as server-sent events."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Reply

Listen = Callable[..., "Stream"]


class Event(NamedTuple):
    id: int | None
    kind: str
    data: Any


class Stream:
    """What a browser's EventSource sees."""

    def __init__(self, server: ThrowawayServer, query: str, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(
            "GET", f"/api/v1/stream/subscribe?{query}", headers={"Accept": "text/event-stream", **named}
        )
        self.answer = self.connection.getresponse()

    def read(self) -> Event | None:
        """The next event; None where the service ended the stream."""
        id, kind, data = None, "message", ""
        while True:
            line = self.answer.readline().decode()
            if not line:
                return None
            assert "\r" not in line.rstrip("\r\n"), "a carriage return ends a line as well"
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "id":
                id = int(value)
            elif field == "event":
                kind = value
            elif field == "data":
                data += value
            elif not line.strip() and data:
                return Event(id, kind, json.loads(data))

    def refusal(self) -> Reply:
        return Reply(self.answer.status, dict(self.answer.getheaders()), self.answer.read())


@pytest.fixture
def listen(server: ThrowawayServer) -> Iterator[Listen]:
    opened: list[Stream] = []

    def start(query: str, to: ThrowawayServer = server, **headers: str) -> Stream:
        opened.append(Stream(to, query, **headers))
        return opened[-1]

    yield start
    for stream in opened:
        stream.connection.close()


@pytest.fixture
def room(http: Http) -> str:
    """A room with the events 0 to 4."""
    name = uuid.uuid4().hex
    for number in range(5):
        http.do("stream.publish", room=name, event_type="count", data={"n": number})
    return name


def test_events_come_with_their_offsets_as_ids(listen: Listen, http: Http, room: str) -> None:
    stream = listen(f"room={room}&from_offset=3")
    assert stream.answer.status == 200
    assert stream.answer.getheader("content-type", "").startswith("text/event-stream")
    http.do("stream.publish", room=room, event_type="count", data={"n": 5})
    events = [stream.read() for _ in range(3)]
    assert [event.id for event in events if event] == [3, 4, 5]
    last = events[-1]
    assert last is not None
    assert (last.kind, last.data["event_type"], last.data["data"]) == ("message", "count", {"n": 5})


def test_replay_begins_at_the_oldest(listen: Listen, room: str) -> None:
    first = listen(f"room={room}&replay=true").read()
    assert first is not None
    assert first.id == 0


def test_without_either_only_what_comes_next_is_sent(listen: Listen, http: Http, room: str) -> None:
    stream = listen(f"room={room}")
    http.do("stream.publish", room=room, event_type="count", data=None)
    first = stream.read()
    assert first is not None
    assert first.id == 5


def test_last_event_id_goes_on_after_it_whatever_the_query_says(listen: Listen, room: str) -> None:
    stream = listen(f"room={room}&from_offset=0", Last_Event_ID="2")
    first = stream.read()
    assert first is not None
    assert first.id == 3


def test_line_breaks_between_the_tokens_of_a_value_do_not_break_the_event(
    listen: Listen, http: Http, room: str
) -> None:
    http.post(
        b'{"command":"stream.publish","payload":{"room":"%b","event_type":"t","data":{\n"a":\r\n"b\\nc"}}}'
        % room.encode()
    )
    event = listen(f"room={room}&from_offset=5").read()
    assert event is not None
    assert event.data["data"] == {"a": "b\nc"}


def test_a_deleted_room_ends_the_stream_saying_why(listen: Listen, http: Http, room: str) -> None:
    stream = listen(f"room={room}")
    http.do("stream.delete", room=room)
    ended = stream.read()
    assert ended is not None
    assert (ended.kind, ended.data["code"]) == ("ended", "ROOM_NOT_FOUND")
    assert stream.read() is None


def test_a_reader_that_goes_is_no_subscriber_any_more(listen: Listen, http: Http, room: str) -> None:
    stream = listen(f"room={room}")
    assert http.do("stream.stats", room=room).payload["subscribers"] == 1
    stream.connection.close()
    stream.answer.close()
    while http.do("stream.stats", room=room).payload["subscribers"]:
        pass


WRONG = ["", "room=", "room=r&from_offset=x", "room=r&replay=perhaps", "room=r&surprise=1"]
WRONG += ["room=%ff", "room=r&room=s", "room=r&from_offset=0&from_offset=0"]
NUMBERS = ["1_000", "%2B5", "%205", "5%0A", "%D9%A3", "--5", ""]
WRONG += [f"room=r&from_offset={number}" for number in NUMBERS]


@pytest.mark.parametrize("query", WRONG)
def test_a_wrong_query_is_refused(listen: Listen, query: str) -> None:
    refusal = listen(query).refusal()
    assert (refusal.status, refusal.error["code"]) == (422, "INVALID_PAYLOAD")
    assert "field" in refusal.error["details"] or query == "room=%ff"


def test_a_wrong_last_event_id_is_refused(listen: Listen, room: str) -> None:
    for wrong in ("yesterday", "1_0", "+5"):
        assert listen(f"room={room}", Last_Event_ID=wrong).refusal().status == 422


def test_a_key_is_asked_for(serve: Any, listen: Listen) -> None:
    server = serve("--api-key", "right")
    assert listen("room=r", server).refusal().status == 401
    assert listen("room=r", server, X_API_Key="right").answer.status == 200


@pytest.mark.parametrize("line_break", [b"\n", b"\r", b"\r\n"], ids=repr)
def test_line_breaks_between_the_tokens_of_an_event_s_json_do_not_end_it(
    listen: Listen, http: Http, line_break: bytes
) -> None:
    room = uuid.uuid4().hex
    data = b'{"n":' + line_break + line_break + b'1,"text":"two\\nlines"}'
    command = b'{"command":"stream.publish","payload":{"room":"%s","event_type":"x","data":%s}}' % (room.encode(), data)
    assert http.post(command).status == 200
    http.do("stream.publish", room=room, event_type="after", data=2)
    stream = listen(f"room={room}&from_offset=0")
    first, second = stream.read(), stream.read()
    assert first is not None
    assert second is not None
    assert (first.id, first.data["data"]) == (0, {"n": 1, "text": "two\nlines"})
    assert (second.id, second.data["data"]) == (1, 2)
