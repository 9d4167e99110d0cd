"""Starting, stopping, and the pages for those who run a service."""

from __future__ import annotations

import errno
import json
import os
import select
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from synap.commands import STREAM_SUBSCRIBE
from synap.server import sockets
from synap.server.settings import OPTIONS, ServerConfig
from synap.storage import backup, open_host
from synap.testing.server import ThrowawayServer
from synap.wire.frames import Kind
from synap.wire.handshake import Hello, greet
from tests.helpers.frames import FrameReader
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import Http, Native, dial, read_all, read_head, request, wait_for
from tests.helpers.secure_websocket import ask_over_websocket

Serve = Callable[..., ThrowawayServer]


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a service that should end by itself."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    command = [sys.executable, "-m", "synap", "serve", *arguments]
    return subprocess.run(
        command, env={**environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


# -------------------------------------------------------------------------------------- starting


def test_it_says_where_it_listens_and_how_to_try_it(server: ThrowawayServer) -> None:
    wait_for(lambda: any("in a browser" in line for line in server.output))
    text = "".join(server.output)
    assert text.startswith(f"listening on http://127.0.0.1:{server.port}\n")
    assert f"curl http://127.0.0.1:{server.port}/api/v1/command" in text
    assert "SynapClient" in text
    assert f"http://127.0.0.1:{server.port}/ in a browser" in text


def test_what_it_says_to_try_works_with_a_key_in_the_environment(serve: Serve) -> None:
    key = {"SYNAP_API_KEY": "long-enough-for-no-warning"}
    server = serve(environment=key)
    wait_for(lambda: any("in a browser" in line for line in server.output))
    (line,) = (line.strip() for line in server.output if "SynapClient" in line)
    tried = shlex.split(line)
    done = subprocess.run(
        [sys.executable, *tried[1:]],
        env={**os.environ, **key},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "found=False" in done.stdout


def test_a_port_in_use_is_said_plainly(server: ThrowawayServer) -> None:
    ended = start("--memory", "--port", str(server.port))
    assert ended.returncode == 5
    assert f"port {server.port} is in use" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_not_this_machine_s_is_said_plainly() -> None:
    ended = start("--memory", "--port", "0", "--host", "192.0.2.1", "--insecure-no-auth")
    assert ended.returncode == 5
    assert "can't listen on 192.0.2.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_directory_in_use_is_said_plainly(serve: Serve, tmp_path: Path) -> None:
    first = serve(data=tmp_path / "data")
    ended = start("--port", "0", "--data", str(tmp_path / "data"))
    assert ended.returncode == 5
    assert str(first.pid) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_typo_in_the_file_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "synap.toml").write_text("prot = 15501\n")
    ended = start("--config", str(tmp_path / "synap.toml"))
    assert ended.returncode == 2
    assert "'prot'" in ended.stderr
    assert "'port'" in ended.stderr


def test_help_shows_every_option_as_it_is_described() -> None:
    ended = start("--help")
    assert ended.returncode == 0, ended.stderr
    shown = "".join(ended.stdout.split())  # lines are broken at blanks and hyphens
    for option in OPTIONS:
        assert option.on_command_line in shown
        assert "".join(option.doc.split()) in shown


def test_another_machine_s_address_without_a_key_is_refused() -> None:
    ended = start("--memory", "--host", "0.0.0.0", "--port", "0")
    assert ended.returncode == 2
    assert "--insecure-no-auth" in ended.stderr


# -------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kept", [False, True])
def test_a_signal_drains_waiting_consumers_and_ends_with_0(
    serve: Serve, tmp_path: Path, number: signal.Signals, kept: bool
) -> None:
    server = serve(data=tmp_path / "data") if kept else serve()
    http, native, watcher = Http(server), Native(server), Native(server)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(http.do("queue.consume", queue="q", timeout=60)))
    waiting.start()
    native.send(request(1, "queue.consume", queue="q", timeout=60))
    consumers = 0
    tries = 0
    while consumers < 2:
        tries += 1
        watcher.send(request(tries, "queue.stats", queue="q"))
        answer = json.loads(watcher.read().body)
        consumers = answer.get("consumers", 0)
    server.signal(number)
    assert server.wait_ended() == 0
    waiting.join()
    assert answers[0].status == 200
    assert answers[0].payload is None
    told = {(frame.kind, frame.id): frame.body for frame in (native.read(), native.read())}
    assert told == {(Kind.GOAWAY, 0): b"", (Kind.ANSWER, 1): b"null"}
    assert native.ended()
    for connection in (http, native, watcher):
        connection.close()


def test_answers_under_way_go_out_before_it_ends(serve: Serve, tmp_path: Path) -> None:
    server = serve(data=tmp_path / "data")
    native = Native(server)
    native.send(*(request(number, "kv.set", key=f"k{number}", value="x" * 1000) for number in range(1, 2001)))
    assert native.read().id == 1
    server.signal(signal.SIGTERM)
    answered = {1}
    try:
        while True:
            told = native.read()
            if told.kind == Kind.ANSWER:
                answered.add(told.id)
    except (EOFError, ConnectionResetError):
        pass
    assert server.wait_ended() == 0
    native.close()
    again = Http(serve(data=tmp_path / "data"))
    found = again.do("kv.mget", keys=[f"k{number}" for number in sorted(answered)]).payload["values"]
    assert all(value["found"] for value in found)
    again.close()


def test_subscriptions_end_when_it_stops(serve: Serve) -> None:
    server = serve()
    with connect(f"ws://127.0.0.1:{server.port}/api/v1/ws", proxy=None) as websocket, dial(server) as events:
        websocket.send(json.dumps({"command": "stream.subscribe", "payload": {"room": "r"}}))
        websocket.recv(timeout=PATIENCE)
        events.sendall(b"GET /api/v1/stream/subscribe?room=r HTTP/1.1\r\nHost: x\r\n\r\n")
        read_head(events)
        server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert read_all(events).endswith(b"0\r\n\r\n")
    assert server.wait_ended() == 0


def test_shutdown_by_command_drains_too(serve: Serve) -> None:
    server = serve("--api-key", "user", "--admin-key", "boss")
    http = Http(server, X_API_Key="boss")
    assert http.do("admin.shutdown").payload["success"] is True
    assert server.wait_ended() == 0
    http.close()


def stuck_at(server: ThrowawayServer) -> Native:
    """Open a connection whose answers nobody takes, which keeps a service draining."""
    stuck = Native(server)
    stuck.do(1, "kv.set", key="k", value="x" * 9_000_000)
    stuck.send(*(request(number, "kv.get", key="k") for number in range(2, 6)))
    assert select.select([stuck.socket], [], [], PATIENCE)[0], "the first of them has not begun to come"
    return stuck


def test_while_it_drains_new_work_is_refused(serve: Serve) -> None:
    server = serve("--drain-timeout", "20")
    native, stuck = Native(server), stuck_at(server)
    server.signal(signal.SIGTERM)
    assert native.read().kind == Kind.GOAWAY
    native.send(request(2, "kv.set", key="late", value=1))
    refused = native.read()
    error = json.loads(refused.body)
    assert (refused.kind, refused.id, error["code"]) == (Kind.ERROR, 2, "SERVICE_UNAVAILABLE")
    assert error["details"]["retry_after"] > 0
    told = {answer.id: answer for answer in (stuck.read() for _ in range(5))}
    assert (told[0].kind, told[2].kind) == (Kind.GOAWAY, Kind.ANSWER)
    assert all(told[id].kind in (Kind.ANSWER, Kind.ERROR) for id in (3, 4, 5))
    assert server.wait_ended() == 0
    native.close()
    stuck.close()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows")
def test_signals_that_end_no_service_end_no_start(tmp_path: Path) -> None:
    keys = tmp_path / "keys"  # read in the middle of the start
    os.mkfifo(keys, 0o600)
    command = [sys.executable, "-m", "synap", "serve", "--memory", "--port", "0", "--api-key-file", str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            with keys.open("w") as written:
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    process.send_signal(number)
                written.write("a-key-of-some-length")
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening on ")
        finally:
            process.kill()


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve("--drain-timeout", "3600")
    native, stuck = Native(server), stuck_at(server)
    server.signal(signal.SIGTERM)
    assert native.read().kind == Kind.GOAWAY
    server.signal(signal.SIGTERM)
    assert server.wait_ended() == 130
    native.close()
    stuck.close()


# -------------------------------------------------------------------------------------- data


def test_what_was_answered_is_there_after_a_crash(serve: Serve, tmp_path: Path) -> None:
    server = serve(data=tmp_path / "data")
    http = Http(server)
    http.do("kv.set", key="k", value=[1, {"a": None}])
    request_id = "0" * 32 + ":7"
    assert http.post({"command": "kv.incr", "payload": {"key": "n"}, "request_id": request_id}).payload["value"] == 1
    http.close()
    server.restart()
    http = Http(server)
    assert http.do("kv.get", key="k").payload["value"] == [1, {"a": None}]
    assert http.post({"command": "kv.incr", "payload": {"key": "n"}, "request_id": request_id}).payload["value"] == 1
    http.close()


def test_a_backup_is_a_copy_to_start_on(serve: Serve, tmp_path: Path) -> None:
    http = Http(serve("--admin-key", "boss", data=tmp_path / "data"), X_API_Key="boss")
    http.do("kv.set", key="k", value="kept")
    answer = http.request("GET", "/api/v1/admin/backup")
    assert answer.status == 200
    backup.receive([answer.body], str(tmp_path / "copy"))
    http.close()
    durable = open_host(str(tmp_path / "copy"), call=lambda function, *arguments: function(*arguments))
    assert durable.host.engine.stats()["keys"] == 1
    durable.close()


def test_in_memory_there_is_nothing_to_back_up(http: Http) -> None:
    answer = http.request("GET", "/api/v1/admin/backup")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")


# -------------------------------------------------------------------------------------- pages


def test_health(http: Http) -> None:
    answer = http.request("GET", "/health")
    assert answer.status == 200
    assert answer.document["status"] == "ok"
    assert http.request("HEAD", "/health").body == b""
    assert http.do("queue.list").status == 200


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_no_proxy_keeps_what_a_service_says_of_itself(http: Http, path: str) -> None:
    assert http.request("GET", path).headers["cache-control"] == "no-store"


def test_metrics_are_prometheus_and_count(serve: Serve) -> None:
    http = Http(serve())
    for _ in range(3):
        http.do("kv.set", key="k", value=1)
    http.do("kv.ttl", key="missing")
    http.do("queue.publish", queue="q", message=1)
    http.do("stream.publish", room="r", event_type="t", data=1)
    http.post(b"nonsense")
    answer = http.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["synap_requests_total", "kv.set"] == 3
    assert samples["synap_errors_total", "KEY_NOT_FOUND"] == 1
    assert samples["synap_errors_total", "INVALID_REQUEST"] == 1
    assert samples["synap_queue_depth", "q"] == 1
    assert samples["synap_queue_published_total", "q"] == 1
    assert samples["synap_room_events", "r"] == 1
    assert samples["synap_keys",] == 1
    assert samples["synap_connections",] == 1
    assert samples["process_resident_memory_bytes",] > 0
    http.close()


def test_metrics_tell_of_the_disk_where_there_is_one(serve: Serve, tmp_path: Path) -> None:
    http = Http(serve(data=tmp_path / "data"))
    http.do("kv.set", key="k", value=1)
    families = {
        family.name: family for family in text_string_to_metric_families(http.request("GET", "/metrics").body.decode())
    }
    assert families["synap_log_commits"].samples[0].value == 1
    assert families["synap_log_database_bytes"].samples[0].value > 0
    assert http.do("admin.stats").payload["log"]["commits_total"] == 1
    http.close()


def test_names_in_metrics_are_escaped(serve: Serve) -> None:
    http = Http(serve())
    queue = 'q"\n\\}'
    http.do("queue.publish", queue=queue, message=1)
    families = list(text_string_to_metric_families(http.request("GET", "/metrics").body.decode()))
    depths = {
        sample.labels["queue"]: sample.value for f in families if f.name == "synap_queue_depth" for sample in f.samples
    }
    assert depths == {queue: 1}
    http.close()


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=newest", "text/plain; version=1.x"])
def test_metrics_come_in_the_usual_format_for_who_asks_for_a_version_that_is_no_number(http: Http, accept: str) -> None:
    answer = http.request("GET", "/metrics", headers={"Accept": accept})
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")


def test_openapi_describes_every_command_and_refers_to_what_is_there(http: Http) -> None:
    answer = http.request("GET", "/openapi.json")
    document = answer.document
    assert document["openapi"].startswith("3.1")
    titles = {entry["title"] for entry in document["components"]["schemas"]["Request"]["oneOf"]}
    assert {"kv.set", "queue.consume", "stream.publish", "pubsub.publish", "admin.shutdown"} <= titles

    def references(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in set(references(document)):
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_openapi_has_all_that_an_event_stream_takes(http: Http) -> None:
    document = http.request("GET", "/openapi.json").document
    taken = document["paths"]["/api/v1/stream/subscribe"]["get"]["parameters"]
    fields = {field.name: field.required for field in msgspec.structs.fields(STREAM_SUBSCRIBE.payload)}
    assert {one["name"]: one.get("required", False) for one in taken if one["in"] == "query"} == fields
    assert [one["name"] for one in taken if one["in"] == "header"] == ["Last-Event-ID"]


def test_stats_for_admins(http: Http) -> None:
    figures = http.do("admin.stats").payload
    assert figures["uptime_secs"] >= 0
    assert figures["requests_total"] > 0
    assert figures["connections"] >= 1
    assert http.do("admin.health").payload["status"] == "ok"


# -------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate")
    return cert, key


def test_all_lanes_speak_tls_on_the_one_port(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    server = serve("--tls-cert", cert, "--tls-key", key)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    assert server.url.startswith("https://")

    with context.wrap_socket(dial(server), server_hostname="localhost") as plain:
        body = b'{"command":"kv.set","payload":{"key":"k","value":1}}'
        plain.sendall(
            b"POST /api/v1/command HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert read_all(plain).startswith(b"HTTP/1.1 200 ")
    answer = ask_over_websocket(server.port, context, '{"command":"kv.get","payload":{"key":"k"}}')
    assert json.loads(answer)["payload"]["value"] == 1
    with context.wrap_socket(dial(server), server_hostname="localhost") as native:
        native.sendall(greet("localhost", Hello("0" * 32, "json", False, None)))
        assert read_head(native).startswith(b"HTTP/1.1 101 ")
        native.sendall(request(1, "kv.get", key="k"))
        reader = FrameReader()
        frames = reader.feed(native.recv(65536))
        while not frames:
            frames = reader.feed(native.recv(65536))
        assert json.loads(frames[0].body)["value"] == 1
        native.sendall(b"\xff" * 64)
        assert reader.feed(native.recv(65536))[0].kind == Kind.ERROR
    with dial(server) as bare:
        bare.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" not in read_all(bare)
    assert server.stop() == 0


def test_a_machine_without_the_address_s_family_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(family: int, kind: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    config = ServerConfig(host="::1", port=0)
    monkeypatch.setattr(socket, "socket", unsupported)
    with pytest.raises(OSError, match=os.strerror(errno.EAFNOSUPPORT)) as refused:
        sockets.listen(config)
    assert "can't listen on ::1" in sockets.why_not_listening(config, refused.value)
