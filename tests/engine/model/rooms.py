"""What may be done with rooms and with durable subscriptions to them."""

from __future__ import annotations

from synap import commands as c
from tests.engine.model.base import Base, data_of
from tests.helpers.world import Client

ROOMS = ("x", "y")
NAMES = ("billing", "mail")


class RoomActions(Base):
    """The commands of `stream`, each beside the model."""

    def event(self) -> None:
        room, value = self.pick(*ROOMS), self.pick(*range(-5, 6))
        events = self.model.rooms.setdefault(room, [])
        answer = self.run(c.StreamPublish(room, "t", data_of(value)))
        assert answer.offset == len(events)
        events.append(value)

    def delete_room(self) -> None:
        room = self.pick(*ROOMS)
        self.model.cursors.pop(room, None)
        if self.model.rooms.pop(room, None) is None:
            assert self.world.error(c.StreamDelete(room)).code == "ROOM_NOT_FOUND"
        else:
            self.run(c.StreamDelete(room))

    def follow_by_name(self) -> None:
        """Subscribe, see the events since the last commit, commit some of them, and go."""
        room, name = self.pick(*ROOMS), self.pick(*NAMES)
        begin = self.pick(None, None, 0, 3, -2)
        replay = self.pick(True, False)
        events = self.model.rooms.setdefault(room, [])
        oldest, following = self.model.oldest(room), len(events)
        if begin is None:
            first = oldest if replay else following
        else:
            first = max(begin if begin >= 0 else max(following + begin, 0), oldest)
        cursors = self.model.cursors.setdefault(room, {})
        known = cursors.setdefault(name, min(first, following))
        start = known if begin is None else first
        reader = Client("reader")
        answer = self.world(c.StreamSubscribe(room, begin, replay, name), reader)
        assert answer.next_offset == start
        assert self.world.engine.resume(reader, answer.subscription_id)
        wanted = list(range(max(start, oldest), following))
        assert reader.offsets == wanted
        assert [int(item.data) for _, item in reader.pushed] == [events[offset] for offset in wanted]
        if self.pick(True, False):  # another takes over under this name: the first is told and ends
            other = Client("other")
            self.world(c.StreamSubscribe(room, None, False, name), other)
            assert reader.ends[answer.subscription_id].code == "SUPERSEDED"
            assert not reader.subscriptions
            self.world.engine.forget(other)
        if wanted and self.pick(True, False):
            done = self.pick(*wanted)
            self.run(c.StreamCommit(room, name, done))
            cursors[name] = done + 1
        self.world.engine.forget(reader)

    def move_a_cursor(self) -> None:
        room, name = self.pick(*ROOMS), self.pick(*NAMES)
        offset = self.pick(-1, 0, 1, 2, 4, 7)
        if room not in self.model.rooms:
            assert self.world.error(c.StreamCommit(room, name, offset)).code == "ROOM_NOT_FOUND"
        elif offset >= self.model.next_offset(room):
            assert self.world.error(c.StreamCommit(room, name, offset)).code == "INVALID_PAYLOAD"
        else:
            self.run(c.StreamCommit(room, name, offset))
            self.model.cursors.setdefault(room, {})[name] = offset + 1

    def forget_a_name(self) -> None:
        room, name = self.pick(*ROOMS), self.pick(*NAMES)
        if room in self.model.rooms:
            known = self.model.cursors.get(room, {}).pop(name, None) is not None
            assert self.run(c.StreamForget(room, name)).forgotten == known
