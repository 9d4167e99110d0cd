"""A certificate authority, a service with a certificate of it, and keys with names."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from synap.server import keyfile
from synap.server.grants import Quota
from synap.testing.server import ThrowawayServer
from tests.helpers.certificates import Authority, Signed
from tests.helpers.patience import PATIENCE
from tests.helpers.raw import read_all
from tests.server.conftest import Serve

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def own(authority: Authority) -> Signed:
    """The service's certificate."""
    return authority.sign("localhost")


def named_keys(folder: Path) -> Path:
    path = folder / "keys.toml"
    keyfile.add(path, "orders", keyfile.new_key(), ["kv:*:orders*"], Quota())
    keyfile.add(path, "ops", keyfile.new_key(), ["*:*:*", "admin"], Quota())
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return named_keys(tmp_path)


Secure = Callable[..., ThrowawayServer]


@pytest.fixture
def secure(serve: Serve, own: Signed) -> Secure:
    """Starts a service that speaks TLS."""
    return lambda *arguments, **options: serve("--tls-cert", own.cert, "--tls-key", own.key, *arguments, **options)


def shake(server: ThrowawayServer, context: ssl.SSLContext) -> ssl.SSLSocket:
    opened = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    try:
        return context.wrap_socket(opened, server_hostname="localhost")
    except BaseException:
        opened.close()
        raise


def ask(server: ThrowawayServer, context: ssl.SSLContext, request: bytes = HEALTH) -> bytes:
    """Return the answer to one request. TLS 1.3 tells a client that its certificate isn't taken only afterwards."""
    with shake(server, context) as secured:
        secured.sendall(request)
        return read_all(secured)
