"""`GET /openapi.json`: the HTTP API as OpenAPI 3.1, generated from the table of commands."""

from __future__ import annotations

from typing import Any

import msgspec

from synap import commands as c
from synap._version import __version__
from synap.errors import CODES, NEVER_ANSWERED
from synap.shapes import VALUE, value_fields

_ANYTHING = "Anything that JSON can hold."
_TEMPLATE = "#/components/schemas/{name}"
_REQUEST_ID = {"type": ["string", "null"], "maxLength": 256}
_NUMBERED = {"type": "string", "pattern": "^[0-9a-f]{32}:[0-9]{1,18}$"}
_OFFSET = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_NAME = {"type": "string", "minLength": 1, "maxLength": 256, "description": "At most 256 bytes of UTF-8."}


def describe(*, keys: bool = False) -> dict[str, Any]:
    """Build the description. `keys`: whether the service asks for one."""
    commands = list(c.COMMANDS.values())
    types: list[type[msgspec.Struct]] = [
        *(command.payload for command in commands),
        *(command.answer for command in commands),
        c.ErrorAnswer,
    ]
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(types)), schema_hook=_any, ref_template=_TEMPLATE)
    for kind in types:
        _free_values(kind, schemas)
    # Commands that make or end subscriptions need a connection for pushes.
    schemas["Request"] = {"oneOf": [_request(one) for one in commands if not one.pushes and one.ends is None]}
    schemas["Batch"] = _batch()
    schemas["Response"] = _response()
    schemas["BatchResponse"] = _batch_response()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Synap",
            "version": __version__,
            "description": "Key-value, acknowledged queues, event streams and pub/sub.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "responses": {"Error": _content("An error.", "Response")},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [*([] if keys else [{}]), {"key": []}, {"bearer": []}],
    }


def _any(type: Any) -> dict[str, Any]:
    if type is msgspec.Raw:
        return {"description": _ANYTHING}
    raise NotImplementedError


def _free_values(kind: type[msgspec.Struct], schemas: dict[str, Any]) -> None:
    """Describe stored values in a payload or an answer as what they are on the wire: any JSON."""
    for field in value_fields(kind):
        if field.kind == VALUE:
            schemas[kind.__name__]["properties"][field.name] = {"description": _ANYTHING}
        else:
            _free_values(field.item, schemas)


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _TEMPLATE.format(name=name)}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {**_object(properties, *required), "additionalProperties": False}


def _request(command: c.Command) -> dict[str, Any]:
    properties = {
        "type": {"const": "request"},
        "command": {"const": command.name},
        "payload": _ref(command.payload.__name__),
        "request_id": _REQUEST_ID,
        "version": {},
    }
    needs_payload = any(field.required for field in msgspec.structs.fields(command.payload))
    required = ["command", "payload"] if needs_payload else ["command"]
    return {"title": command.name, "description": command.doc, **_closed(properties, *required)}


def _batch() -> dict[str, Any]:
    # An error of one command is in its own result, and the batch is answered with 200.
    known = ", ".join(command.name for command in c.COMMANDS.values() if command.batchable)
    item = {
        "command": {"type": "string", "description": f"One of {known}."},
        "payload": {"description": "As a request of that command has it."},
        "number": {"type": ["integer", "null"], "minimum": 1},
    }
    batch = {
        "type": {"const": "batch"},
        "commands": {"type": "array", "maxItems": c.MAX_BATCH, "items": _closed(item, "command")},
        "atomic": {"type": "boolean", "default": False},
        "request_id": _REQUEST_ID,
        "version": {},
    }
    return _closed(batch, "type", "commands")


def _response() -> dict[str, Any]:
    answers = sorted({command.answer.__name__ for command in c.COMMANDS.values()} - {"Figures"})
    response = {
        "type": {"const": "response"},
        "request_id": {"type": "string"},
        "success": {"type": "boolean"},
        "status": {"enum": ["success", "error"]},
        "payload": {"anyOf": [*map(_ref, answers), {"type": "object"}, {"type": "null"}]},
        "error": _ref("ErrorAnswer"),
    }
    return _object(response, "type", "request_id", "success", "status")


def _batch_response() -> dict[str, Any]:
    outcome = {"status": {"enum": ["success", "error"]}, "payload": {}, "error": _ref("ErrorAnswer")}
    response = {
        "type": {"const": "batch_response"},
        "request_id": {"type": "string"},
        "success": {"type": "boolean"},
        "results": {"type": "array", "items": _object(outcome, "status")},
    }
    return _object(response, "type", "request_id", "success", "results")


def _media(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}


def _content(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": _media(_ref(name))}


def _plain(description: str, content_type: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "content": {content_type: {"schema": {"type": kind}}}}


def _get(operation: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"get": {"operationId": operation, "summary": summary, **more, "responses": responses}}


def _events() -> dict[str, Any]:
    fields = {name: {"type": "string"} for name in ("id", "event", "data")}
    event = {"type": "object", "description": "Of each event; `data` is JSON.", "properties": fields}
    return {"description": "The events.", "content": {"text/event-stream": {"schema": event}}}


def _errors() -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code, (status, *_) in CODES.items():
        if code not in NEVER_ANSWERED:
            by_status.setdefault(status, []).append(code)
    return {str(status): _content(", ".join(codes), "Response") for status, codes in sorted(by_status.items())}


def _paths() -> dict[str, Any]:
    command = {
        "operationId": "command",
        "summary": "Do one command, or a batch of them.",
        "requestBody": {"required": True, "content": _media({"anyOf": [_ref("Request"), _ref("Batch")]})},
        "responses": {
            "200": {
                "description": "The answer.",
                "content": _media({"anyOf": [_ref("Response"), _ref("BatchResponse")]}),
            },
            **_errors(),
        },
    }
    cancel = {
        "operationId": "cancel",
        "summary": "Withdraw a request.",
        "parameters": [{"name": "request_id", "in": "query", "required": True, "schema": _NUMBERED}],
        "responses": {"200": _content("It is taken back.", "Response"), **_errors()},
    }
    query = [
        {"name": "room", "in": "query", "required": True, "schema": _NAME},
        {"name": "from_offset", "in": "query", "schema": _OFFSET},
        {"name": "replay", "in": "query", "schema": {"type": "boolean"}},
        {"name": "name", "in": "query", "schema": _NAME},
        {"name": "Last-Event-ID", "in": "header", "schema": _OFFSET},
    ]
    upgrade = {"426": _content("An Upgrade is needed.", "Response")}
    error = {"default": {"$ref": "#/components/responses/Error"}}
    return {
        "/api/v1/command": {"post": command, "delete": cancel},
        "/api/v1/stream/subscribe": _get(
            "subscribe",
            "A room as server-sent events; `id:` is the offset, after which `Last-Event-ID` continues.",
            {"200": _events(), **error},
            parameters=query,
        ),
        "/api/v1/ws": _get(
            "websocket",
            "The same messages over a WebSocket, and pushes.",
            {"101": {"description": "A WebSocket."}, **upgrade, **error},
        ),
        "/api/v1/native": _get(
            "native", "The native lane, see docs/protocol.md.", {"101": {"description": "Frames."}, **upgrade, **error}
        ),
        "/api/v1/admin/backup": _get(
            "backup",
            "A consistent copy of the data, for admins.",
            {"200": _plain("The copy.", "application/octet-stream"), **error},
        ),
        "/health": _get(
            "health",
            "The state of the service; needs no key.",
            {
                "200": _plain("It serves.", "application/json", "object"),
                "503": _plain("It is degraded or draining.", "application/json", "object"),
            },
            security=[],
        ),
        "/metrics": _get("metrics", "Figures for Prometheus.", {"200": _plain("The figures.", "text/plain"), **error}),
    }
