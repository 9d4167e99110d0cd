"""A service that is killed, and what it answered before.

    python -m tests.storage.crasher

reads lines of JSON, each a `Life`, and lets a fork of itself live it: it runs a durable service with several callers
(inline: with one) that do random operations on everything, and writes each answer to standard output before it goes on,
so that whoever reads has seen exactly what callers have seen when the fork is killed. Then it says how the fork ended.
`Ledger` keeps these answers over many such lives and says what must be true after the next start.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from synap.engine import records as r
from synap.errors import SynapError
from synap.storage.crashpoints import VARIABLE
from tests.helpers.driver import Service, c

CALLERS = 4
KEYS = 12
SMALL = 30_000
"""Bytes of log after which a snapshot is taken here, so that crashes find many of them."""

Note = Dict[str, Any]


class Writer:
    """One caller's random operations. It is in no doubt about its own keys, counter and messages: nobody else touches
    them.
    """

    def __init__(
        self, service: Service, name: int, chance: random.Random, first: int, tell: Callable[[Note], None]
    ) -> None:
        self.service = service
        self.name = name
        self.chance = chance
        self.number = first
        self.tell = tell
        self.leased: List[Tuple[str, int, str]] = []
        self.pending: Optional[Tuple[int, Note]] = None

    def begin(self) -> None:
        """Send one request; what it is is told before, what was answered after."""
        payload, note = self._choose()
        self.number += 1
        note.update(caller=self.name, number=self.number)
        self.tell({**note, "sent": True})
        self.pending = (self.service.send(payload, self.number), note)

    def finish(self) -> None:
        """Wait for the answer and tell it."""
        assert self.pending is not None
        number, note = self.pending
        answer = self.service.outcome(number)
        if isinstance(answer, SynapError):
            note["error"] = answer.code
        else:
            self._learn(note, answer)
        self.tell(note)

    def _choose(self) -> Tuple[Any, Note]:
        kind = self.chance.choice(["set", "set", "delete", "incr", "publish", "publish", "consume", "settle", "event"])
        mine = f"{self.name}:{self.chance.randrange(KEYS)}"
        text = json.dumps("v" * self.chance.randrange(400) + str(self.number)).encode()
        if kind == "settle" and self.leased:
            message_id, lease, text_of = self.leased.pop(0)
            if self.chance.random() < 0.7:
                return c.QueueAck("work", message_id, lease), {"do": "ack", "id": message_id, "lease": lease}
            note = {"do": "nack", "id": message_id, "text": text_of}
            return c.QueueNack("work", message_id, True, lease), note
        if kind == "delete":
            return c.KvDel([mine]), {"do": "delete", "key": mine}
        if kind == "incr":
            return c.KvIncr("count"), {"do": "incr"}
        if kind == "publish":
            body = f"{self.name}/{self.number}"
            priority = self.chance.choice([5, 5, 9])
            payload = c.QueuePublish("work", json.dumps(body).encode(), priority, {"by": str(self.name)})
            return payload, {"do": "publish", "text": body, "priority": priority}
        if kind == "consume":
            return c.QueueConsume("work", ack_deadline=80_000), {"do": "consume"}
        if kind == "event":
            body = f"{self.name}/{self.number}"
            return c.StreamPublish("room", "said", json.dumps(body).encode()), {"do": "event", "text": body}
        return c.KvSet(mine, text), {"do": "set", "key": mine, "text": text.decode()}

    def _learn(self, note: Note, answer: Any) -> None:
        if note["do"] == "consume" and answer is not None:
            note.update(id=answer.message_id, text=json.loads(answer.message), lease=answer.lease)
            note["retries"] = answer.retry_count
            self.leased.append((answer.message_id, answer.lease, note["text"]))
        elif note["do"] == "event":
            note["offset"] = answer.offset
        elif note["do"] == "incr":
            note["value"] = answer.value
        elif note["do"] == "publish":
            note["id"] = answer.message_id


class Life(NamedTuple):
    """What a fork is to do, and the named point at which it is killed, if at any."""

    directory: str
    seed: int
    operations: int
    commits: str
    point: str


def tell(note: Note) -> None:
    # One write to a pipe: what was told is told, however this process ends.
    os.write(1, json.dumps(note).encode() + b"\n")


def live(life: Life) -> None:
    if life.point:
        os.environ[VARIABLE] = life.point
    Service.inline = life.commits == "inline"
    callers = 1 if Service.inline else CALLERS
    chance = random.Random(life.seed)
    service = Service(life.directory, session="d" * 32, snapshot_minimum=SMALL)
    tell({"started": os.getpid()})
    writers = [Writer(service, name, chance, life.seed * 1_000_000 + name * 100_000, tell) for name in range(callers)]
    for _ in range(life.operations):
        # All callers' requests are under way together, and share a commit or not as it happens.
        for writer in writers:
            writer.begin()
        for writer in writers:
            writer.finish()
    inline = service.log.inline.count
    service.close()
    tell({"ended": True, "inline": inline})


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                live(Life(*json.loads(line)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        tell({"code": -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)})


Messages = Dict[str, Tuple[str, int, Dict[str, str], int]]


def queue_of(service: Service, name: str) -> Tuple[Messages, Dict[str, int]]:
    """Return the messages of a queue (text, priority, headers, sequence) and the leases on them, by message id."""
    prefix = ""
    messages: Messages = {}
    leases: Dict[str, int] = {}
    with service.lock:
        records = [record for slice in service.host.engine.dump() for record in slice]
    for record in records:
        if record[0] == r.QUEUE and record[1] == name:
            prefix = f"{record[2]:x}-"
        elif record[0] == r.MESSAGE and record[1] == name:
            _, _, number, sequence, priority, value, headers, *_ = record
            messages[f"{prefix}{number:x}"] = (json.loads(value), priority, headers, sequence)
        elif record[0] == r.LEASE and record[1] == name:
            leases[f"{prefix}{record[2]:x}"] = record[3]
    return messages, leases


class Ledger:
    """What callers were told over all lives of a service, and what may have happened beside that."""

    def __init__(self) -> None:
        self.values: Dict[str, Set[Optional[str]]] = {}
        """What each key may hold: one thing, or also what a request without an answer may have made of it."""
        self.increments = 0
        self.maybe_increments = 0
        self.published: Dict[str, int] = {}
        """Priority of messages whose publish was answered, by their text."""
        self.maybe_published: Set[str] = set()
        self.acked: Set[str] = set()
        self.maybe_acked: Set[str] = set()
        self.leased: Dict[str, str] = {}
        """Text of messages that a caller holds, by id."""
        self.maybe_free: Set[str] = set()
        self.ids: Dict[str, str] = {}
        self.events: Dict[int, str] = {}
        self.maybe_events: Set[str] = set()
        self.answers: Dict[int, Note] = {}
        self.unanswered_acks: Dict[int, Note] = {}

    def read(self, notes: List[Note]) -> None:
        """Take in what one life told."""
        answered = {note["number"] for note in notes if "number" in note and not note.get("sent")}
        for note in notes:
            if "number" not in note:
                continue
            if note.get("sent"):
                if note["number"] not in answered:
                    self._unanswered(note)
            elif "error" not in note:
                self._answered(note)
            else:
                assert note["do"] != "ack", f"an ack in time was refused: {note}"

    def _answered(self, note: Note) -> None:
        do = note["do"]
        self.answers[note["number"]] = note
        if do == "set":
            self.values[note["key"]] = {note["text"]}
        elif do == "delete":
            self.values[note["key"]] = {None}
        elif do == "incr":
            self.increments += 1
        elif do == "publish":
            self.published[note["text"]] = note["priority"]
            self.ids[note["id"]] = note["text"]
        elif do == "consume" and "id" in note:
            assert note["text"] not in self.acked, f"{note['text']} was acknowledged and came again"
            assert note["id"] not in self.leased or note["id"] in self.maybe_free, f"{note['text']} has two holders"
            self.leased[note["id"]] = note["text"]
        elif do == "ack":
            self.acked.add(self.leased.pop(note["id"]))
        elif do == "nack":
            self.leased.pop(note["id"], None)
            self.maybe_free.add(note["id"])
        elif do == "event":
            assert note["offset"] not in self.events, f"offset {note['offset']} was given twice"
            self.events[note["offset"]] = note["text"]

    def _unanswered(self, note: Note) -> None:
        do = note["do"]
        if do in ("set", "delete"):
            self.values.setdefault(note["key"], {None}).add(note.get("text"))
        elif do == "incr":
            self.maybe_increments += 1
        elif do == "publish":
            self.maybe_published.add(note["text"])
        elif do == "ack":
            self.maybe_acked.add(self.leased[note["id"]])
            self.unanswered_acks[note["number"]] = note
        elif do == "nack":
            self.maybe_free.add(note["id"])
        elif do == "event":
            self.maybe_events.add(note["text"])

    # ------------------------------------------------------------------------------------------ what must be true

    def check(self, service: Service) -> None:
        """Compare a service that was started again with what callers know."""
        self._check_keys(service)
        self._check_counter(service)
        self._check_room(service)
        self._check_queue(service)
        self._check_answers(service)
        self._check_queue(service)
        assert not self.acked or service.do(c.QueueStats("work")).acked_total == len(self.acked), "an ack counted twice"

    def _check_keys(self, service: Service) -> None:
        for key, possible in self.values.items():
            found = service.do(c.KvGet(key))
            value = found.value.decode() if found.found else None
            assert value in possible, f"{key} holds {value!r}, answered was {possible!r}"
            self.values[key] = {value}

    def _check_counter(self, service: Service) -> None:
        count = int((service.do(c.KvGet("count")).value or b"0").decode())
        assert self.increments <= count <= self.increments + self.maybe_increments, "increments lost or done twice"
        self.increments, self.maybe_increments = count, 0

    def _check_room(self, service: Service) -> None:
        with service.lock:
            room = service.host.engine.streams.by_name.get("room")
        found: Dict[int, str] = {}
        while room is not None:
            page = service.do(c.StreamHistory("room", from_offset=len(found), limit=10_000))
            for event in page.events:
                assert event.offset == len(found), "a gap in the room"
                found[event.offset] = json.loads(event.data)
            if len(found) == page.newest_offset + 1:
                break
        for offset, text in self.events.items():
            assert found.get(offset) == text, f"the event at {offset} is {found.get(offset)!r}, answered was {text!r}"
        for offset, text in found.items():
            assert offset in self.events or text in self.maybe_events, f"nobody published {text!r}"
        assert len(set(found.values())) == len(found), "an event is there twice"
        self.events, self.maybe_events = found, set()

    def _check_queue(self, service: Service) -> None:
        messages, leases = queue_of(service, "work")
        letters, _ = queue_of(service, "work.dlq")
        texts = [message[0] for message in (*messages.values(), *letters.values())]
        there = set(texts)
        assert len(there) == len(texts), "a message is there twice"
        assert not self.acked & there, "an acknowledged message is back"
        for text in self.published:
            assert text in there or text in self.acked or text in self.maybe_acked, f"the message {text} is lost"
        for text, priority, headers, _ in messages.values():
            assert text in self.published or text in self.maybe_published, f"nobody published {text}"
            assert self.published.setdefault(text, priority) == priority
            assert headers == {"by": text.split("/")[0]}
        for message_id, text in self.leased.items():
            if message_id not in self.maybe_free and text not in self.maybe_acked:
                assert message_id in leases, f"the lease on {text} is lost"
        self._check_order(messages)
        self._send_acks_again(service)
        self.acked |= self.maybe_acked
        self.maybe_acked.clear()
        self.maybe_published.clear()
        self.maybe_free.clear()
        # Their callers are gone, so nobody settles these: they go back as they would at the end of their leases.
        self.leased.clear()
        for message_id, lease in queue_of(service, "work")[1].items():
            service.do(c.QueueNack("work", message_id, True, lease))

    def _send_acks_again(self, service: Service) -> None:
        """Whether they were done before the crash or not: now they are, and were done once."""
        for number, note in self.unanswered_acks.items():
            ack = c.QueueAck("work", note["id"], note["lease"])
            for _ in range(2):
                assert service.do(ack, number, retried=True).success
        self.unanswered_acks.clear()

    def _check_order(self, messages: Messages) -> None:
        """Of one caller's messages of one priority, the earlier one is out first."""
        last: Dict[Tuple[str, int], int] = {}
        for text, priority, _, _ in sorted(messages.values(), key=lambda message: message[3]):
            caller, number = text.split("/")
            assert last.get((caller, priority), -1) < int(number), "messages changed places"
            last[caller, priority] = int(number)

    def _check_answers(self, service: Service) -> None:
        """A request that was answered before the crash is answered again, and not done again."""
        numbers = sorted(self.answers)[-20:]
        for number in numbers:
            note = self.answers[number]
            if note["do"] == "incr":
                assert service.do(c.KvIncr("count"), number, retried=True).value == note["value"]
            elif note["do"] == "event":
                again = service.do(c.StreamPublish("room", "said", b"0"), number, retried=True)
                assert again.offset == note["offset"]
            elif note["do"] == "publish":
                assert service.do(c.QueuePublish("work", b"0"), number, retried=True).message_id == note["id"]
            elif note["do"] == "ack":
                assert service.do(c.QueueAck("work", note["id"], note["lease"]), number, retried=True).success


if __name__ == "__main__":
    main()
