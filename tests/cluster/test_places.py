"""Where names live, and which node has that: computed, without any node."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from typing import Any, List

import pytest

from synap.client.colocation import colocated
from synap.cluster.link import Link
from synap.cluster.options import Address, EngineOptions
from synap.cluster.places import SLOTS, Places, tag_of
from synap.cluster.topology import Shard, Topology

A, B = Address("a", 1), Address("b", 2)


def slot_of(key: bytes) -> int:
    """Return the slot that Valkey puts a key in: that of what stands between its first braces."""
    return crc_hqx(key[key.index(b"{") + 1 : key.index(b"}")], 0) % SLOTS


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("orders", b"orders"),
        ("orders.dlq", b"orders"),
        ("orders.dlq.dlq", b"orders"),
        ("{a}b", b"a"),
        ("x{a}b.dlq", b"a"),
        ("{}b", b"{}b"),
        ("{ab", b"{ab"),
        ("a}b{c}", b"c"),
        ("{ü}x", "ü".encode()),
    ],
)
def test_what_decides_where_a_name_lives(name: str, tag: bytes) -> None:
    assert tag_of(name) == tag


def test_what_belongs_to_a_name_lies_beside_it_and_is_its_own() -> None:
    names = ["x", "x.dlq", "x.dlq.dlq", "y", "{t}x", "{t}x.dlq", "{u}x", "ü{t}"]
    found = {name: colocated(name, ":fence") for name in names}
    assert len(set(found.values())) == len(names)
    for name, own in found.items():
        assert tag_of(own) == tag_of(name)


@pytest.mark.parametrize("partitions", [1, 2, 16, 256, 16_384])
def test_all_keys_of_a_partition_are_in_its_first_slot(partitions: int) -> None:
    places = Places(partitions)
    for partition in range(0, partitions, max(partitions // 64, 1)):
        assert places.slot(partition) == partition * (SLOTS // partitions)
        for key in (
            places.key(partition, "k"),
            places.memory(partition, b"s"),
            *places.index(partition),
            *places.whole_queue(partition, f"q{partition}"),
            *places.room(partition, "r"),
        ):
            assert slot_of(key) == places.slot(partition)


def test_a_name_lives_in_the_partition_that_has_its_slot() -> None:
    for partitions in (1, 4, 256, 16_384):
        places = Places(partitions)
        for number in range(200):
            name = f"name-{number}"
            slot = crc_hqx(name.encode(), 0) % SLOTS
            found = places.partition(name)
            assert places.slot(found) <= slot < places.slot(found) + places.width
            assert places.partition(name) == found


def owners(*shards: Shard, partitions: int = 4) -> List[Any]:
    topology = Topology(EngineOptions.read("valkey://a:1", {}, environ={}))
    places = Places(partitions)

    async def take() -> List[Any]:
        topology._take(places, list(shards))
        return topology.owners

    return asyncio.run(take())


def test_a_partition_belongs_to_who_has_its_first_slot() -> None:
    assert owners(Shard(0, SLOTS // 2 - 1, A, ()), Shard(SLOTS // 2, SLOTS - 1, B, ())) == [A, A, B, B]
    assert owners(Shard(0, SLOTS // 2, A, ()), Shard(SLOTS // 2 + 1, SLOTS - 1, B, ())) == [A, A, A, B]
    assert owners(Shard(0, SLOTS // 4 - 1, A, ())) == [A, None, None, None]
    assert owners(Shard(1, SLOTS - 1, B, ())) == [None, B, B, B]


@pytest.mark.parametrize(
    ("said", "meant"),
    [("7 b:6380", Address("b", 6380)), ("7 :6380", Address("a", 6380)), ("7 [::1]:6380", Address("::1", 6380))],
)
def test_a_redirect_names_a_node(said: str, meant: Address) -> None:
    assert Link._where(Link.__new__(Link), A, said) == meant
