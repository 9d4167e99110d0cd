"""What is said of a cluster before it is used, by `synap cluster` and when a client opens it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List, Tuple

import libfaketime  # type: ignore[import-untyped]  # has no types
import pytest

from synap import SynapClient
from synap.cluster import functions
from synap.cluster.options import EngineOptions
from synap.cluster.places import Places
from synap.errors import SynapError
from synap.testing.cluster import ClusterNode, ThrowawayCluster, valkey_binary
from synap.testing.ports import ReservedPort
from synap.testing.reaper import kill_at_exit
from tests.helpers.patience import PATIENCE


def cluster_command(*arguments: str) -> Tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "synap", "cluster", *arguments],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")},
        timeout=PATIENCE,
    )
    return done.returncode, json.loads(done.stdout)


def test_status_says_what_a_service_would_refuse_and_init_loads_the_library(one_node: ThrowawayCluster) -> None:
    code, status = cluster_command("status", one_node.url)
    assert code == 1
    assert any("needs 1" in sentence and "--durability none" in sentence for sentence in status["refusals"])
    assert any("appendonly" in sentence for sentence in status["warnings"])
    assert [shard["slots"] for shard in status["shards"]] == [16384]
    assert cluster_command("status", one_node.url, "--durability", "none")[0] == 0
    assert cluster_command("init", one_node.url) == (0, {"library": functions.LIBRARY})


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({}, ["replicas", "--durability none"]),
        ({"durability": "synced", "replicas": 1}, ["appendfsync always"]),
        ({"durability": "sure"}, ["'none' or 'replicated' or 'synced'"]),
        ({"durabilty": "none"}, ["durabilty"]),
        ({"durability": "none", "partitions": 100}, ["power of two"]),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_sentence(
    one_node: ThrowawayCluster, engine: Any, words: List[str]
) -> None:
    with SynapClient(url=one_node.url, engine=engine, retries=0) as client, pytest.raises(SynapError) as caught:
        client.kv.set("a", 1)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    ("policy", "lost"), [("allkeys-lru", "queues and rooms"), ("volatile-ttl", "what requests were answered")]
)
def test_a_policy_that_deletes_is_refused_unless_allowed(one_node: ThrowawayCluster, policy: str, lost: str) -> None:
    one_node.nodes[0].ask("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        none = {"durability": "none", "space": "policy"}
        with SynapClient(url=one_node.url, engine=none, retries=0) as client:
            with pytest.raises(SynapError, match=f"deletes {lost}.*--allow-eviction"):
                client.kv.set("a", 1)
        with SynapClient(url=one_node.url, engine={**none, "allow_eviction": True}) as client:
            assert client.kv.set("a", 1)
    finally:
        one_node.nodes[0].ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_partitions_are_fixed_at_the_first_start(one_node: ThrowawayCluster) -> None:
    first = {"durability": "none", "space": "fixed", "partitions": 16}
    with SynapClient(url=one_node.url, engine=first) as client:
        assert client.kv.set("a", 1)
    with SynapClient(url=one_node.url, engine={"durability": "none", "space": "fixed"}) as client:
        assert client.kv.get("a").value == 1
    with SynapClient(url=one_node.url, engine={**first, "partitions": 32}, retries=0) as client:
        with pytest.raises(SynapError, match="has 16 partitions"):
            client.kv.get("a")


def test_a_wrong_password_is_told_with_what_the_user_needs_and_never_shown(one_node: ThrowawayCluster) -> None:
    user = ("on", ">right", "~syn:*", "&syn:*", "+@all")
    one_node.nodes[0].ask("ACL", "SETUSER", "gate", *user)
    place = one_node.url.partition("://")[2]
    with SynapClient(url=f"valkey://gate:wr0ng@{place}", engine={"durability": "none"}, retries=0) as client:
        with pytest.raises(SynapError) as caught:
            client.kv.get("a")
    assert "ACL SETUSER" in caught.value.message
    assert "wr0ng" not in repr(caught.value)
    with SynapClient(url=f"valkey://gate:right@{place}", engine={"durability": "none"}) as client:
        assert client.kv.set("a", 1)


def test_a_client_that_opens_while_a_replica_comes_back_waits_for_it() -> None:
    with ThrowawayCluster(1, 1, node_timeout=240_000) as cluster:
        primary, replica = cluster.members
        replica.kill()
        with ThreadPoolExecutor() as pool:
            engine = {"durability": "replicated", "patience": PATIENCE}
            opened = pool.submit(SynapClient, url=cluster.url, engine=engine)
            done = pool.submit(lambda: opened.result().kv.set("k", 1))
            while b"cmdstat_info" not in primary.ask("INFO", "commandstats"):
                time.sleep(0.01)  # it has looked, or will, at a primary without its replica
            cluster.spawn(replica)
            assert done.result(PATIENCE).success
        opened.result().close()


def test_a_client_whose_first_look_falls_when_a_replica_has_not_synchronized_yet_waits_for_it() -> None:
    with ThrowawayCluster(1, 1, node_timeout=240_000) as cluster:
        primary, replica = cluster.members
        replica.kill()
        primary.ask("ACL", "SETUSER", "default", "-psync", "-sync")
        cluster.spawn(replica)
        while len(primary.ask("CLUSTER", "SLOTS")[0]) > 3:  # names the replica, until that has said that it has nothing
            time.sleep(0.01)
        assert b"connected_slaves:0" in primary.ask("INFO", "replication")
        primary.ask("CONFIG", "RESETSTAT")
        with ThreadPoolExecutor() as pool:
            engine = {"durability": "replicated", "patience": PATIENCE}
            opened = pool.submit(SynapClient, url=f"valkey://127.0.0.1:{primary.port}", engine=engine)
            done = pool.submit(lambda: opened.result().kv.set("k", 1))
            while b"cmdstat_config|get" not in primary.ask("INFO", "commandstats"):
                time.sleep(0.01)  # it has looked
            primary.ask("ACL", "SETUSER", "default", "+psync", "+sync")
            assert done.result(PATIENCE).success
        opened.result().close()


def test_a_file_that_may_lack_what_was_answered_last_is_told_once_with_what_to_change() -> None:
    with ThrowawayCluster(2, 1, persistent=True) as cluster:

        def told(durability: str) -> List[str]:
            code, status = cluster_command("status", cluster.url, "--durability", durability)
            assert code == 0, status
            return [sentence for sentence in status["warnings"] if "appendfsync" in sentence]

        [sentence] = told("replicated")
        assert all(word in sentence for word in ("appendfsync always", "RestartSec", "after the failover"))
        assert all(str(node.port) in sentence for node in cluster.members[:2])
        assert not told("none")
        for node in cluster.members:
            node.ask("CONFIG", "SET", "appendfsync", "always")
        assert not told("replicated")


def test_a_replica_has_to_be_as_the_primary_that_it_may_become() -> None:
    with ThrowawayCluster(1, 1, persistent=True, appendfsync="always") as cluster:
        replica = cluster.members[1]

        def told(kind: str) -> List[str]:
            status = cluster_command("status", cluster.url, "--durability", "synced")[1]
            return [sentence for sentence in status[kind] if str(replica.port) in sentence]

        assert (told("refusals"), told("warnings")) == ([], [])
        for name, value, usual in (
            ("appendonly", "no", "yes"),
            ("appendfsync", "everysec", "always"),
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ):
            replica.ask("CONFIG", "SET", name, value)
            [sentence] = told("refusals")
            assert name in sentence
            replica.ask("CONFIG", "SET", name, usual)
        replica.ask("ACL", "SETUSER", "default", "-info")
        [sentence] = told("warnings")
        assert all(word in sentence for word in ("a replica can't be asked", "'info'", "ACL SETUSER"))


def take_slots_away(owner: ClusterNode, *nodes: ClusterNode) -> None:
    """Let nobody have the upper half of the slots, whatever the nodes tell each other of their owner meanwhile."""
    owner.ask("CLUSTER", "DELSLOTSRANGE", 8192, 16383)
    while any(b"cluster_slots_assigned:8192" not in node.ask("CLUSTER", "INFO") for node in nodes):
        for node in nodes:
            if b"cluster_slots_assigned:16384" in node.ask("CLUSTER", "INFO"):
                node.ask("CLUSTER", "DELSLOTSRANGE", 8192, 16383)
        time.sleep(0.01)


def test_slots_that_nobody_has_and_replicas_that_are_away_are_told() -> None:
    with ThrowawayCluster(2, 1) as cluster:
        away = cluster.replicas_of(cluster.members[0])[0]
        away.kill()
        take_slots_away(cluster.members[1], *(node for node in cluster.members if node is not away))
        while b"connected_slaves:0" not in cluster.members[0].ask("INFO", "replication"):
            time.sleep(0.01)
        code, status = cluster_command("status", f"valkey://127.0.0.1:{cluster.members[0].port}")
        assert code == 1, "of the primaries that have slots, none has its replica"
        assert any("some slots have no node" in sentence for sentence in status["warnings"]), status


def test_one_replica_that_is_away_is_no_reason_to_refuse() -> None:
    with ThrowawayCluster(2, 1, node_timeout=40_000) as cluster:
        cluster.replicas_of(cluster.members[0])[0].kill()
        while b"connected_slaves:0" not in cluster.members[0].ask("INFO", "replication"):
            time.sleep(0.01)
        code, status = cluster_command("status", cluster.url)
        assert (code, status["refusals"]) == (0, [])
        assert any("writes there wait until they are back" in sentence for sentence in status["warnings"]), status


def test_libraries_of_other_releases_go_when_that_is_asked_for(one_node: ThrowawayCluster) -> None:
    node = one_node.nodes[0]
    node.ask("FUNCTION", "LOAD", "#!lua name=synap_0ld\nredis.register_function('f0ld', function() return 1 end)")
    node.ask("FUNCTION", "LOAD", "#!lua name=theirs\nredis.register_function('theirs', function() return 1 end)")

    def libraries() -> List[bytes]:
        return [library[1] for library in node.ask("FUNCTION", "LIST")]

    assert cluster_command("init", one_node.url)[0] == 0
    assert {b"synap_0ld", b"theirs", functions.LIBRARY.encode()} <= set(libraries())
    assert cluster_command("init", one_node.url, "--prune")[0] == 0
    assert b"synap_0ld" not in libraries()
    assert {b"theirs", functions.LIBRARY.encode()} <= set(libraries())
    node.ask("FUNCTION", "DELETE", "theirs")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_single_server_is_told_what_it_lacks(tmp_path: Path) -> None:
    reserved = ReservedPort()
    port = reserved.number
    arguments = [valkey_binary(), "--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as server:
        kill_at_exit(server.pid)
        try:
            end = time.monotonic() + PATIENCE
            while not _listens(port) and time.monotonic() < end:
                time.sleep(0.02)
            with SynapClient(url=f"valkey://127.0.0.1:{port}", retries=0) as client:
                with pytest.raises(SynapError, match="is a single server, no cluster: start it with cluster-enabled"):
                    client.kv.get("a")
        finally:
            server.kill()


def test_what_is_no_node_at_all_is_told(synap_url: str) -> None:
    url = synap_url.replace("http://", "valkey://")
    with SynapClient(url=url, retries=0) as client, pytest.raises(SynapError) as caught:
        client.kv.get("a")
    assert caught.value.code == "SERVICE_UNAVAILABLE"
    assert "doesn't speak the protocol of Valkey and Redis" in caught.value.message


def test_keys_of_another_shape_are_left_alone(one_node: ThrowawayCluster) -> None:
    engine = {"durability": "none", "space": "shape", "partitions": 16}
    with SynapClient(url=one_node.url, engine=engine) as client:
        assert client.kv.set("a", 1).success
    one_node.nodes[0].ask("HSET", Places(16, "shape").bases[0] + b"meta", "shape", "9")
    with SynapClient(url=one_node.url, engine={**engine, "patience": 11}, retries=0) as client:
        with pytest.raises(SynapError, match=f"have shape 9 and this release knows {functions.SHAPE}"):
            client.kv.set("a", 2)


@pytest.mark.parametrize("replicas", [0, 1])
def test_clocks_that_are_apart_are_told(monkeypatch: pytest.MonkeyPatch, replicas: int) -> None:
    with ThrowawayCluster(2 - replicas, replicas) as cluster:
        ahead = cluster.nodes[1]
        ahead.kill()
        with monkeypatch.context() as patch:
            for name, value in {**libfaketime.get_reload_information()[1], "FAKETIME": "+7000s"}.items():
                patch.setenv(name, value)
            cluster.spawn(ahead)
        cluster.wait()
        code, status = cluster_command("status", cluster.url, "--durability", "none")
        assert code == 0
        (told,) = (sentence for sentence in status["warnings"] if "clocks" in sentence)
        assert re.search(r"the clocks of the nodes are (69|70)\d\d\.\d s apart", told), told


def test_an_acl_user_with_the_rights_that_the_docs_print_is_enough(one_node: ThrowawayCluster) -> None:
    from synap.cluster.topology import ACL

    rights = ACL.partition("synap ")[2].replace(">PASSWORD", ">secret").split()
    one_node.nodes[0].ask("ACL", "SETUSER", "least", *rights)
    place = one_node.url.partition("://")[2]
    with SynapClient(url=f"valkey://least:secret@{place}", engine={"durability": "none"}) as client:
        client.queue.publish("q", 1)
        message = client.queue.consume("q", timeout=PATIENCE)
        assert message is not None
        client.queue.ack("q", message.message_id)
        with client.stream.subscribe("r", replay=True) as events:
            client.stream.publish("r", "e", 1)
            assert next(iter(events)).data == 1
        assert client.stats()["keys"] >= 0


def test_options_come_from_the_url_what_is_given_and_the_environment() -> None:
    options = EngineOptions.read(
        "valkey://me:s3cret@[::1]:7000,b", {"replicas": 2}, {"SYNAP_DURABILITY": "synced", "SYNAP_REPLICAS": "1"}
    )
    assert [str(seed) for seed in options.seeds] == ["[::1]:7000", "b:6379"]
    assert (options.user, options.password, options.durability, options.replicas) == ("me", "s3cret", "synced", 2)
    assert "s3cret" not in repr(options)
