"""What whoever operates a service counts on: signals, systemd, its directory, stopping in time."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from synap import SynapClient, SynapError
from synap.host.timing import BOUNDS, EVERY
from synap.storage.commit import LATE, DiskLog
from synap.storage.layout import DATABASE, MARK, WAL
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, dial, wait_for

Serve = Callable[..., ThrowawayServer]


@pytest.mark.skipif(sys.platform == "win32", reason="files in use can't be removed there")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_is_removed_is_noticed(serve: Serve, tmp_path: Path, replaced: bool) -> None:
    service = serve(data=tmp_path / "data")
    http = Http(service)
    assert http.do("queue.publish", queue="q", message=1).status == 200
    shutil.rmtree(tmp_path / "data")
    if replaced:
        (tmp_path / "data").mkdir()
    wait_for(lambda: http.request("GET", "/health").status == 503)
    wait_for(lambda: "while it was in use" in "".join(service.output))
    assert http.do("queue.publish", queue="q", message=2).error["code"] == "SERVICE_UNAVAILABLE"
    assert http.do("queue.stats", queue="q").payload["depth"] == 1
    http.close()
    assert service.stop() != 0
    assert "Traceback" not in "".join(service.output)


@pytest.mark.skipif(sys.platform == "win32", reason="files in use can't be removed there")
@pytest.mark.parametrize("name", [DATABASE, WAL, MARK])
def test_a_file_without_which_nothing_is_kept_is_missed(serve: Serve, tmp_path: Path, name: str) -> None:
    service = serve(data=tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    wait_for(lambda: f"{name} was removed while it was in use" in "".join(service.output))
    with SynapClient(url=service.url, retries=0) as client, pytest.raises(SynapError, match=f"{name} was removed"):
        client.kv.set("a", 1)
    assert service.stop() != 0


@pytest.mark.skipif(sys.platform == "win32", reason="files in use can't be removed there")
def test_a_directory_that_was_just_removed_is_noticed_at_the_end(serve: Serve, tmp_path: Path) -> None:
    service = serve(data=tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    assert service.stop() != 0


def test_a_reader_that_stalls_does_not_make_a_stop_late(serve: Serve) -> None:
    service = serve("--drain-timeout", "1")
    with dial(service) as stalled, SynapClient(url=service.url) as client:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(b"GET /api/v1/stream/subscribe?room=r&from_offset=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(300):
            client.stream.publish("r", "t", "x" * 20_000)
        client.close()
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 20  # the drain's second, and a busy machine


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")
def test_systemd_is_told(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(PATIENCE)
        service = serve(environment={"NOTIFY_SOCKET": path})
        assert channel.recv(100) == b"READY=1"
        assert channel.recv(100) == b"WATCHDOG=1"
        assert service.stop() == 0
        told = [channel.recv(100)]
        while told[-1] != b"STOPPING=1":
            told.append(channel.recv(100))
    assert set(told) <= {b"WATCHDOG=1", b"STOPPING=1"}


def test_the_busiest_queues_and_the_named_ones_keep_their_metrics(serve: Serve) -> None:
    http = Http(serve("--metrics-queue", "quiet-*"))
    http.do("queue.publish", queue="orders", message=1)
    http.do("queue.create", queue="quiet-1")
    commands = [{"command": "queue.create", "payload": {"queue": f"n{number}"}} for number in range(1100)]
    http.post({"type": "batch", "commands": commands})
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    assert 'synap_queue_depth{queue="orders"} 1.0' in scrape
    assert 'synap_queue_depth{queue="quiet-1"} 0.0' in scrape
    assert 'synap_queue_depth{queue="(others)"} 0.0' in scrape
    assert "synap_queues 1102.0" in scrape
    assert re.search(r'synap_queue_oldest_message_age_seconds\{queue="orders"\} \d', scrape)


def test_the_oldest_message_of_queues_that_hardly_anybody_uses_has_an_age(serve: Serve) -> None:
    """It is the one that is forgotten: its queue is not among those used most."""
    http = Http(serve())
    http.do("queue.publish", queue="forgotten", message=1)
    publishes = [{"command": "queue.publish", "payload": {"queue": f"n{n % 1000}", "message": 1}} for n in range(2000)]
    http.post({"type": "batch", "commands": publishes})
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    found = re.findall(r'^synap_queue_oldest_message_age_seconds\{queue="(.*)"\} (\S+)$', scrape, re.MULTILINE)
    ages = {queue: float(age) for queue, age in found}
    assert "forgotten" not in ages
    assert ages.pop("(others)") >= max(ages.values())


@pytest.mark.parametrize(("further", "depth"), [(0, 2.0), (1000, 3.0)], ids=["alone", "with others"])
def test_a_queue_named_as_the_sums_of_others_is_among_them(serve: Serve, further: int, depth: float) -> None:
    http = Http(serve())
    publishes = [{"command": "queue.publish", "payload": {"queue": "(others)", "message": 1}}] * 2
    publishes += [{"command": "queue.publish", "payload": {"queue": f"n{n}", "message": 1}} for n in range(further + 1)]
    http.post({"type": "batch", "commands": publishes})
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    assert re.findall(r'^synap_queue_depth\{queue="\(others\)"\} (\S+)$', scrape, re.MULTILINE) == [str(depth)]
    assert scrape.count('synap_queue_oldest_message_age_seconds{queue="(others)"} ') == 1


DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(synap_\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$", re.MULTILINE)


def listed(*, gateway: bool) -> dict[str, tuple[str, frozenset[str]]]:
    """What docs/metrics.md lists: kind and labels by name."""
    rows = ROW.findall((DOCS / "metrics.md").read_text("utf-8"))
    return {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, text in rows
        if gateway or "Of a gateway only" not in text
    }


def test_a_scrape_has_the_metrics_that_the_page_lists_and_no_others(serve: Serve, tmp_path: Path) -> None:
    service = serve("--memory-limit", "1GiB", data=tmp_path / "data")
    http = Http(service)
    http.do("queue.publish", queue="q", message=1)
    http.do("stream.publish", room="r", event_type="t", data=1)
    http.do("stream.commit", room="r", name="reader", offset=0)
    http.do("kv.get", key=1)
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    kinds = dict(re.findall(r"^# TYPE (synap_\w+) (\w+)$", scrape, re.MULTILINE))
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for name, labels in re.findall(r"^(synap_\w+?)(?:\{(.*)\})? \S+$", scrape, re.MULTILINE):
        family = name if name in kinds else re.sub(r"_(bucket|count|sum)$", "", name)
        kind = "info" if family == "synap_info" else kinds.get(family, "")
        found[family] = (
            kind,
            frozenset(re.findall(r'(\w+)="', labels)) - {"le"} or found.get(family, ("", frozenset()))[1],
        )
    created = {name for name in found if name.endswith("_created")}
    assert {name: shape for name, shape in found.items() if name not in created} == listed(gateway=False)


def test_every_metric_that_a_page_names_is_listed() -> None:
    there = set(listed(gateway=True))
    for page in DOCS.rglob("*.md"):
        if page.name in ("releases.md", "testing.md"):  # the past; fixtures
            continue
        for name in re.findall(r"`(synap_[a-z_]+)(?:\{[^`]*)?`", page.read_text("utf-8")):
            if name in ("synap_client", "synap_server", "synap_url", "synap_test"):
                continue
            assert name in there, f"{page.name} names {name}"


def test_an_everysec_burst_is_handed_over_in_time() -> None:
    """Requests aren't read on while what was answered waits too long."""
    log = DiskLog.__new__(DiskLog)
    log.holds, log.trouble = False, None
    log._submitted, log._written, log._taken = 10, 0, time.monotonic()
    assert not log.stalled
    log._taken -= 2 * LATE
    assert log.stalled
    log._written = 10
    assert not log.stalled


def test_stats_of_very_many_queues_are_those_used_most_and_the_sums_of_the_others(serve: Serve) -> None:
    http = Http(serve())
    commands = [{"command": "queue.create", "payload": {"queue": f"n{number}"}} for number in range(1500)]
    http.post({"type": "batch", "commands": commands})
    for number in range(3):
        http.do("queue.publish", queue=f"n{number}", message=1)
    http.do("queue.publish", queue="n1499", message=1)
    stats = http.do("admin.stats").payload
    http.close()
    assert len(stats["queues"]) == 1000
    assert stats["queues_total"] == 1500
    assert {"n0", "n1", "n2", "n1499"} <= set(stats["queues"])
    assert stats["queues"]["n1499"]["depth"] == 1
    assert stats["queues_others"]["depth"] == stats["queues_others"]["published_total"] == 0


def test_full_collections_of_garbage_are_not_left_to_chance() -> None:
    """In a process of its own: what is set is the interpreter's."""
    program = (
        "import gc; from synap.server.garbage import Collections, NEVER; one = Collections(); one.hold(); "
        "assert not one.on or not gc.isenabled(); one.begin(); one.look(0); assert gc.isenabled(); "
        "assert not one.on or (gc.get_threshold()[2] == NEVER and gc.get_freeze_count() > 1000); full = []; "
        "gc.callbacks.append(lambda phase, about: full.append(about) if about['generation'] == 2 else None); "
        "kept = [[number] for number in range(500_000)]; assert not full, full"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


def test_durations_are_counted_by_command_and_lane(serve: Serve, tmp_path: Path) -> None:
    server = serve(data=tmp_path / "data")
    with SynapClient(url=server.url) as client:
        for number in range(EVERY + 1):
            client.kv.set("k", number)
        assert client.queue.consume("q", timeout=0.2) is None  # a wait is no duration
    with SynapClient(url=server.url, transport="websocket") as client:
        client.kv.get("k")
    http = Http(server)
    http.do("kv.incr", key="n")
    scrape = http.request("GET", "/metrics").body.decode()
    http.close()
    counts = dict(re.findall(r"synap_request_duration_seconds_count\{(.*)\} (\S+)", scrape))
    assert counts['command="kv.set",lane="native"'] == "2.0"
    assert counts['command="kv.get",lane="websocket"'] == "1.0"
    assert counts['command="kv.incr",lane="http"'] == "1.0"
    assert not any("queue.consume" in labels for labels in counts)
    buckets = re.findall(r'_bucket\{command="kv.set",lane="native",le="([^"]+)"\} (\S+)', scrape)
    assert [float(bound) for bound, _ in buckets] == [*BOUNDS, math.inf]
    assert buckets[-1][1] == "2.0"
    (seconds,) = re.findall(r'_seconds_sum\{command="kv.set",lane="native"\} (\S+)', scrape)
    assert 0 < float(seconds) < 60
