"""What the contract says, in the plainest way."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple

__all__ = ["ROOM_EVENTS", "Due", "Model", "Rules"]

ROOM_EVENTS = 6

Message = Dict[str, Any]
"""`value`, `priority`, `retries`, `place` in its queue, `birth` (the order of publishing), `due` of a delay or 0,
`died`, and `lease`: its number, its end and the id of the message, or None."""
Rules = Tuple[int, int, int, int]
"""Of a queue: `max_retries`, `retry_delay`, `retry_backoff`, `retry_max_delay`."""
Due = Tuple[float, int, str, Message]

LETTERS: Rules = (0, 0, 2, 3600)


class Model:
    """Keys, queues and rooms as plain dictionaries and lists."""

    def __init__(self) -> None:
        self.values: Dict[str, int] = {}
        self.expires: Dict[str, float] = {}
        self.queues: Dict[str, List[Message]] = {}
        self.rules: Dict[str, Rules] = {}
        self.rooms: Dict[str, List[int]] = {}
        self.cursors: Dict[str, Dict[str, int]] = {}
        """By room and durable name, the offset of the first event that is not done."""
        self.given: List[Tuple[str, str, int]] = []
        """All leases there ever were: queue, id and number."""
        self.fences: List[int] = []
        """What those who got the lock were given, in this order."""
        self.place = 0
        self.ids: Dict[str, int] = {}

    # ---- keys

    def expire(self, now: float) -> None:
        for key in [key for key, due in self.expires.items() if due <= now]:
            del self.values[key], self.expires[key]

    def set(self, key: str, value: int, due: Optional[float]) -> None:
        self.values[key] = value
        self.expires.pop(key, None)
        if due is not None:
            self.expires[key] = due

    def drop(self, key: str) -> None:
        self.values.pop(key, None)
        self.expires.pop(key, None)

    # ---- queues

    def publish(self, queue: str, value: int, priority: int, due: float = 0.0, died: bool = False) -> int:
        self.place += 1
        message: Message = {"value": value, "priority": priority, "place": self.place, "retries": 0}
        message.update(birth=self.place, lease=None, due=due, died=died)
        messages = self.queues.setdefault(queue, [])
        messages.append(message)
        return 1 + sum(1 for m in messages[:-1] if m["priority"] >= priority and m["lease"] is None and not m["due"])

    def ready(self, queue: str) -> List[Message]:
        """List the messages that can be taken, as they would leave."""
        ready = [m for m in self.queues.get(queue, []) if m["lease"] is None and not m["due"]]
        return sorted(ready, key=lambda m: (-m["priority"], m["place"]))

    def next(self, queue: str) -> Optional[Message]:
        return next(iter(self.ready(queue)), None)

    def held(self, queue: str, state: str) -> List[Message]:
        """List the messages that are leased or delayed, in the order in which that ends."""
        if state == "leased":
            found = [m for m in self.queues.get(queue, []) if m["lease"]]
            return sorted(found, key=lambda m: (m["lease"][1], m["birth"]))
        return sorted([m for m in self.queues.get(queue, []) if m["due"]], key=lambda m: (m["due"], m["birth"]))

    def leased(self, where: Callable[[str, Message], bool] = lambda name, message: True) -> List[Tuple[str, Message]]:
        return [(name, m) for name, all in self.queues.items() for m in all if m["lease"] and where(name, m)]

    def lease(self, queue: str, message: Message, number: int, deadline: float, text: str) -> None:
        message["lease"] = (number, deadline, text)
        self.given.append((queue, text, number))

    def give_up(self, queue: str, message: Message, now: float, delay: float = 0.0) -> str:
        """End a lease without an acknowledgement, and say what became of the message."""
        most, first, backoff, longest = self.rules.get(queue, LETTERS)
        message["lease"] = None
        if message["retries"] >= most and not queue.endswith(".dlq"):
            self.bury(queue, message)
            return "dead_lettered"
        message["retries"] += 1
        delay = delay or min(first * backoff ** (message["retries"] - 1), longest)
        message["due"] = now + delay if delay else 0.0
        return "requeued"

    def bury(self, queue: str, message: Message) -> None:
        self.queues[queue].remove(message)
        self.publish(queue + ".dlq", message["value"], message["priority"], died=True)

    # ---- rooms

    def next_offset(self, room: str) -> int:
        return len(self.rooms[room])

    def oldest(self, room: str) -> int:
        return max(0, len(self.rooms[room]) - ROOM_EVENTS)

    # ---- time

    def advance(self, now: float) -> None:
        self.expire(now)
        due: List[Due] = []
        for name, messages in self.queues.items():
            for message in messages:
                time = message["lease"][1] if message["lease"] else message["due"]
                if time and time <= now:
                    due.append((time, 0 if message["lease"] else 1, name, message))
        for _, kind, name, message in sorted(due, key=lambda entry: (entry[0], entry[1], self.order(entry))):
            if kind == 0:
                self.give_up(name, message, now)
            elif message["retries"]:
                message["due"] = 0.0  # it has a place already
            else:
                self.place += 1
                message.update(due=0.0, place=self.place)

    def order(self, entry: Due) -> Any:
        message = entry[3]
        return message["lease"][0] if message["lease"] else (self.ids[entry[2]], message["birth"])
