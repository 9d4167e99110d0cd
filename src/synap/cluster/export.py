"""Write what a cluster holds as the lines that `synap import` reads.

What changes meanwhile may be in it or not; keys that stay, and messages and events that are there throughout, are.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any, AsyncIterator, BinaryIO, Dict, List, Literal, Mapping, Optional, Set, Tuple

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.cluster.options import EngineOptions
from synap.cluster.running import in_task
from synap.engine.priorities import TOTALS
from synap.errors import MessageNotFoundError, QueueNotFoundError, RoomNotFoundError
from synap.storage.portable import FORMAT, SETTINGS, encode_line, event_line, message_line, shown_value

PAGE = 1000
_FIELDS = ("f", "mr", "dl", "rd", "rb", "rm")
State = Literal["ready", "leased", "delayed"]
_STATES: Tuple[State, ...] = ("leased", "delayed", "ready", "leased", "delayed")


def export_cluster(url: str, out: BinaryIO, engine: Optional[Mapping[str, Any]] = None) -> int:
    """Write all of a cluster's space of names to `out`; returns the number of lines. Raises `SynapError`.

    `engine`: options of the cluster, as for a client.
    """
    return asyncio.run(_export(EngineOptions.read(url, {**(engine or {}), "durability": "none"}), out))


async def _export(options: EngineOptions, out: BinaryIO) -> int:
    host = ClusterHost(options)
    await host.open()
    count = 0
    try:
        out.write(encode_line({"type": "header", "format": FORMAT, "exported": time.time()}))
        async for document in _documents(host):
            count += 1
            out.write(encode_line(document))
        out.write(encode_line({"type": "end", "lines": count}))
    finally:
        await host.close()
    return count + 2


async def _ask(host: ClusterHost, command: c.Command, payload: Any) -> Any:
    return await in_task(host.facilities.begin(command, payload, None))


async def _documents(host: ClusterHost) -> AsyncIterator[Dict[str, Any]]:
    async for document in _keys(host):
        yield document
    for name in (await _ask(host, c.QUEUE_LIST, c.QueueList())).queues:
        async for document in _queue(host, name):
            yield document
    for name in (await _ask(host, c.STREAM_ROOMS, c.StreamRooms())).rooms:
        async for document in _room(host, name):
            yield document


async def _keys(host: ClusterHost) -> AsyncIterator[Dict[str, Any]]:
    cursor = None
    while True:
        page = await _ask(host, c.KV_SCAN, c.KvScan(cursor=cursor, count=PAGE))
        found = (await _ask(host, c.KV_MGET, c.KvMGet(page.keys))).values if page.keys else []
        for key, answer in zip(page.keys, found):
            if answer.found:
                expires = {} if answer.ttl is None else {"expires": time.time() + answer.ttl}
                yield {"type": "key", "key": key, **shown_value("value", answer.value), **expires}
        if not page.has_more:
            return
        cursor = page.cursor


async def _queue(host: ClusterHost, name: str) -> AsyncIterator[Dict[str, Any]]:
    places = host.link.places
    partition = places.partition(name)
    header = places.queue(partition, (b"qh",), name)[0]
    kept = await in_task(host.link.command(partition, "HMGET", header, *_FIELDS))
    if kept[0] is None:
        return  # deleted meanwhile
    depth, deadline = struct.unpack_from(">dd", kept[0])  # as `frame` in lua/2_queues.lua
    retries, letters, delay, backoff, most = (float(text) for text in kept[1:])
    values = (int(retries), deadline / 1000, int(depth), letters == 1, delay / 1000, backoff, most / 1000)
    try:
        figures = await _ask(host, c.QUEUE_STATS, c.QueueStats(name))
    except QueueNotFoundError:
        return
    totals = {total: getattr(figures, f"{total}_total") for total in TOTALS}
    yield {"type": "queue", "queue": name, **dict(zip(SETTINGS, values)), "totals": totals}
    found: List[c.PeekedMessage] = []
    seen: Set[str] = set()
    try:
        # The ready ones last, but then the others again: what was ready may have been taken meanwhile.
        for state in _STATES:
            async for message in _peeked(host, name, state):
                if message.message_id not in seen:
                    seen.add(message.message_id)
                    found.append(message)
                if state == "ready" and len(found) >= PAGE:
                    for message in sorted(found, key=_number):
                        yield _message(name, message)
                    found = []
    except QueueNotFoundError:
        pass  # deleted meanwhile
    for message in sorted(found, key=_number):
        yield _message(name, message)


def _number(message: c.PeekedMessage) -> int:
    """Return a message's place in the order in which they were published."""
    return int(message.message_id.rpartition("-")[2][:-1], 16)


async def _peeked(host: ClusterHost, name: str, state: State) -> AsyncIterator[c.PeekedMessage]:
    """Yield the messages of a queue in a state; some may come more than once when others leave it meanwhile."""
    after = None
    while True:
        try:
            page = await _ask(host, c.QUEUE_PEEK, c.QueuePeek(name, state, after, PAGE))
        except MessageNotFoundError:  # the last one of the page before has left
            after = None
            continue
        for message in page.messages:
            if state == "leased":  # its lease isn't the next owner's
                message.due = None
            yield message
        if not page.has_more:
            return
        after = page.messages[-1].message_id


def _message(queue: str, m: c.PeekedMessage) -> Dict[str, Any]:
    document = message_line(queue, m.message, m.priority, m.headers, m.retry_count, m.published)
    if m.due is not None and m.due > time.time():
        document["due"] = m.due
    return document


async def _room(host: ClusterHost, name: str) -> AsyncIterator[Dict[str, Any]]:
    offset = None
    while True:
        try:
            page = await _ask(host, c.STREAM_HISTORY, c.StreamHistory(name, offset, None, PAGE))
        except RoomNotFoundError:
            return  # deleted meanwhile
        if offset is None:
            yield {"type": "room", "room": name, "oldest_offset": page.oldest_offset}
        if not page.events:
            return
        for event in page.events:
            yield event_line(name, event.offset, event.event_type, event.data, event.metadata, event.timestamp)
        offset = page.events[-1].offset + 1
