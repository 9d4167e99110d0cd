"""TLS as the service speaks it: certificates that change, versions and ciphers, peers that leave."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import synap
from synap import AsyncSynapClient, SynapClient
from synap.cluster.options import EngineOptions
from synap.errors import SynapError
from synap.server.settings import ServerConfig
from synap.server.tls import Tls
from synap.testing.server import ThrowawayServer
from synap.wire.codec import CODECS
from synap.wire.handshake import Hello, greet
from tests.adversary.fuzz_listeners import framed
from tests.helpers.certificates import Authority, Signed
from tests.helpers.loops import LOOPS, loop_environment
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import read_all, request, wait_for
from tests.server.conftest import Serve
from tests.server.tls.conftest import HEALTH, Secure, named_keys, shake

UPGRADE = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
POST = b"POST /api/v1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
NATIVE = b"Sec-WebSocket-Protocol: synap.native\r\nSynap-Session: %b\r\nSynap-Format: json\r\n\r\n" % (b"ab" * 16)
OPENINGS = {
    "native": greet("localhost", Hello("ab" * 16, "json", False, None)),
    "native over a WebSocket": UPGRADE[:-2] + NATIVE,
    "websocket": UPGRADE,
    "events": b"GET /api/v1/stream/subscribe?room=large HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
LARGE = "x" * 4_000_000
"""More than the system takes for a peer that doesn't read."""


@pytest.fixture(scope="module")
def usual(own: Signed) -> Iterator[ThrowawayServer]:
    """A service that speaks TLS, for all tests that need no other."""
    with ThrowawayServer(arguments=["--tls-cert", own.cert, "--tls-key", own.key]) as server:
        yield server
    assert "Traceback" not in "".join(server.output)


# -------------------------------------------------------------------------------------- certificates that change


def serial(server: ThrowawayServer, context: ssl.SSLContext) -> Any:
    with shake(server, context) as secured:
        certificate = secured.getpeercert()
        assert certificate
        return certificate["serialNumber"]


def said(words: str, server: ThrowawayServer, since: int) -> bool:
    return words in "".join(server.output[since:])


def test_new_certificates_are_taken_without_dropping_a_connection(
    serve: Serve, tmp_path: Path, authority: Authority, own: Signed
) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    shutil.copy(own.cert, cert)
    shutil.copy(own.key, key)
    server = serve("--tls-cert", cert, "--tls-key", key)
    context = authority.context()
    first = serial(server, context)
    with SynapClient(url=server.url, ssl=context, transport="native") as client:
        client.kv.set("a", 1)
        subscription = client.stream.subscribe("room")
        fresh = authority.sign("localhost")
        shutil.copy(fresh.cert, cert)
        shutil.copy(fresh.key, key)
        server.signal(signal.SIGHUP)
        wait_for(lambda: serial(server, context) != first)
        second = serial(server, context)
        before = client.clients()
        client.stream.publish("room", "said", 1)
        assert next(iter(subscription)).data == 1
        assert {one.id for one in before} <= {one.id for one in client.clients()}, "nobody was dropped"
        for spoilt in ("nonsense", Path(own.cert).read_text()):  # the latter doesn't go with the key
            Path(cert).write_text(spoilt)
            told = len(server.output)
            server.signal(signal.SIGHUP)
            wait_for(functools.partial(said, "certificates stay as they were", server, told))
            assert serial(server, context) == second
        assert client.kv.get("a").value == 1
        subscription.unsubscribe()
    assert server.stop() == 0


def test_a_certificate_that_is_over_is_told_at_the_start_and_when_it_is_read_again(
    serve: Serve, tmp_path: Path, authority: Authority, own: Signed
) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    words = f"clients refuse {cert}: certificate has expired"
    over = authority.sign("localhost", days=-1)

    def put(signed: Signed) -> None:
        shutil.copy(signed.cert, cert)
        shutil.copy(signed.key, key)

    put(over)
    server = serve(
        "--tls-cert",
        cert,
        "--tls-key",
        key,
        "--tls-client-ca",
        authority.path,
        "--keys-file",
        str(named_keys(tmp_path)),
    )
    wait_for(functools.partial(said, words, server, 0))
    put(own)
    told = len(server.output)
    server.signal(signal.SIGHUP)
    wait_for(functools.partial(said, "read again: certificates", server, told))
    put(over)
    told_next = len(server.output)
    server.signal(signal.SIGHUP)
    wait_for(functools.partial(said, words, server, told_next))
    assert server.stop() == 0
    assert sum(words in line for line in server.output) == 2, "told of a good certificate"


# -------------------------------------------------------------------------------------- versions and ciphers


def spoken(server: ThrowawayServer, authority: Authority, version: ssl.TLSVersion, ciphers: str = "") -> Any:
    """What is spoken with a client that knows one version, and some ciphers; None where they don't agree."""
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    try:
        with shake(server, context) as secured:
            return secured.version(), secured.cipher()
    except (ssl.SSLError, ConnectionError):
        return None


def test_the_oldest_version_is_a_setting_with_a_safe_default(
    secure: Secure, usual: ThrowawayServer, authority: Authority
) -> None:
    strict = secure("--tls-min-version", "1.3")
    assert spoken(usual, authority, ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
    assert spoken(usual, authority, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    assert spoken(strict, authority, ssl.TLSVersion.TLSv1_2) is None
    assert spoken(strict, authority, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_versions_that_are_broken_are_not_spoken(usual: ThrowawayServer, authority: Authority, version: str) -> None:
    assert spoken(usual, authority, ssl.TLSVersion[version], "ALL:@SECLEVEL=0") is None
    assert spoken(usual, authority, ssl.TLSVersion.TLSv1_3)


def test_ciphers_are_a_setting(secure: Secure, authority: Authority) -> None:
    one, another = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"
    server = secure("--tls-ciphers", one)
    assert spoken(server, authority, ssl.TLSVersion.TLSv1_2)[1][0] == one
    assert spoken(server, authority, ssl.TLSVersion.TLSv1_2, another) is None


@pytest.mark.parametrize("ciphers", ["NULL", "aNULL", "RC4", "3DES", "EXPORT", "CBC"])
def test_weak_ciphers_are_not_taken(usual: ThrowawayServer, authority: Authority, ciphers: str) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    weak = {
        "CBC": "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA",
    }.get(ciphers, ciphers)
    try:
        context.set_ciphers(f"{weak}:@SECLEVEL=0")
    except ssl.SSLError:
        return  # not even this OpenSSL can speak it
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(usual, context)


def refused(*arguments: str) -> str:
    """Start a service that can't, and return what it says."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    command = [sys.executable, "-m", "synap", "serve", "--memory", "--port", "0", *arguments]
    ended = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL
    )
    assert ended.returncode
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_what_can_t_be_used_is_said_at_the_start(tmp_path: Path, own: Signed) -> None:
    given = ["--tls-cert", own.cert, "--tls-key", own.key]
    assert "tls_ciphers" in refused(*given, "--tls-ciphers", "NONSENSE")
    assert "tls_client_ca" in refused(*given, "--tls-client-ca", own.key)
    assert "tls_min_version" in refused(*given, "--tls-min-version", "1.1")
    swapped = refused("--tls-cert", own.key, "--tls-key", own.cert)
    assert "tls_cert" in swapped
    assert f"with the key {own.cert}" in swapped
    assert "no private key" in swapped
    assert "tls_key must be given" in refused("--tls-cert", own.cert)
    assert "tls_cert must be given" in refused("--tls-key", own.key)
    assert "none.key" in refused("--tls-cert", own.cert, "--tls-key", str(tmp_path / "none.key"))
    encrypted = str(tmp_path / "encrypted.key")
    command = ["openssl", "ec", "-in", own.key, "-aes256", "-passout", "pass:secret", "-out", encrypted]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    assert "the key is encrypted" in refused("--tls-cert", own.cert, "--tls-key", encrypted)


def test_a_certificate_that_is_rewritten_while_it_is_read_stays_as_it_was(
    tmp_path: Path, own: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ended: nobody expected an error where it looks whether the certificate is over."""
    cert = tmp_path / "cert.pem"
    shutil.copy(own.cert, cert)
    tls = Tls(ServerConfig(tls_cert=str(cert), tls_key=own.key))
    before = tls.context
    chosen = ssl.SSLContext.set_ciphers

    def meanwhile(context: ssl.SSLContext, ciphers: str) -> None:
        cert.write_text("")  # as `cp` does at first
        chosen(context, ciphers)

    monkeypatch.setattr(ssl.SSLContext, "set_ciphers", meanwhile, raising=False)
    with pytest.raises(SynapError, match=r"tls_cert: .* can't be used"):
        tls.reload()
    assert tls.context is before


# -------------------------------------------------------------------------------------- elsewhere


def test_a_stop_does_not_wait_for_idle_peers_to_say_goodbye(secure: Secure, authority: Authority) -> None:
    service = secure("--drain-timeout", "3600")
    service.patience = PATIENCE
    upgrade = (
        b"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    context = authority.context()
    with SynapClient(url=service.url, ssl=context) as client:
        client.kv.set("a", 1)
        with shake(service, context) as kept, shake(service, context) as websocket:
            for connection, request in ((kept, HEALTH.replace(b"close", b"keep-alive")), (websocket, upgrade)):
                connection.sendall(request)
                assert connection.recv(65536).startswith(b"HTTP/1.1 ")
            assert service.stop() == 0
            assert read_all(websocket) == b"\x88\x02" + (1012).to_bytes(2, "big")  # the last word was waited for


UNFINISHED = {
    "before a request": (b"GET", b""),
    "http": (HEALTH.replace(b"close", b"keep-alive"), b""),
    "native": (OPENINGS["native"], request(1, "kv.get", key="a")[:-1]),
    "native over a WebSocket": (OPENINGS["native over a WebSocket"], b"\x82"),
    "websocket": (UPGRADE, b"\x81"),
    "websocket, in a frame's head": (UPGRADE, b"\x81\xfe"),
}
"""What is sent first, and once that is answered."""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("what", UNFINISHED)
def test_a_stop_closes_what_is_closed_already(
    secure: Secure, authority: Authority, tmp_path_factory: pytest.TempPathFactory, loop: str, what: str
) -> None:
    """asyncio's TLS transports can't be asked for anything, nor ended, once they were closed twice."""
    opening, rest = UNFINISHED[what]
    for patience in ("0.5", "5", "60"):  # a busy machine may take longer than that for what the peer does say
        timeouts = ("--handshake-timeout", patience, "--idle-timeout", patience, "--drain-timeout", "3600")
        service = secure(*timeouts, environment=loop_environment(loop, tmp_path_factory))
        with contextlib.ExitStack() as stack:
            try:
                silent = stack.enter_context(contextlib.closing(shake(service, authority.context())))
                silent.sendall(opening)
                in_time = not rest or silent.recv(65536).startswith(b"HTTP/1.1 101")
                silent.sendall(rest)
                while silent.recv(65536):  # until the service has closed it, which its peer doesn't answer
                    pass
            except OSError:  # of TLS, too
                in_time = False
            assert service.stop() == 0
        assert "ending a connection failed" not in "".join(service.output)
        if in_time:
            return
    pytest.fail("the service gave up a peer that wasn't silent yet")


def asked(lane: str) -> bytes:
    """Return 200 requests for what is large, as they are sent on a lane."""
    ask = b'{"command":"kv.get","payload":{"key":"large"}}'
    if lane == "http":
        return (POST + b"%d\r\n\r\n%b" % (len(ask), ask)) * 200
    if lane == "websocket":
        return (bytes([0x81, 0x80 | len(ask)]) + b"\0\0\0\0" + ask) * 200
    frames = [request(number, "kv.get", key="large") for number in range(1, 201)]
    if lane == "native":
        return b"".join(frames)
    return b"".join(bytes([0x82, 0x80 | len(one)]) + b"\0\0\0\0" + one for one in frames)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("lane", ["native", "native over a WebSocket", "websocket", "http", "events"])
def test_nothing_is_written_to_a_peer_that_has_said_goodbye(
    secure: Secure, authority: Authority, tmp_path_factory: pytest.TempPathFactory, loop: str, lane: str
) -> None:
    """The event loop warns of each such write in the service's log."""
    service = secure("--unread-timeout", "1s", environment=loop_environment(loop, tmp_path_factory))
    with contextlib.closing(shake(service, authority.context())) as deaf:
        with SynapClient(url=service.url, tls_ca=authority.path) as client:
            client.kv.set("large", "x" * 200_000)
            if lane in OPENINGS:
                deaf.sendall(OPENINGS[lane])
                head = b""
                while b"\r\n\r\n" not in head:
                    head += deaf.recv(1)
            if lane == "events":
                for _ in range(200):
                    client.stream.publish("large", "t", "x" * 100_000)
            else:
                deaf.sendall(asked(lane))
        deaf.settimeout(0)
        with contextlib.suppress(OSError):  # it waits for the service's goodbye, which doesn't come
            deaf.unwrap()
        assert service.stop() == 0
    assert "is closed" not in "".join(service.output)
    assert "socket.send() raised" not in "".join(service.output)


def test_the_command_line_speaks_tls_with_a_certificate_of_its_own(
    secure: Secure, keys: Path, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synap.cli.app import run

    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path, data=tmp_path / "data")
    cert, key = authority.sign("ops")
    monkeypatch.delenv("SYNAP_API_KEY", raising=False)
    tls = ["--tls-ca", authority.path, "--tls-cert", cert, "--tls-key", key]
    assert run(["kv", "set", "a", "1", "--url", server.url, *tls]) == 0
    assert run(["--url", server.url, *tls, "settings"]) == 0
    assert run(["backup", server.url, str(tmp_path / "copy"), *tls]) == 0
    assert run(["backup", server.url, str(tmp_path / "other"), "--tls-ca", authority.path]) == 3
    assert run(["kv", "get", "a", "--url", server.url, "--tls-ca", str(tmp_path / "none.pem")]) == 2


@pytest.mark.parametrize("transport", ["auto", "native", "websocket"])
@pytest.mark.parametrize("loop", ["async", "sync"])
async def test_who_mixes_up_http_and_https_is_told_which_it_is(
    usual: ThrowawayServer, synap_url: str, loop: str, transport: Any
) -> None:
    async def told(url: str) -> str:
        if loop == "async":
            async with AsyncSynapClient(url, transport=transport, retries=0) as client:
                with pytest.raises(synap.ConnectionError) as failed:
                    await client.ping()
        else:
            with SynapClient(url, transport=transport, retries=0) as blocking:
                with pytest.raises(synap.ConnectionError) as failed:
                    blocking.ping()
        assert failed.value.code == "CONNECTION_FAILED"
        return failed.value.message

    assert "https://" in await told(usual.url.replace("https://", "http://"))
    assert "http://" in await told(synap_url.replace("http://", "https://"))
    assert "tls_ca" in await told(usual.url)


@pytest.mark.parametrize("command", ["ping", "health"])
def test_the_command_line_says_which_it_is_too(
    usual: ThrowawayServer, synap_url: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from synap.cli.app import run

    for url, hint in (
        (usual.url.replace("https://", "http://"), "https://"),
        (synap_url.replace("http://", "https://"), "http://"),
        (usual.url, "tls_ca"),
    ):
        assert run([command, "--url", url]) == 3
        told = capsys.readouterr().err
        assert hint in told
        assert url.startswith("http://") or "synap serve" not in told, "it runs: a fault of TLS says that much"


def test_a_key_that_travels_in_plain_text_to_another_machine_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    def warned(url: str, key: str | None = "secret-key") -> int:
        before = len(recwarn)
        for _ in range(3):
            SynapClient(url=url, api_key=key).close()
        told = [str(warning.message) for warning in list(recwarn)[before:]]
        assert not any("secret-key" in text for text in told)
        return sum("unencrypted" in text for text in told)

    assert warned("http://plain.example:15500") == 1
    assert warned("http://plain.example:15500") == 0
    assert warned("http://10.1.2.3") == 1
    for url in ("https://safe.example", "http://localhost", "http://127.0.0.1:9", "http://[::1]:9", "memory://"):
        assert warned(url) == 0
    assert warned("http://keyless.example", None) == 0


def opened_by_client(**files: str) -> None:
    SynapClient(url="https://localhost", **{f"tls_{name}": path for name, path in files.items()})  # type: ignore[arg-type]


def opened_by_engine(**files: str) -> None:
    EngineOptions.read("valkeys://localhost", {f"engine_{name}": path for name, path in files.items()})


OPENERS = pytest.mark.parametrize("opened", [opened_by_client, opened_by_engine])


@OPENERS
def test_encrypted_keys_of_clients_ask_nobody(tmp_path: Path, own: Signed, opened: Callable[..., None]) -> None:
    encrypted = str(tmp_path / "encrypted.key")
    command = ["openssl", "ec", "-in", own.key, "-aes256", "-passout", "pass:secret", "-out", encrypted]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    with pytest.raises(SynapError, match="the key is encrypted"):
        opened(cert=own.cert, key=encrypted)


@OPENERS
def test_files_that_can_t_be_used_are_named_with_what_is_wrong(
    authority: Authority, own: Signed, opened: Callable[..., None]
) -> None:
    for files, words in (
        ({"cert": own.cert, "key": authority.sign("another").key}, "another certificate's"),
        ({"cert": own.key, "key": own.cert}, "no certificate in the certificate's file, or no private key"),
        ({"cert": own.cert, "key": own.cert}, "no private key in the key's"),
        ({"ca": own.key}, "no certificate in it"),
        ({"ca": "/none.pem"}, "No such file"),
        ({"key": own.key}, "given together with"),
    ):
        with pytest.raises(SynapError, match=words) as caught:
            opened(**files)
        assert caught.value.code == "INVALID_REQUEST"
        assert all(path in str(caught.value) for path in files.values())


def test_what_an_engine_would_leave_out_without_a_word_is_refused(own: Signed) -> None:
    with pytest.raises(SynapError, match="engine_ca must be left out with valkey://"):
        EngineOptions.read("valkey://localhost", {"engine_ca": own.cert})
    with pytest.raises(SynapError, match="engine_password_file='/none' can't be read: No such file"):
        EngineOptions.read("valkey://localhost", {"engine_password_file": "/none"})
    assert EngineOptions.read("valkey://localhost", {"engine_user": "me"}).login == ("AUTH", "me", "")


# ------------------------------------------------------------------------------------------ peers that left


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("lane", [*OPENINGS, "websocket, MessagePack"])
def test_nothing_is_made_for_a_peer_that_left_without_reading_what_it_was_sent(
    serve: Serve, authority: Authority, own: Signed, lane: str, tls: bool, loop: str, tmp_path_factory: Any
) -> None:
    """It ended TCP without TLS's end. Each push to it was encoded, dropped, and a line in the log, for ever."""
    secured = ["--tls-cert", own.cert, "--tls-key", own.key] if tls else []
    server = serve("--log-level", "warning", *secured, environment=loop_environment(loop, tmp_path_factory))
    options: dict[str, Any] = {"tls_ca": authority.path} if tls else {}
    with SynapClient(url=server.url, **options) as client, socket.socket() as opened:
        client.kv.set("large", LARGE)
        client.stream.publish("large", "e", LARGE)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.settimeout(PATIENCE)
        opened.connect(("127.0.0.1", server.port))
        peer = authority.context().wrap_socket(opened, server_hostname="localhost") if tls else opened
        with peer:
            peer.sendall(OPENINGS[lane.partition(",")[0]].replace(b"=large", b"=large&from_offset=0"))
            assert b" 101 " in peer.recv(1000) or lane == "events"
            asked = request(1, "pubsub.subscribe", topics=["t"]) + request(2, "kv.get", key="large")
            if lane == "native":
                peer.sendall(asked)
            elif lane == "native over a WebSocket":
                peer.sendall(framed(0x82, asked))
            elif lane != "events":
                kind, codec = (0x82, CODECS["msgpack"]) if "MessagePack" in lane else (0x81, CODECS["json"])
                subscribe = {"command": "pubsub.subscribe", "payload": {"topics": ["t"]}}
                peer.sendall(framed(kind, codec.encode(subscribe)))
                peer.sendall(framed(kind, codec.encode({"command": "kv.get", "payload": {"key": "large"}})))

            def heard() -> int:
                if lane == "events":
                    return client.stream.publish("large", "e", "x").subscribers_notified
                return client.pubsub.publish("t", "x" * 200_000).subscribers_matched

            wait_for(lambda: heard() == 1)
            peer.shutdown(socket.SHUT_WR)
            wait_for(lambda: heard() == 0)
    assert server.stop() == 0
    said = "".join(server.output)
    assert "is closed" not in said, said[-2000:]
    assert "Traceback" not in said, said[-2000:]
