"""A gateway has what every service has: keys, limits, metrics."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any, Callable, Iterator

import pytest

from synap import AsyncSynapClient, RateLimitError, SynapClient, SynapError
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import STEADY

Serve = Callable[..., ThrowawayServer]


@pytest.fixture(scope="module")
def primaries() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster(3, node_timeout=STEADY) as cluster:
        yield cluster


def scrape(gateway: ThrowawayServer) -> str:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def test_keys_open_a_gateway(primaries: ThrowawayCluster, serve: Serve) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none", "--api-key", "open-sesame-1234567890")
    with SynapClient(url=gateway.url, retries=0) as nobody, pytest.raises(SynapError) as caught:
        nobody.kv.get("k")
    assert caught.value.code == "UNAUTHORIZED"
    with SynapClient(url=gateway.url, api_key="open-sesame-1234567890") as client:
        assert client.kv.set("k", 1).success


def test_a_gateway_limits_requests(primaries: ThrowawayCluster, serve: Serve) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none", "--rate-limit", "5")

    def flood(client: SynapClient) -> None:
        for number in range(1000):
            client.kv.set("k", number)

    with SynapClient(url=gateway.url, retries=0) as client, pytest.raises(RateLimitError):
        flood(client)


async def test_the_metrics_that_the_docs_name_are_in_a_scrape(primaries: ThrowawayCluster, serve: Serve) -> None:
    gateway = serve("--engine", primaries.url, "--durability", "none")
    async with AsyncSynapClient(url=gateway.url) as client:
        await client.queue.publish("metered", 1)
        await client.stream.publish("metered", "e", 1)
        await client.stream.commit("metered", "reader", -1)
        for node in primaries.nodes:
            node.ask("FUNCTION", "FLUSH")
        await client.kv.mset({f"k{number}": number for number in range(100)})
        addresses = [f"127.0.0.1:{node.port}" for node in primaries.nodes]
        wanted = [
            f'synap_node_{figure}{{node="{address}"}}'
            for figure in ("memory", "memory_limit", "replicas", "lag_bytes")
            for address in addresses
        ]
        wanted += [
            'synap_cluster_retries_total{reason="function not found"}',
            'synap_queue_depth{queue="metered"} 1.0',
            'synap_room_events{room="metered"} 1.0',
            'synap_subscription_lag_events{name="reader",room="metered"} 1.0',
        ]
        missing: Any = wanted
        for _ in range(200):
            text = await asyncio.to_thread(scrape, gateway)
            missing = [sample for sample in wanted if sample not in text]
            if not missing:
                break
            await asyncio.sleep(0.1)
        assert not missing
