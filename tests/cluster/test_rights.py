"""What a user of a cluster must be allowed: with the rights that the docs print everything works, without one of them
the error says so, with all of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from synap import SynapClient, SynapError
from synap.cluster.topology import ACL
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import PATIENCE

RIGHTS = ACL.partition("synap ")[2].replace(">PASSWORD", ">secret").split()
DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture(scope="module")
def pair() -> Iterator[ThrowawayCluster]:
    with ThrowawayCluster(1, 1) as cluster:
        yield cluster


def user(cluster: ThrowawayCluster, rights: List[str]) -> str:
    """Make a user on all nodes; returns the URL with it."""
    for node in cluster.members:
        node.ask("ACL", "SETUSER", "least", "reset", *rights)
    return cluster.url.replace("valkey://", "valkey://least:secret@")


def use(url: str, **options: Any) -> None:
    """Do a bit of everything."""
    with SynapClient(url=url, **options) as client:
        assert client.kv.set("k", 1, ttl=60).success
        assert client.kv.incr("n") >= 1
        client.queue.publish("q", 1)
        message = client.queue.consume("q", timeout=PATIENCE)
        assert message is not None
        client.queue.ack("q", message.message_id)
        assert client.queue.consume("nothing", timeout=0.05) is None
        with client.stream.subscribe("r", replay=True) as events:
            client.stream.publish("r", "e", 1)
            assert next(iter(events)).data == 1
        with client.pubsub.subscribe(["t"]) as messages:
            client.pubsub.publish("t", 1)
            assert next(iter(messages)).message == 1
        with client.lock("l", ttl=600):
            pass
        assert client.stats()["keys"] >= 0


def test_the_rights_that_the_docs_print_are_those_that_errors_print() -> None:
    assert ACL in DOCS.read_text(encoding="utf-8")


def test_with_these_rights_everything_works(pair: ThrowawayCluster) -> None:
    use(user(pair, RIGHTS))


def test_a_gateway_works_with_these_rights(pair: ThrowawayCluster, tmp_path: Path) -> None:
    user(pair, RIGHTS)
    secret = tmp_path / "password"
    secret.write_text("secret\n", encoding="utf-8")
    secret.chmod(0o600)
    arguments = ["--engine", pair.url, "--engine-user", "least", "--engine-password-file", str(secret)]
    with ThrowawayServer(arguments=arguments) as gateway:
        use(gateway.url)


SPARE = {"+config|get", "+wait"}
"""The one may be lacking; the other is part of `+@connection` on some servers."""


@pytest.mark.parametrize("lacking", [right for right in RIGHTS if right[0] in "~&+" and right not in SPARE])
def test_a_right_that_is_lacking_is_told_with_all_that_are_needed(pair: ThrowawayCluster, lacking: str) -> None:
    url = user(pair, [right for right in RIGHTS if right != lacking])
    pair.members[0].ask("FUNCTION", "FLUSH")  # they are loaded anew, and what they ask a node once is asked again
    with pytest.raises(SynapError) as caught:
        use(url, retries=0, timeout=40)
    assert (caught.value.code, ACL in caught.value.message) == ("UNAUTHORIZED", True), caught.value
    assert "secret" not in caught.value.message


def test_what_a_function_had_done_before_a_right_was_lacking_may_have_happened(pair: ThrowawayCluster) -> None:
    queue = "told elsewhere"
    silent = user(pair, [right for right in RIGHTS if right[0] != "&"]).replace("127.0.0.1", "localhost")
    with SynapClient(url=pair.url) as other, SynapClient(url=silent, retries=0) as client, ThreadPoolExecutor() as pool:
        other.queue.create(queue)
        waits = pool.submit(other.queue.consume, queue, timeout=PATIENCE)
        while not other.queue.stats(queue).consumers:
            time.sleep(0.01)
        with pytest.raises(SynapError) as caught:
            client.queue.publish(queue, 1)
        assert (caught.value.code, caught.value.may_have_happened) == ("UNAUTHORIZED", True)
        message = waits.result()
        assert message is not None  # it has


def test_of_another_space_its_own_keys_and_channels_are_told(pair: ThrowawayCluster) -> None:
    with pytest.raises(SynapError) as caught:
        use(user(pair, RIGHTS), engine={"space": "shop"}, retries=0)
    rights = caught.value.message.partition("SETUSER synap ")[2].replace(">PASSWORD", ">secret").split()
    assert {"~shop:*", "&shop:*"} <= set(rights)
    use(user(pair, rights), engine={"space": "shop"})


def test_settings_that_are_hidden_are_taken_for_right_unless_all_must_be_on_disk(pair: ThrowawayCluster) -> None:
    url = user(pair, [right for right in RIGHTS if right != "+config|get"])
    use(url)
    with pytest.raises(SynapError, match="hides its settings, so 'synced' can't be checked"):
        use(url, engine={"durability": "synced"}, retries=0)


def test_a_library_that_an_admin_has_loaded_need_not_be_loaded(pair: ThrowawayCluster) -> None:
    use(pair.url)
    url = user(pair, [*RIGHTS, "-function|load"])
    use(url)
    pair.members[0].ask("FUNCTION", "FLUSH")
    with pytest.raises(SynapError, match=r"no permissions to run the 'function\|load' command") as caught:
        use(url, retries=0)
    assert caught.value.code == "UNAUTHORIZED"


def test_a_password_that_is_changed_while_clients_run_is_told(pair: ThrowawayCluster) -> None:
    with SynapClient(url=user(pair, RIGHTS), retries=0) as client:
        assert client.kv.set("k", 1).success
        for node in pair.members:
            node.ask("ACL", "SETUSER", "least", "resetpass", ">other")
            node.ask("CLIENT", "KILL", "USER", "least")
        with pytest.raises(SynapError) as caught:
            client.kv.set("k", 2)
        assert (caught.value.code, ACL in caught.value.message) == ("UNAUTHORIZED", True), caught.value
