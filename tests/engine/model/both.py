"""All that may be done, and what always holds."""

from __future__ import annotations

from synap import commands as c
from tests.engine.model.base import data_of
from tests.engine.model.keys import FENCE, KEYS, LOCK, KeyActions
from tests.engine.model.plain import ROOM_EVENTS
from tests.engine.model.queues import QueueActions
from tests.engine.model.rooms import RoomActions
from tests.helpers.world import picture

__all__ = ["ACTIONS", "Both"]


class Both(KeyActions, QueueActions, RoomActions):
    """An engine and a model that are told the same."""

    # ---- batches

    def an_atomic_batch_that_fails(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        queue = self.pick("q", "r")
        room = self.pick("x", "y")
        value = self.pick(*range(-5, 6))
        data = data_of(value)
        before = picture(self.world.engine)
        results = self.world.batch(
            c.KvSet(key, data, ttl=3),
            c.KvIncr("n"),
            c.KvDel([key, "a"]),
            c.QueuePublish(queue, data),
            c.QueuePurge(queue),
            c.QueuePublish(queue, data, delay=5),
            c.QueueRedrive(queue),
            c.QueueDelete(queue),
            c.QueuePublish("new", data),
            c.StreamPublish(room, "t", data),
            c.StreamPublish("new", "t", data),
            c.StreamDelete(room),
            c.KvTtl("nothing there"),
            c.KvSet(key, data),
            atomic=True,
            caller=self.client,
            number=self.number + 1,
        )
        assert results == ["BATCH_ABORTED"] * 12 + ["KEY_NOT_FOUND", "BATCH_ABORTED"]
        assert picture(self.world.engine) == before

    def an_atomic_batch_that_holds(self) -> None:
        key = self.pick("a", "b", "ab", "c")
        value = self.pick(*range(-5, 6))
        room = self.pick("x", "y")
        self.number += 1
        data = data_of(value)
        items = (c.KvSet(key, data), c.KvIncr(key, 1), c.StreamPublish(room, "t", data))
        results = self.world.batch(*items, atomic=True, caller=self.client, number=self.number)
        assert results[1].value == value + 1
        self.model.set(key, value + 1, None)
        self.model.rooms.setdefault(room, []).append(value)

    # ---- what always holds

    def both_agree(self) -> None:
        now = self.world.now
        self.model.expire(now)
        engine = self.world.engine
        for key in (*KEYS, LOCK, FENCE):
            answer = engine.execute(c.KvGet(key), now, self.client)
            assert isinstance(answer, c.GetAnswer)
            value = self.model.values.get(key)
            assert answer.value == (None if value is None else data_of(value))
            due = self.model.expires.get(key)
            assert answer.ttl == (None if due is None else due - now)
        for name, messages in self.model.queues.items():
            stats = self.world.stats(name)
            leased = sum(message["lease"] is not None for message in messages)
            delayed = sum(bool(message["due"]) for message in messages)
            assert (stats.depth, stats.pending, stats.delayed) == (len(messages) - leased - delayed, leased, delayed)
        for name, events in self.model.rooms.items():
            history = self.world.get(c.HistoryAnswer, c.StreamHistory(name))
            assert [int(event.data) for event in history.events] == events[-ROOM_EVENTS:]
            assert history.newest_offset == len(events) - 1
            cursors = self.world.get(c.CursorsAnswer, c.StreamCursors(name)).cursors
            places = {cursor.name: (cursor.offset, cursor.lag) for cursor in cursors}
            wanted = self.model.cursors.get(name, {})
            assert places == {durable: (place - 1, len(events) - place) for durable, place in wanted.items()}

    def drain(self) -> None:
        """Empty every queue: all that should be there is, in order."""
        picture(self.world.engine)
        for name in list(self.model.queues):
            while True:
                message = self.model.next(name)
                answer = self.run(c.QueueConsume(name, ack_deadline=1000))
                if message is None:
                    assert answer is None
                    break
                assert int(answer.message) == message["value"]
                self.model.queues[name].remove(message)


ACTIONS = [
    *["set", "set_if", "set_and_keep_the_ttl", "change_if_it_holds_a_value", "change_if_it_holds_a_value"],
    *["delete", "clear", "incr", "change_expiry", "scan"],
    *["take_the_lock"] * 3,
    *["renew_the_lock", "give_the_lock_back", "give_the_lock_back"],
    *["publish"] * 8,
    *["consume"] * 5,
    *["consume_and_acknowledge", "consume_many", "consume_many", "peek", "settle_with_an_old_lease"],
    *["ack", "nack", "nack", "nack", "extend", "redrive", "purge", "delete_and_make_again", "change_the_rules"],
    *["event"] * 4,
    *["delete_room", "follow_by_name", "follow_by_name", "move_a_cursor", "forget_a_name"],
    *["an_atomic_batch_that_fails", "an_atomic_batch_that_holds"],
    *["pass_time"] * 4,
    *["commit", "the_disk_refuses", "the_disk_refuses", "restart_from_the_log", "restart_from_a_snapshot"],
    *["begin_a_snapshot", *["go_on_with_the_snapshot"] * 4],
]
"""Names of the actions, the frequent ones more than once."""
