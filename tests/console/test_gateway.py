"""The console of a gateway: the queues of a cluster, and its nodes."""

from __future__ import annotations

from playwright.sync_api import expect

from synap import SynapClient
from synap.testing.cluster import ThrowawayCluster
from tests.console.conftest import Look, Serve
from tests.helpers.patience import STEADY


def test_a_gateway_shows_queues_and_nodes(look: Look, serve: Serve) -> None:
    with ThrowawayCluster(primaries=3, node_timeout=STEADY) as cluster:
        service = serve("--engine", cluster.url, "--durability", "none")
        with SynapClient(url=service.url) as client:
            client.queue.publish("orders", {"n": 1})
        console = look(service)
        page = console.open("queues")
        expect(page.get_by_role("row", name="orders")).to_be_visible()
        page.get_by_role("row", name="orders").click()
        expect(page.get_by_role("row", name='{"n":1}')).to_be_visible()
        console.open("server")
        expect(page.get_by_role("region", name="Cluster")).to_contain_text("3 nodes")
        console.open("now")
        expect(page.get_by_text("Operations", exact=True)).to_be_visible()
        page.close()  # before its service goes, which it would complain of
        service.kill()
