"""What a gateway says of itself, and logs, while nodes of its cluster don't serve."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, Tuple

from synap import SynapClient, SynapError
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.test_gateway import scrape
from tests.helpers.patience import STEADY
from tests.helpers.raw import wait_for

Serve = Callable[..., ThrowawayServer]


def health(gateway: ThrowawayServer) -> Tuple[int, Dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{gateway.url}/health", timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def says(gateway: ThrowawayServer, status: int, word: str) -> bool:
    """Whether the health is this, and the metric says the same."""
    code, figures = health(gateway)
    metric = "synap_up_for_writes 1.0" if word == "ok" else "synap_up_for_writes 0.0"
    return code == status and figures["status"] == word and metric in scrape(gateway)


def test_nodes_that_are_gone_are_told_and_that_they_are_back(serve: Serve) -> None:
    with ThrowawayCluster(3, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "none", "--patience", "1")
        assert says(gateway, 200, "ok")
        cluster.nodes[0].kill()
        wait_for(lambda: says(gateway, 200, "degraded"))  # the others serve, and so would no other gateway do more
        reason = health(gateway)[1]["reason"]
        assert reason == "1 of the cluster's 3 primaries can't take writes; the service's log says why"
        with SynapClient(gateway.url, retries=0) as client:
            outcomes = [_outcome(client, f"key-{n}") for n in range(20)]
        assert set(outcomes) == {"", "SERVICE_UNAVAILABLE"}
        report = subprocess.run(
            [sys.executable, "-m", "synap", "cluster", "status", cluster.url, "--durability", "none"],
            capture_output=True,
            check=False,
        )
        shards = json.loads(report.stdout)
        assert report.returncode == 1
        assert [shard["primary"] for shard in shards["shards"]] == [
            f"127.0.0.1:{node.port}" for node in cluster.nodes[1:]
        ]
        assert f"a primary can't be asked: 127.0.0.1:{cluster.nodes[0].port}" in shards["refusals"][0]
        for node in cluster.nodes[1:]:
            node.kill()
        wait_for(lambda: says(gateway, 503, "degraded"))
        for node in cluster.nodes:
            cluster.spawn(node)
        wait_for(lambda: says(gateway, 200, "ok"))
        log = "".join(gateway.output)
        for node in cluster.nodes:
            assert f"writes to a part of the cluster fail: 127.0.0.1:{node.port}" in log
            assert f"writes to that part of the cluster work again (127.0.0.1:{node.port}" in log


def test_too_few_replicas_are_told(serve: Serve) -> None:
    with ThrowawayCluster(1, replicas=1, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "replicated", "--patience", "1")
        assert says(gateway, 200, "ok")
        cluster.replicas_of(cluster.current_primaries()[0])[0].kill()
        wait_for(lambda: says(gateway, 503, "degraded"))
        assert "too few replicas" in "".join(gateway.output)


def test_a_node_that_refuses_all_writes_is_told(serve: Serve) -> None:
    """It can be reached, and is read from."""
    with ThrowawayCluster(2, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "none", "--patience", "1")
        cluster.nodes[1].ask("CONFIG", "SET", "min-replicas-to-write", "1")
        wait_for(lambda: says(gateway, 200, "degraded"))
        assert f"127.0.0.1:{cluster.nodes[1].port}: " in "".join(gateway.output)
        assert "NOREPLICAS" in "".join(gateway.output)
        cluster.nodes[1].ask("CONFIG", "SET", "min-replicas-to-write", "0")
        wait_for(lambda: says(gateway, 200, "ok"))


def _outcome(client: SynapClient, key: str) -> str:
    try:
        client.kv.set(key, 1)
    except SynapError as error:
        return error.code
    return ""
