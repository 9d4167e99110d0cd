"""What a gateway says of itself, and logs, while nodes of its cluster don't serve."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Tuple, cast

import pytest

from synap import SynapClient, SynapError
from synap.cluster.condition import Condition
from synap.cluster.link import Link
from synap.cluster.options import Address
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.test_gateway import scrape
from tests.helpers.patience import PATIENCE, STEADY
from tests.helpers.raw import wait_for

Serve = Callable[..., ThrowawayServer]


def health(gateway: ThrowawayServer) -> Tuple[int, Dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{gateway.url}/health", timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def wait_until_it_says(gateway: ThrowawayServer, status: int, word: str, reason: str = "", logs: str = "") -> None:
    """Wait for a health, the metric that says the same, and a word in the log.

    Whatever it says meanwhile: with that little patience, nodes that get no CPU for a second are told, too.
    """
    metric = "synap_up_for_writes 1.0" if word == "ok" else "synap_up_for_writes 0.0"

    def says() -> bool:
        code, figures = health(gateway)
        return (
            (code, figures["status"]) == (status, word)
            and reason in figures.get("reason", "")
            and metric in scrape(gateway)
            and logs in "".join(gateway.output)
        )

    wait_for(says)


def test_nodes_that_are_gone_are_told_and_that_they_are_back(serve: Serve) -> None:
    with ThrowawayCluster(3, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "none", "--patience", "1")
        wait_until_it_says(gateway, 200, "ok")
        cluster.nodes[0].kill()
        reason = "1 of the cluster's 3 primaries can't take writes; the service's log says why"
        wait_until_it_says(gateway, 200, "degraded", reason)  # the others serve, and so would no other gateway do more
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
        wait_until_it_says(gateway, 503, "degraded")
        for node in cluster.nodes:
            cluster.spawn(node)
        for node in cluster.nodes:
            wait_until_it_says(gateway, 200, "ok", logs=f"writes to a part of the cluster fail: 127.0.0.1:{node.port}")
            again = f"writes to that part of the cluster work again (127.0.0.1:{node.port}"
            wait_until_it_says(gateway, 200, "ok", logs=again)


def test_too_few_replicas_are_told(serve: Serve) -> None:
    with ThrowawayCluster(1, replicas=1, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "replicated", "--patience", "1")
        wait_until_it_says(gateway, 200, "ok")
        cluster.replicas_of(cluster.current_primaries()[0])[0].kill()
        wait_until_it_says(gateway, 503, "degraded", logs="too few replicas")


def test_a_node_that_refuses_all_writes_is_told(serve: Serve) -> None:
    """It can be reached, and is read from."""
    with ThrowawayCluster(2, node_timeout=STEADY) as cluster:
        gateway = serve("--engine", cluster.url, "--durability", "none", "--patience", "1")
        cluster.nodes[1].ask("CONFIG", "SET", "min-replicas-to-write", "1")
        wait_until_it_says(gateway, 200, "degraded", logs=f"fail: 127.0.0.1:{cluster.nodes[1].port}: ")
        wait_until_it_says(gateway, 200, "degraded", logs="NOREPLICAS")
        cluster.nodes[1].ask("CONFIG", "SET", "min-replicas-to-write", "0")
        wait_until_it_says(gateway, 200, "ok")


def test_each_reason_of_a_node_s_trouble_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Only the first was: that it was slow, while now it refuses."""
    told: List[Any] = []
    condition = Condition(cast(Link, None), lambda trouble, others: told.append((trouble is not None, others)))
    node = Address("127.0.0.1", 1)
    for text in ("slow", "refuses", "slow", "", "slow"):
        condition._note({node: text} if text else {}, 2)
    fails, again = "writes to a part of the cluster fail: ", "writes to that part of the cluster work again "
    assert caplog.messages == [f"{fails}slow", f"{fails}refuses", f"{again}(refuses)", f"{fails}slow"]
    assert told == [(True, True)] * 3 + [(False, True)] + [(True, True)]


def _outcome(client: SynapClient, key: str) -> str:
    try:
        client.kv.set(key, 1)
    except SynapError as error:
        return error.code
    return ""
