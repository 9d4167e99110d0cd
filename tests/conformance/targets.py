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
CLUSTERS = ("valkey", "gateways", "failing")
"""valkey     one node of Valkey in cluster mode, from this process
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
        if self.place == "valkey":
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


KINDS: FrozenSet[str] = frozenset((*PLACES, *CLUSTERS, "cluster", "json", "msgpack", "async", "sync", "gzip", "server"))


UNMET: Dict[str, Dict[str, str]] = {
    "failing": {
        "test_ttl_comes_back_in_whole_seconds_rounded_up": "a failover between two calls takes seconds, for a ttl too",
        "test_a_condition_that_fails_leaves_the_ttl_alone": "a failover between two calls takes seconds, for a ttl too",
        "test_incr_and_decr_keep_the_ttl": "a failover between two calls takes seconds, for a ttl too",
        "test_expire_gives_a_ttl_and_persist_takes_it": "a failover between two calls takes seconds, for a ttl too",
        "test_mget_answers_in_the_order_that_was_asked": "a failover between two calls takes seconds, for a ttl too",
        "test_delete_and_expire_with_a_value": "a failover between two calls takes seconds, for a ttl too",
    },
}
"""What a place can't do, by the test that asks for it, and why."""


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
