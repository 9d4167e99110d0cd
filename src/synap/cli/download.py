"""Requests over plain HTTP for what is no command: a backup of a running server, and its health."""

from __future__ import annotations

from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any, Dict, Iterator, Mapping, Tuple

import msgspec

from synap.cli.connection import Connection
from synap.commands import ErrorAnswer
from synap.config import ClientConfig, Target, parse_url, resolve, tls_context, warn_of_plain_key, without_secret
from synap.errors import ConnectionError, SynapError, from_wire
from synap.lanes.errors import TLS_HINT, connect_failed

PATH = "/api/v1/admin/backup"
CHUNK = 1 << 20
READ_TIMEOUT = 600.0
"""Timeout of a read in seconds: a server makes the whole copy before it sends the first byte."""


class Envelope(msgspec.Struct):
    """The JSON of an error."""

    error: ErrorAnswer


def is_url(place: str) -> bool:
    """Return whether `place` is a server's URL, not a directory."""
    return "://" in place


@contextmanager
def open_backup(connection: Connection, url: str) -> Iterator[Tuple[Iterator[bytes], int]]:
    """Request a backup from a server; yields its chunks and its size in bytes (0: unknown).

    Raises the server's error, and `ConnectionError`, also while chunks are read.
    """
    target = parse_url(url)
    if target.scheme not in ("http", "https"):
        text = "a copy comes from a directory or an http:// URL (what a cluster holds: `synap export`)"
        raise SynapError("INVALID_REQUEST", f"{text}, got {without_secret(url)!r}")
    connection.check(url, "--url")
    connection.url = url
    config = resolve(None, connection.options())
    warn_of_plain_key(config, target)
    headers = {"X-API-Key": config.api_key} if config.api_key else {}
    with _request(target, config, PATH, READ_TIMEOUT, headers) as answer:
        if answer.status != 200:
            with _translate_errors(target):
                body = answer.read(1 << 16)
            raise _refusal(body, answer.status)

        def chunks() -> Iterator[bytes]:
            done = 0
            try:
                while chunk := answer.read(CHUNK):
                    done += len(chunk)
                    yield chunk
            except (OSError, HTTPException) as error:
                raise ConnectionError("CONNECTION_LOST", f"the copy was cut after {done} bytes: {error!r}") from None

        yield chunks(), answer.length or 0


def read_health(target: Target, config: ClientConfig) -> Dict[str, Any]:
    """Return what `GET /health` says, which needs no key."""
    with _request(target, config, "/health", config.timeout, {}) as answer:
        with _translate_errors(target):
            body = answer.read(1 << 16)
    if answer.status not in (200, 503):
        raise _refusal(body, answer.status)
    try:
        return msgspec.json.decode(body, type=Dict[str, Any])
    except msgspec.DecodeError:
        raise _refusal(body, answer.status) from None


@contextmanager
def _request(
    target: Target, config: ClientConfig, path: str, timeout: float, headers: Mapping[str, str]
) -> Iterator[HTTPResponse]:
    with closing(_connection(target, config)) as opened:
        try:
            opened.connect()
        except OSError as error:
            raise connect_failed(target.authority, error, target=target) from None
        opened.sock.settimeout(timeout)
        with _translate_errors(target):
            opened.request("GET", path, headers=dict(headers))
            answer = opened.getresponse()
        yield answer


@contextmanager
def _translate_errors(target: Target) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        hint = f" ({TLS_HINT})" if isinstance(error, RemoteDisconnected) and target.scheme == "http" else ""
        raise ConnectionError("CONNECTION_LOST", f"{target.authority} did not answer: {error!r}{hint}") from None


def _connection(target: Target, config: ClientConfig) -> HTTPConnection:
    if target.scheme == "https":
        return HTTPSConnection(target.host, target.port, timeout=config.timeout, context=tls_context(config))
    return HTTPConnection(target.host, target.port, timeout=config.timeout)


def _refusal(body: bytes, status: int) -> SynapError:
    try:
        error = msgspec.json.decode(body, type=Envelope).error
    except msgspec.DecodeError:
        return SynapError("INVALID_REQUEST", f"it answered {status}: is it a synap server?")
    return from_wire(error.code, error.message, error.details)
