"""A service on a disk that is full: it reads, starts, and does what makes room; with room, it does everything again."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synap import SynapClient
from synap.errors import SynapError
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import wait_for
from tests.helpers.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]

BODY = "v" * 200_000
RESERVE = 2 * 1024 * 1024


@pytest.fixture
def server(small_disk: SmallDisk) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(
        data=small_disk.data,
        arguments=["--disk-reserve", str(RESERVE), "--snapshot-size", "64MiB"],
        environment=small_disk.environment,
    ) as server:
        yield server


@pytest.fixture
def client(server: ThrowawayServer) -> Iterator[SynapClient]:
    with SynapClient(url=server.url, retries=0, timeout=PATIENCE) as client:
        yield client


def fill(client: SynapClient, disk: SmallDisk, *, keys: bool = False) -> int:
    """Publish messages, or set keys, until the disk is full; returns how many were taken."""

    def put(number: int) -> None:
        if keys:
            client.kv.set(f"big{number}", BODY)
        else:
            client.queue.publish("q", {"number": number, "body": BODY})

    count = 40
    for number in range(count):
        put(number)
    disk.fold()
    disk.resize(disk.used() + len(BODY))
    while True:
        try:
            put(count)
        except SynapError as refused:
            error = refused
            break
        count += 1
    assert (error.code, error.details["reason"]) == ("SERVICE_UNAVAILABLE", "disk_full")
    return count


def health(server: ThrowawayServer) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(server.url + "/health", timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def short(client: SynapClient) -> None:
    """Wait until what makes room is done."""

    def done() -> bool:
        try:
            client.kv.delete("nothing")
        except SynapError as error:
            if error.details.get("reason") != "disk_full":
                raise
            return False
        return True

    wait_for(done)


def roomy(server: ThrowawayServer) -> None:
    wait_for(lambda: health(server)[0] == 200)


def test_a_full_disk_refuses_what_grows_and_says_what_to_do(
    server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk
) -> None:
    client.kv.set("kept", 1)
    fill(client, small_disk)
    short(client)
    for grow in (
        lambda: client.kv.set("k", 1),
        lambda: client.queue.publish("q", 1),
        lambda: client.stream.publish("r", "e", 1),
        lambda: client.batch([{"command": "kv.set", "payload": {"key": "k", "value": 1}}]),
    ):
        with pytest.raises(SynapError, match=r"disk is full.*purge.*free space") as caught:
            grow()
        assert caught.value.details["reason"] == "disk_full"
        assert caught.value.may_have_happened is False
    assert client.kv.get("kept").value == 1
    status, figures = health(server)
    assert (status, figures["status"]) == (503, "degraded")
    assert "disk is full" in figures["reason"]


def test_consumers_make_room_and_writes_go_on_by_themselves(
    server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk
) -> None:
    taken = fill(client, small_disk)
    short(client)
    got = []
    with SynapClient(url=server.url) as consumer:  # retries, as consumers do
        while True:
            message = consumer.queue.consume("q")
            if message is None:
                break
            got.append(message.message["number"])
            consumer.queue.ack("q", message.message_id)
    assert got == list(range(taken))
    roomy(server)
    assert os.path.getsize(os.path.join(server.data or "", "synap.reserve")) == RESERVE
    client.queue.publish("q", "after")
    server.restart()
    with SynapClient(url=server.url) as again:
        assert [one.message for one in again.queue.consume_many(["q"], max=10)] == ["after"]


@pytest.mark.parametrize("way", ["purge", "delete", "clear", "batch"])
def test_each_way_to_make_room_does(
    server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk, way: str
) -> None:
    client.kv.set("kept", BODY)
    taken = fill(client, small_disk, keys=way in ("clear", "batch"))
    short(client)
    if way == "purge":
        assert client.queue.purge("q") == taken
    elif way == "delete":
        assert client.queue.delete("q")
    elif way == "clear":
        assert client.kv.clear("big") == taken
    else:
        away = [{"command": "kv.del", "payload": {"keys": [f"big{number}"]}} for number in range(taken)]
        client.batch(away[:10])
        client.batch(away[10:], atomic=True)
    roomy(server)
    client.kv.set("after", 1)


def test_a_lease_that_runs_out_gives_its_message_back_on_a_full_disk(
    client: SynapClient, small_disk: SmallDisk
) -> None:
    taken = fill(client, small_disk)
    short(client)
    first = client.queue.consume("q", ack_deadline=0.2)
    assert first is not None
    assert first.message["number"] == 0
    wait_for(lambda: client.queue.stats("q").pending == 0)
    again = client.queue.consume("q")
    assert again is not None
    assert (again.message["number"], again.retry_count) == (0, 1)
    client.queue.nack("q", again.message_id)
    assert client.queue.stats("q").depth == taken


def test_killed_on_a_full_disk_it_starts_reads_and_makes_room(
    server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk
) -> None:
    client.kv.set("kept", 1)
    taken = fill(client, small_disk)
    for _ in range(2):
        server.restart()
        with SynapClient(url=server.url, retries=0, timeout=PATIENCE) as again:
            assert again.kv.get("kept").value == 1
            assert again.queue.stats("q").depth == taken
            assert [one["number"] for one in (m.message for m in again.queue.peek("q").messages)][:3] == [0, 1, 2]
    with SynapClient(url=server.url, retries=0, timeout=PATIENCE) as again:
        short(again)
        again.queue.purge("q")
        roomy(server)
        again.kv.set("after", 1)
        server.restart()
    with SynapClient(url=server.url, retries=0, timeout=PATIENCE) as again:
        assert (again.kv.get("kept").value, again.kv.get("after").value) == (1, 1)
        assert again.queue.stats("q").depth == 0


def test_without_the_reserve_it_starts_for_reading_once_there_is_a_little_space(
    server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk
) -> None:
    client.kv.set("kept", 1)
    fill(client, small_disk)
    server.stop()
    Path(small_disk.data, "synap.reserve").unlink()
    small_disk.stuff()
    if small_disk.mounted:  # SQLite's own need of space isn't pretended
        with pytest.raises(RuntimeError, match=r"disk is full, and 64 KiB are needed to read"):
            server.start()
    small_disk.resize(small_disk.used() + 80 * 1024)
    server.start()
    with SynapClient(url=server.url, retries=0, timeout=PATIENCE) as again:
        assert again.kv.get("kept").value == 1
        assert health(server)[0] == 503
        with pytest.raises(SynapError, match="disk is full"):
            again.kv.set("k", 1)
        small_disk.resize(256 * 1024 * 1024)
        roomy(server)
        again.kv.set("k", 1)


def test_space_that_comes_back_is_noticed(server: ThrowawayServer, client: SynapClient, small_disk: SmallDisk) -> None:
    taken = fill(client, small_disk)
    small_disk.resize(256 * 1024 * 1024)
    roomy(server)
    assert os.path.getsize(os.path.join(small_disk.data, "synap.reserve")) == RESERVE
    assert client.queue.publish("q", 1).position == taken + 1
