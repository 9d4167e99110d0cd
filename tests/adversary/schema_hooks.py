"""What schemathesis is told for `tests.adversary.schema`: MessagePack, and requests that would end the test or wait."""

from __future__ import annotations

from typing import Any

import msgspec
import schemathesis


@schemathesis.deserializer("application/msgpack")
def unpacked(context: Any, response: Any) -> Any:
    """Read an answer in MessagePack."""
    return msgspec.msgpack.decode(response.content)


@schemathesis.serializer("application/msgpack")
def packed(context: Any, value: Any) -> bytes:
    """Write a request in MessagePack; what that can't say, as JSON, which is refused then."""
    try:
        return value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, ValueError):
        return msgspec.json.encode(value)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Don't stop the service, or close the connection that asks, and wait for messages no longer than a moment."""
    body = case.body
    if not isinstance(body, dict):
        return
    if body.get("command") in ("admin.shutdown", "admin.clients"):
        case.body = {**body, "command": "admin.health"}
    payload = body.get("payload")
    if isinstance(payload, dict) and isinstance(payload.get("timeout"), (int, float)) and payload["timeout"] > 0.01:
        case.body = {**body, "payload": {**payload, "timeout": 0.01}}
