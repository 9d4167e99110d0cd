"""A copy of a running server's data, over HTTP: the one thing the client doesn't do, since it is no command."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Iterator, Optional, Tuple

import msgspec

from synap.commands import ErrorAnswer
from synap.config import parse_url
from synap.errors import ConnectionError, SynapError, from_wire

__all__ = ["is_url", "open_backup"]

PATH = "/api/v1/admin/backup"
CHUNK = 1 << 20


class Envelope(msgspec.Struct):
    """What a refusal looks like."""

    error: ErrorAnswer


def is_url(place: str) -> bool:
    """Whether a place is a server, and not a directory."""
    return "://" in place


@contextmanager
def open_backup(url: str, api_key: Optional[str], timeout: float) -> Iterator[Tuple[Iterator[bytes], int]]:
    """Ask a server for a copy of its data; gives its bytes as they come, and how many they are (0: not said).

    Raises what the server answers, and `ConnectionError`, also while the bytes are read: a copy that was cut is none.
    """
    target = parse_url(url)
    if target.scheme not in ("http", "https"):
        raise SynapError("INVALID_REQUEST", f"a copy comes from a directory or an http:// URL, got {url!r}")
    key = api_key or os.environ.get("SYNAP_API_KEY")
    request = urllib.request.Request(f"{target.scheme}://{target.authority}{PATH}")
    if key:
        request.add_header("X-API-Key", key)
    # Directly: a key is not for proxies.
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl.create_default_context())]
    try:
        answer = urllib.request.build_opener(*handlers).open(request, timeout=timeout)
    except urllib.error.HTTPError as refusal:
        with refusal:
            raise _refusal(refusal.read(1 << 16), refusal.code) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError("CONNECTION_FAILED", f"no connection to {target.authority}: {reason}") from None
    with answer:
        total = int(answer.headers.get("Content-Length") or 0)

        def chunks() -> Iterator[bytes]:
            done = 0
            try:
                while chunk := answer.read(CHUNK):
                    done += len(chunk)
                    yield chunk
            except OSError as error:
                raise ConnectionError("CONNECTION_LOST", f"the copy was cut after {done} bytes: {error}") from None
            if done < total:
                raise ConnectionError("CONNECTION_LOST", f"the copy was cut after {done} of {total} bytes")

        yield chunks(), total


def _refusal(body: bytes, status: int) -> SynapError:
    try:
        error = msgspec.json.decode(body, type=Envelope).error
    except msgspec.DecodeError:
        return SynapError("INVALID_REQUEST", f"the server answered {status}: is it a synap server?")
    return from_wire(error.code, error.message, error.details)
