"""The table of commands: each once, with its payload, its answer and all that is known about it.

Dispatch in the engine, validation at the door, encoding, the memory of answered requests, estimates of sizes, what a
batch may hold, `/openapi.json`, the native lane's command numbers and the reference page all follow from here. To add
a command: its entry beside those of its facility (with a payload class and an answer class, or an existing one), one
method in the engine, one in the client, and nothing else.
"""

from __future__ import annotations

from typing import Mapping, Tuple, Type, Union

from msgspec import Struct

from synap.commands import admin, kv, pubsub, queue, stream
from synap.commands.admin import *
from synap.commands.batch import *
from synap.commands.batch import BATCH
from synap.commands.command import *
from synap.commands.command import Command
from synap.commands.fields import *
from synap.commands.fields import Answer
from synap.commands.kv import *
from synap.commands.pubsub import *
from synap.commands.pubsub import TopicMessage
from synap.commands.queue import *
from synap.commands.stream import *
from synap.commands.stream import EventAnswer

Item = Union[EventAnswer, TopicMessage]
"""What is pushed to a subscriber."""
ITEMS: Tuple[Type[Answer], ...] = (EventAnswer, TopicMessage)

COMMANDS: Mapping[str, Command] = {
    entry.name: entry
    for facility in (kv, queue, stream, pubsub, admin)
    for entry in vars(facility).values()
    if isinstance(entry, Command)
}
BY_CODE: Mapping[int, Command] = {command.code: command for command in (*COMMANDS.values(), BATCH)}
BY_PAYLOAD: Mapping[Type[Struct], Command] = {command.payload: command for command in (*COMMANDS.values(), BATCH)}
