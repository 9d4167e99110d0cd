"""All commands by name, and the errors that callers get for those of the functions."""

from __future__ import annotations

import itertools
from typing import Any, Callable, Coroutine, Dict, Optional, Union

from synap import commands as c
from synap.cluster.calls import Refused
from synap.cluster.channels import Channels
from synap.cluster.keys import Keys
from synap.cluster.link import Link
from synap.cluster.queues import Queues
from synap.cluster.rooms import Rooms
from synap.cluster.running import Pending, Running
from synap.cluster.topics import Topics
from synap.engine.keystore import no_key
from synap.engine.keyvalue import no_integer, overflow
from synap.engine.limits import Limits
from synap.engine.queues import no_message, queue_full
from synap.engine.queuestore import check_queue, no_queue
from synap.engine.streams import no_room
from synap.errors import SynapError

Method = Callable[[Any, Any], Union[Pending, Coroutine[Any, Any, Any]]]


class Facilities:
    """The four facilities over one link, but for what waits and subscribes."""

    def __init__(self, link: Link, channels: Channels, gateway: bytes, limits: Limits, secret: bytes) -> None:
        next_subscription = itertools.count(1).__next__
        self.keys = Keys(link)
        self.keys.secret = secret
        self.queues = Queues(link)
        self.rooms = Rooms(link, channels, gateway, limits, next_subscription)
        self.topics = Topics(link, channels, gateway, limits, next_subscription)
        facilities = {"kv": self.keys, "queue": self.queues, "stream": self.rooms, "pubsub": self.topics}
        self._methods: Dict[c.Command, Method] = {
            command: getattr(facilities[command.group], command.method)
            for command in c.COMMANDS.values()
            if not (command.hosted or command.leases)
        }

    def begin(self, command: c.Command, payload: Any, who: Any) -> Pending:
        """Begin to execute a command; `who` is its `Request`, or for a subscription its `Caller`.

        What a function refuses is an error for `explain`.
        """
        begun = self._methods[command](payload, who)
        return begun if isinstance(begun, Pending) else Running(begun).start()

    async def execute(self, command: c.Command, payload: Any, who: Any) -> Any:
        """Execute a command, and explain what a function refuses."""
        try:
            return await self._methods[command](payload, who)
        except Refused as refused:
            raise explain(refused, payload) from None


def named(payload: Any) -> Optional[str]:
    """Return the one queue, room or key that a command is about, if there is one."""
    name: Optional[str] = getattr(payload, "queue", getattr(payload, "room", getattr(payload, "key", None)))
    return name


def explain(refused: Refused, payload: Any) -> SynapError:
    """Build the error of the contract for what a function refused."""
    code, name = refused.code, named(payload) or ""
    if code == "KEY_NOT_FOUND":
        return no_key(name)
    if code == "QUEUE_NOT_FOUND":
        return no_queue(name)
    if code == "ROOM_NOT_FOUND":
        return no_room(name)
    if code == "MESSAGE_NOT_FOUND":
        return no_message(name, payload.message_id, refused.text)
    if code == "INVALID_PAYLOAD":
        try:
            check_queue(max([name] if name else payload.queues, key=lambda one: len(one.encode())), True)
        except SynapError as error:
            return error
    if code == "QUEUE_FULL":
        return queue_full(name, int(refused.text))
    if code == "WRONG_TYPE":
        return no_integer(name)
    if code == "INTEGER_OVERFLOW":
        return overflow(name)
    return SynapError(code, refused.text)
