"""The table of commands, and all facts about each.

The engine's dispatch, validation, encoding, remembered replies, estimates of sizes, what a batch may hold,
`/openapi.json`, the command numbers of the native lane and the reference page are derived from it. To add a command: an
entry beside those of its facility (with a payload and an answer class), a method of the engine, a method of the client,
and nothing else.
"""

from __future__ import annotations

from typing import Mapping, Tuple, Type, Union

from msgspec import Struct

from synap.commands import admin, kv, pubsub, queue, stream
from synap.commands.admin import *
from synap.commands.batch import *
from synap.commands.command import *
from synap.commands.fields import *
from synap.commands.kv import *
from synap.commands.pubsub import *
from synap.commands.queue import *
from synap.commands.stream import *

Item = Union[EventAnswer, TopicMessage]
"""An item that is pushed to a subscriber."""
ITEMS: Tuple[Type[Answer], ...] = (EventAnswer, TopicMessage)

COMMANDS: Mapping[str, Command] = {
    entry.name: entry
    for facility in (kv, queue, stream, pubsub, admin)
    for entry in vars(facility).values()
    if isinstance(entry, Command)
}
BY_CODE: Mapping[int, Command] = {command.code: command for command in (*COMMANDS.values(), BATCH)}
BY_PAYLOAD: Mapping[Type[Struct], Command] = {command.payload: command for command in (*COMMANDS.values(), BATCH)}
