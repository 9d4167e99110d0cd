"""Callers with certificates: whose opens what, and which open nothing."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import synap
from synap import AsyncSynapClient, SynapClient
from synap.server import keyfile
from synap.server.tls import Acceptor
from synap.testing.server import ThrowawayServer
from tests.helpers.certificates import Authority, Signed
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import wait_for
from tests.helpers.secure_websocket import ask_over_websocket
from tests.server.conftest import Serve
from tests.server.tls.conftest import Secure, ask, named_keys, shake


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the service doesn't know."""
    return Authority(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def knowing(authority: Authority, own: Signed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayServer]:
    """A service that asks callers for certificates and has two named keys, and plain ones, that no test changes."""
    arguments = ["--tls-cert", own.cert, "--tls-key", own.key, "--tls-client-ca", authority.path]
    arguments += ["--keys-file", str(named_keys(tmp_path_factory.mktemp("keys")))]
    arguments += ["--api-key", "plain-key-0123456789", "--admin-key", "admin-key-0123456789"]
    with ThrowawayServer(arguments=arguments) as server:
        yield server
    assert "Traceback" not in "".join(server.output)


@pytest.mark.parametrize("transport", ["native", "websocket"])
async def test_a_certificate_opens_what_its_name_s_key_opens(
    secure: Secure, keys: Path, authority: Authority, transport: str
) -> None:
    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path)
    cert, key = authority.sign("orders")
    options: dict[str, Any] = {"tls_ca": authority.path, "tls_cert": cert, "tls_key": key, "transport": transport}
    with SynapClient(url=server.url, **options) as client:
        assert client.kv.set("orders:1", 1)
        with pytest.raises(synap.PermissionDeniedError):
            client.kv.set("secrets", 1)
        with pytest.raises(synap.PermissionDeniedError):
            client.stats()
    async with AsyncSynapClient(url=server.url, **options) as client:
        assert (await client.kv.get("orders:1")).value == 1
        with pytest.raises(synap.PermissionDeniedError):
            await client.kv.get("secrets")


def test_http_and_websockets_know_the_certificate_too(secure: Secure, keys: Path, authority: Authority) -> None:
    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path)
    context = authority.context(authority.sign("ops"))
    ask_metrics = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert ask(server, context, ask_metrics).startswith(b"HTTP/1.1 200 ")
    assert '"success":true' in ask_over_websocket(server.port, context, '{"command": "admin.config"}')


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("which", ["none", "another authority's", "one that is over"])
def test_certificates_that_are_not_good_let_nobody_in(
    knowing: ThrowawayServer, authority: Authority, others: Authority, which: str, version: ssl.TLSVersion
) -> None:
    given = {
        "none": None,
        "another authority's": others.sign("ops"),
        "one that is over": authority.sign("ops", days=-1),
    }[which]
    context = authority.context(given)
    context.minimum_version = context.maximum_version = version
    answer = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        answer = ask(knowing, context)
    assert not answer
    with SynapClient(url=knowing.url, ssl=context, retries=0, timeout=PATIENCE) as client:
        with pytest.raises(synap.ConnectionError, match="if the service asks for certificates"):
            client.kv.get("orders:1")
    wait_for(lambda: "INFO the TLS handshake of 127.0.0.1 failed: " in "".join(knowing.output))
    assert ask(knowing, authority.context(authority.sign("ops"))).startswith(b"HTTP/1.1 200 ")


async def test_strangers_can_t_fill_the_log_with_handshakes_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synap.server")
    acceptor = Acceptor.__new__(Acceptor)
    acceptor._failed, acceptor._silent_until = 0, 0.0
    for number in range(3):
        acceptor._log_failed((f"10.0.0.{number}", 1), ssl.SSLError(1, "nonsense"))
    acceptor._silent_until = 0.0  # a minute later
    acceptor._log_failed(("10.0.0.9", 1), ssl.SSLError(1, "nonsense"))
    assert caplog.messages == [
        "the TLS handshake of 10.0.0.0 failed: nonsense",
        "the TLS handshake of 10.0.0.9 failed: nonsense, and 2 others since the last line about one",
    ]


@pytest.mark.parametrize("name", ["stranger", "key 0", "key 1", "x/CN= ", "ORDERS", "orders,O=x"])
def test_a_name_that_is_no_key_s_opens_nothing(knowing: ThrowawayServer, authority: Authority, name: str) -> None:
    with SynapClient(url=knowing.url, ssl=authority.context(authority.sign(name)), retries=0) as client:
        with pytest.raises(synap.AuthenticationError):
            client.kv.get("orders:1")


def test_a_key_goes_before_a_certificate(secure: Secure, keys: Path, authority: Authority) -> None:
    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path, "--api-key", "plain-key-0123456789")
    context = authority.context(authority.sign("orders"))
    with SynapClient(url=server.url, ssl=context, api_key="plain-key-0123456789") as client:
        assert client.kv.set("anything", 1)
    with SynapClient(url=server.url, ssl=context, api_key="wrong-key-0123456789", retries=0) as client:
        with pytest.raises(synap.AuthenticationError):
            client.kv.get("orders:1")


def test_a_certificate_opens_nothing_once_its_key_is_revoked(secure: Secure, keys: Path, authority: Authority) -> None:
    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path)
    context = authority.context(authority.sign("orders"))
    with SynapClient(url=server.url, ssl=context, retries=0) as client:
        assert client.kv.set("orders:1", 1)
        keyfile.remove(keys, "orders")
        server.signal(signal.SIGHUP)

        def refused() -> bool:
            try:
                client.kv.get("orders:1")
            except synap.AuthenticationError:
                return True
            except synap.ConnectionError:  # it was cut while it asked
                pass
            return False

        wait_for(refused)


def test_a_client_s_certificate_is_needed_before_anything_is_said(
    secure: Secure, keys: Path, authority: Authority
) -> None:
    server = secure("--keys-file", str(keys), "--tls-client-ca", authority.path)
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(server, context)


def test_authorities_of_callers_change_too(
    serve: Serve, tmp_path: Path, keys: Path, authority: Authority, others: Authority, own: Signed
) -> None:
    trusted = tmp_path / "trusted.pem"
    shutil.copy(authority.path, trusted)
    arguments = ["--tls-cert", own.cert, "--tls-key", own.key, "--tls-client-ca", str(trusted)]
    server = serve(*arguments, "--keys-file", str(keys))
    stranger = authority.context(others.sign("ops"))

    def let_in() -> bool:
        try:
            return ask(server, stranger).startswith(b"HTTP/1.1 200 ")
        except (ssl.SSLError, ConnectionError):
            return False

    assert not let_in()
    trusted.write_text(Path(authority.path).read_text() + Path(others.path).read_text())
    server.signal(signal.SIGHUP)
    wait_for(let_in)
