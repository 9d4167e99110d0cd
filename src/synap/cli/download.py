"""Download a backup from a running server over HTTP, which the client doesn't do since it is no command."""

from __future__ import annotations

from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Iterator, Tuple

import msgspec

from synap.cli.connection import Connection
from synap.commands import ErrorAnswer
from synap.config import ClientConfig, Target, parse_url, resolve, tls_context, warn_of_plain_key
from synap.errors import ConnectionError, SynapError, from_wire

__all__ = ["is_url", "open_backup"]

PATH = "/api/v1/admin/backup"
CHUNK = 1 << 20
PATIENCE = 600.0
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
        raise SynapError("INVALID_REQUEST", f"a copy comes from a directory or an http:// URL, got {url!r}")
    config = resolve(None, {**connection.options(), "url": url})
    warn_of_plain_key(config, target)
    with closing(_connection(target, config)) as opened:
        try:
            opened.connect()
        except OSError as error:
            raise ConnectionError("CONNECTION_FAILED", f"no connection to {target.authority}: {error}") from None
        opened.sock.settimeout(PATIENCE)
        try:
            opened.request("GET", PATH, headers={"X-API-Key": config.api_key} if config.api_key else {})
            answer = opened.getresponse()
            if answer.status != 200:
                raise _refusal(answer.read(1 << 16), answer.status)
        except (OSError, HTTPException) as error:
            if isinstance(error, SynapError):
                raise
            raise ConnectionError("CONNECTION_LOST", f"{target.authority} did not answer: {error!r}") from None

        def chunks() -> Iterator[bytes]:
            done = 0
            try:
                while chunk := answer.read(CHUNK):
                    done += len(chunk)
                    yield chunk
            except (OSError, HTTPException) as error:
                raise ConnectionError("CONNECTION_LOST", f"the copy was cut after {done} bytes: {error!r}") from None

        yield chunks(), answer.length or 0


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
