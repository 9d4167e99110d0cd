"""What may be done with queues."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

from synap import commands as c
from tests.engine.model.base import RULES, Base, config_of, data_of
from tests.engine.model.plain import Message
from tests.helpers.world import Client

STATES = ("ready", "leased", "delayed")


class QueueActions(Base):
    """The commands of `queue`, each beside the model."""

    def a_queue(self) -> str:
        return str(self.pick("q", "r"))

    def a_queue_or_its_letters(self) -> str:
        return self.a_queue() + str(self.pick("", "", ".dlq"))

    def a_lease(self) -> Optional[Tuple[str, Message, int, str]]:
        found = self.model.leased()
        if not found:
            return None
        name, message = self.pick(*found)
        return name, message, message["lease"][0], message["lease"][2]

    def a_way_to_name(self, lease: int) -> Tuple[Optional[int], Client]:
        """Choose one of the ways in which a lease can be proved: by its session, by its number, by a person's word."""
        way: Tuple[Optional[int], Client] = self.pick(
            (None, self.client), (lease, self.client), (lease, Client("another")), (0, Client("another"))
        )
        return way

    # ---- in and out

    def publish(self) -> None:
        queue, value, priority = self.a_queue(), self.pick(*range(-5, 6)), self.pick(4, 5, 6)
        delay = self.pick(0, 0, 0, 2, 7)
        answer = self.run(c.QueuePublish(queue, data_of(value), priority, None, delay))
        position = self.model.publish(queue, value, priority, self.world.now + delay if delay else 0.0)
        assert answer.position == position

    def took(self, queue: str, answer: Any, message: Optional[Message]) -> None:
        """Check what a consume gave against what it should have, and note the lease."""
        if message is None:
            assert answer is None
            self.model.queues.setdefault(queue, [])
            return
        found = (int(answer.message), answer.priority, answer.retry_count)
        assert found == (message["value"], message["priority"], message["retries"])
        assert bool(answer.headers) == message["died"]
        self.model.lease(queue, message, answer.lease, answer.deadline, answer.message_id)

    def consume(self) -> None:
        queue, seconds = self.a_queue_or_its_letters(), self.pick(*range(1, 20))
        answer = self.run(c.QueueConsume(queue, ack_deadline=seconds))
        self.took(queue, answer, self.model.next(queue))

    def consume_and_acknowledge(self) -> None:
        queue = self.a_queue_or_its_letters()
        held = self.model.leased(lambda name, _: name == queue)
        if not held:
            return
        _, message = self.pick(*held)
        lease, _, text = message["lease"]
        wrong = c.QueueConsume(queue, ack=text, ack_lease=lease + 1000)
        assert self.world.error(wrong).code == "MESSAGE_NOT_FOUND"
        self.model.queues[queue].remove(message)
        answer = self.run(c.QueueConsume(queue, ack_deadline=9, ack=text, ack_lease=self.pick(None, lease, 0)))
        self.took(queue, answer, self.model.next(queue))

    def consume_many(self) -> None:
        """Take from several queues, those named first before the others, and acknowledge what was had from any."""
        queues = [self.a_queue_or_its_letters() for _ in range(self.pick(1, 2, 3))]
        most = self.pick(1, 2, 5)
        held = self.model.leased()
        done = self.random.sample(held, min(len(held), self.pick(0, 0, 1, 2)))
        ack = [c.Held(name, message["lease"][2], message["lease"][0]) for name, message in done]
        if ack and self.pick(True, False, False):
            wrong = c.Held(ack[0].queue, ack[0].message_id, 10**9)
            payload = c.QueueConsumeMany(queues, most, ack=[*ack[1:], wrong])
            assert self.world.error(payload).code == "MESSAGE_NOT_FOUND"
            return
        for name, message in done:
            self.model.queues[name].remove(message)
        answer = self.run(c.QueueConsumeMany(queues, most, ack_deadline=self.pick(3, 9), ack=ack))
        wanted = [(name, message) for name in dict.fromkeys(queues) for message in self.model.ready(name)][:most]
        assert [found.queue for found in answer.messages] == [name for name, _ in wanted]
        for found, (name, message) in zip(answer.messages, wanted):
            self.took(name, found, message)
        for name in queues:
            self.model.queues.setdefault(name, [])

    def peek(self) -> None:
        """Look at a queue page by page: nothing changes, and nothing is left out."""
        queue, state, limit = self.a_queue_or_its_letters(), self.pick(*STATES), self.pick(1, 2, 3)
        if queue not in self.model.queues:
            assert self.world.error(c.QueuePeek(queue)).code == "QUEUE_NOT_FOUND"
            return
        wanted = self.model.ready(queue) if state == "ready" else self.model.held(queue, state)
        found: List[c.PeekedMessage] = []
        after: Optional[str] = None
        while True:
            page = self.world.get(c.PeekAnswer, c.QueuePeek(queue, state, after, limit))
            found += page.messages
            if not page.has_more:
                break
            assert len(page.messages) == limit
            after = page.messages[-1].message_id
        assert [(int(m.message), m.priority, m.retry_count) for m in found] == [
            (m["value"], m["priority"], m["retries"]) for m in wanted
        ]
        assert [m.due for m in found] == [m["lease"][1] if m["lease"] else m["due"] or None for m in wanted]
        nowhere = c.QueuePeek(queue, state, "not-an-id")
        assert self.world.error(nowhere).code == "MESSAGE_NOT_FOUND"

    # ---- leases

    def ack(self) -> None:
        found = self.a_lease()
        if found is None:
            return
        name, message, lease, text = found
        assert self.world.error(c.QueueAck(name, text, lease + 1000)).code == "MESSAGE_NOT_FOUND"
        assert self.world.error(c.QueueAck(name, text), Client("another")).code == "MESSAGE_NOT_FOUND"
        given, caller = self.a_way_to_name(lease)
        self.run(c.QueueAck(name, text, given), caller)
        self.model.queues[name].remove(message)

    def nack(self) -> None:
        found = self.a_lease()
        if found is None:
            return
        name, message, lease, text = found
        requeue, delay = self.pick(True, True, False), self.pick(0, 0, 3, 8)
        given, caller = self.a_way_to_name(lease)
        action = self.run(c.QueueNack(name, text, requeue, given, delay), caller).action
        if requeue:
            assert action == self.model.give_up(name, message, self.world.now, delay)
        elif name.endswith(".dlq"):
            assert action == "dropped"
            self.model.queues[name].remove(message)
        else:
            assert action == "dead_lettered"
            self.model.bury(name, message)

    def extend(self) -> None:
        found = self.a_lease()
        if found is None:
            return
        name, message, lease, text = found
        seconds = self.pick(*range(1, 20))
        given, caller = self.a_way_to_name(lease)
        self.run(c.QueueExtend(name, text, seconds, given), caller)
        message["lease"] = (lease, self.world.now + seconds, text)

    def settle_with_an_old_lease(self) -> None:
        """The number of a lease that is over settles nothing, whatever became of the message."""
        if not self.model.given:
            return
        name, text, lease = self.pick(*self.model.given[-20:])
        holds = [m for _, m in self.model.leased() if m["lease"][0] == lease]
        payload = self.pick(c.QueueAck(name, text, lease), c.QueueExtend(name, text, 5, lease))
        if name not in self.model.queues:
            assert self.world.error(payload).code == "QUEUE_NOT_FOUND"
        elif not holds:
            assert self.world.error(payload).code == "MESSAGE_NOT_FOUND"

    # ---- dead letters

    def redrive(self) -> None:
        queue = self.a_queue()
        limit = self.pick(None, 1, 2)
        chosen = self.model.ready(queue + ".dlq")
        named: Optional[List[str]] = None
        if chosen and self.pick(True, False):
            letters = self.world.get(c.PeekAnswer, c.QueuePeek(queue + ".dlq")).messages
            places = self.random.sample(range(len(letters)), self.random.randint(1, len(letters)))
            named = [letters[place].message_id for place in places]
            self.random.shuffle(named)
            leased = [m["lease"][2] for _, m in self.model.leased(lambda name, _: name == queue + ".dlq")]
            named += ["nowhere-1", *leased]
            chosen = [letter for place, letter in enumerate(chosen) if place in places]
        chosen = chosen[:limit]
        for letter in chosen:
            self.model.queues[queue + ".dlq"].remove(letter)
            self.model.publish(queue, letter["value"], letter["priority"])
        assert self.run(c.QueueRedrive(queue, limit, named)).redriven == len(chosen)

    # ---- queues

    def purge(self) -> None:
        queue = self.a_queue()
        assert self.run(c.QueuePurge(queue)).purged == len(self.model.queues[queue])
        self.model.queues[queue] = []

    def delete_and_make_again(self) -> None:
        queue = self.a_queue()
        self.run(c.QueueDelete(queue))
        self.make(queue)

    def change_the_rules(self) -> None:
        """Give some of a queue's rules, which leaves the others as they are."""
        queue = self.a_queue()
        most, delay, backoff, longest = self.model.rules[queue]
        which = self.pick("max_retries", "retry_delay", "all")
        if which == "max_retries":
            most = self.pick(0, 1, 3)
            self.run(c.QueueCreate(queue, c.QueueConfig(max_retries=most)))
            self.model.rules[queue] = (most, delay, backoff, longest)
        elif which == "retry_delay":
            delay = self.pick(0, 2)
            self.run(c.QueueCreate(queue, c.QueueConfig(retry_delay=delay)))
            self.model.rules[queue] = (most, delay, backoff, longest)
        else:
            rules = RULES[queue]
            self.run(c.QueueCreate(queue, config_of(rules)))
            self.model.rules[queue] = rules
