"""What a gateway says of itself, and logs, while nodes of its cluster don't serve."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Tuple

from synap import SynapClient, SynapError
from synap.cluster.condition import Condition
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
        assert "has 0 of the 1 replicas that must confirm a write" in "".join(gateway.output)


def test_a_moment_without_a_node_is_no_trouble() -> None:
    """As long as calls are tried, which a failover needs."""
    judged: List[Any] = []
    condition = Condition(_link(patience=10.0), lambda trouble, partial: judged.append((trouble, partial)))
    for now, why, code in (
        (0.0, {None: "some slots have no node"}, None),
        (9.0, {None: "some slots have no node"}, None),
        (9.5, {}, None),
        (10.0, {None: "some slots have no node"}, None),
        (20.0, {None: "some slots have no node"}, "SERVICE_UNAVAILABLE"),
        (21.0, {}, None),
    ):
        condition._link.loop.now = now  # type: ignore[attr-defined]
        condition._note(why, 2)  # type: ignore[arg-type]
        trouble, partial = judged[-1]
        assert (None if trouble is None else trouble.code) == code
        assert partial


def _link(patience: float) -> Any:
    class Loop:
        now = 0.0

        def time(self) -> float:
            return self.now

    class Options:
        pass

    class Link:
        loop = Loop()
        options = Options()

    Link.options.patience = patience  # type: ignore[attr-defined]
    return Link()


def _outcome(client: SynapClient, key: str) -> str:
    try:
        client.kv.set(key, 1)
    except SynapError as error:
        return error.code
    return ""
