"""Statistics of an engine. Going over many queues and rooms takes a while, so it is done in steps."""

from __future__ import annotations

from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from synap.engine.callers import Steps
from synap.engine.priorities import TOTALS, Queue

if TYPE_CHECKING:
    from synap.engine.engine import Engine
    from synap.engine.rooms import Room

MOST_NAMED = 1000
"""Default number of queues, and of rooms, that have figures of their own: those used most."""
OTHERS = "(others)"
"""The label of the sums of all further ones, in metrics; one of that very name is always among them."""
EVERY = 100
"""Queues or rooms that one step goes over."""

Named = Optional[Callable[[str], bool]]


def survey(engine: Engine, most: Optional[int], named: Named = None) -> Steps:
    """Collect all figures in steps, for people and for metrics. `memory` is an estimate in bytes.

    `most` queues, and rooms, have figures of their own, those used most and those whose names `named` picks (all of
    them where `most` is None); the others are summed, and `oldest` is that of the oldest message of them all.
    """
    budget, topics, keys, streams = engine.budget, engine.topics, engine.keys, engine.streams
    at, consumers = engine.timeline.at, engine.deliveries.consumers

    def queue_figures(queue: Queue) -> Dict[str, int]:
        return {
            "depth": queue.ready,
            "pending": len(queue.leased),
            "delayed": len(queue.delayed),
            "consumers": consumers(queue),
            **{f"{total}_total": getattr(queue, total) for total in TOTALS},
        }

    found, queues_others = yield from _rows(list(engine.store.queues.values()), queue_figures, most, named)
    queues: Dict[str, Dict[str, Any]] = {}
    for queue, figures in found:
        since = _since(queue)
        queues[queue.name] = {
            **figures,
            "max_depth": queue.config.max_depth,
            "oldest": None if since is None else at(since),
        }
        if not len(queues) % EVERY:
            yield
    if queues_others:
        since = yield from _oldest_of_others(list(engine.store.queues.values()), queues)
        queues_others["oldest"] = None if since is None else at(since)
    found, rooms_others = yield from _rows(list(streams.by_name.values()), _room_figures, most, None)
    rooms: Dict[str, Dict[str, Any]] = {}
    for room, figures in found:
        rooms[room.name] = figures
        if room.places:
            rooms[room.name] = {**figures, "lag": streams.names.lags(room)}
            yield
    return {
        "memory": budget.total,
        "memory_aside": budget.aside,
        "memory_limit": engine.limits.memory,
        "keys": len(keys.values),
        "keys_expiring": len(keys.expires),
        "keys_evicted": keys.evicted,
        "queues": queues,
        "rooms": rooms,
        "queues_others": queues_others,
        "rooms_others": rooms_others,
        "queues_total": len(engine.store.queues),
        "rooms_total": len(streams.by_name),
        "stream_subscriptions": sum(row["subscribers"] for row in rooms.values()) + rooms_others.get("subscribers", 0),
        "topic_subscriptions": len(topics.subscriptions),
        "topic_patterns": len(topics.patterns),
        "topic_published_total": topics.published,
        "topic_delivered_total": topics.delivered,
        "waiting": len(engine.deliveries.waiting),
        "replies": engine.replies.count,
    }


def _since(queue: Queue) -> Optional[float]:
    """Return when the oldest ready message could first be taken."""
    oldest = queue.oldest()
    return None if oldest is None else oldest.ready_since or oldest.published


def _oldest_of_others(queues: List[Queue], named: Dict[str, Dict[str, Any]]) -> Steps:
    """Return since when the oldest message waits of queues that have no figures of their own."""
    first: Optional[float] = None
    for number, queue in enumerate(queues):
        since = None if queue.name in named else _since(queue)
        if since is not None and (first is None or since < first):
            first = since
        if not number % EVERY:
            yield
    return first


def _room_figures(room: Room) -> Dict[str, int]:
    return {"events": room.next - room.oldest, "subscribers": len(room.subscriptions), "published_total": room.next}


Row = Tuple[Any, Dict[str, int]]


def _rows(things: List[Any], figures: Callable[[Any], Dict[str, int]], most: Optional[int], named: Named) -> Steps:
    """Return the things that have figures of their own, in the order they were made, and the sums of the others."""
    if most is None or len(things) <= most:
        every: List[Row] = []
        for at in range(0, len(things), EVERY):
            every += [(thing, figures(thing)) for thing in things[at : at + EVERY]]
            yield
        return every, {}
    kept: List[Tuple[int, int, Row]] = []
    wanted: List[Tuple[int, int, Row]] = []
    sums: Dict[str, int] = {}
    for at in range(0, len(things), EVERY):
        for number, thing in enumerate(things[at : at + EVERY], at):
            row = figures(thing)
            for name, value in row.items():
                sums[name] = sums.get(name, 0) + value
            if thing.name != OTHERS:
                entry = (sum(row.values()), -number, (thing, row))
                (wanted if named is not None and named(thing.name) else kept).append(entry)
        if len(kept) > 2 * most:
            kept = nlargest(most, kept, key=itemgetter(0, 1))
        yield
    chosen = wanted + nlargest(most, kept, key=itemgetter(0, 1))
    for _, _, (_, row) in chosen:
        for name, value in row.items():
            sums[name] -= value
    chosen.sort(key=itemgetter(1), reverse=True)
    return [row for _, _, row in chosen], sums
