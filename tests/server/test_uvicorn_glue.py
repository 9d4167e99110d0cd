"""What `uvicorn_glue` relies on inside uvicorn is as it was when that was written."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Callable, Dict, List, Tuple

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from synap.server import drain, pinging_websocket, uvicorn_glue

PROTOCOL = "config, server_state, app_state, _loop"
METHODS: Dict[type, Dict[str, str]] = {
    uvicorn.Server: {
        "__init__": "config",
        "serve": "sockets",
        "startup": "sockets",
        "shutdown": "sockets",
        "on_tick": "counter",
        "capture_signals": "",
    },
    HttpToolsProtocol: {
        "__init__": PROTOCOL,
        "connection_made": "transport",
        "connection_lost": "exc",
        "eof_received": "",
        "data_received": "data",
        "handle_websocket_upgrade": "",
        "on_message_begin": "",
        "on_url": "url",
        "on_header": "name, value",
        "on_headers_complete": "",
        "on_body": "body",
        "on_message_complete": "",
        "on_response_complete": "",
        "send_400_response": "msg",
        "shutdown": "",
        "_should_upgrade": "",
        "_unset_keepalive_if_required": "",
    },
    WebSocketsSansIOProtocol: {
        "__init__": PROTOCOL,
        "data_received": "data",
        "connection_lost": "exc",
        "eof_received": "",
        "receive": "",
        "run_asgi": "",
        "send": "message",
        "handle_connect": "event",
        "handle_ping": "",
        "handle_text": "event",
        "handle_bytes": "event",
        "handle_cont": "event",
        "handle_pong": "event",
        "handle_parser_exception": "",
        "keepalive_timeout": "",
        "send_keepalive_ping": "",
        "shutdown": "",
    },
}
"""The methods that are overridden, called or replaced, and their parameters."""

HTTP = "app_state config cycle flow headers loop parser pipeline server_state transport"
WEBSOCKET = "app_state close_sent config conn disconnected frames loop pong_timer queue read_paused transport writable"


def told(what: str) -> str:
    return (
        f"uvicorn {uvicorn.__version__}: {what}. src/synap/server/uvicorn_glue.py relies on that: "
        "read it against this version before the bound in pyproject.toml is moved"
    )


def methods() -> List[Tuple[type, str]]:
    return [(owner, name) for owner, names in METHODS.items() for name in names]


@pytest.mark.parametrize(("owner", "name"), methods(), ids=lambda part: getattr(part, "__name__", part))
def test_a_method_of_uvicorn_is_there_and_takes_what_it_took(owner: type, name: str) -> None:
    method = getattr(owner, name, None)
    assert method is not None, told(f"{owner.__name__} has no method {name}() any more")
    _, *parameters = inspect.signature(method).parameters
    expected = METHODS[owner][name]
    assert ", ".join(parameters) == expected, told(f"{owner.__name__}.{name}() took ({expected})")


@pytest.mark.parametrize(("make", "names"), [(HttpToolsProtocol, HTTP), (WebSocketsSansIOProtocol, WEBSOCKET)])
def test_the_attributes_of_uvicorn_s_protocols_are_there(make: Callable[..., Any], names: str) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        """Answer nothing."""

    async def missing() -> List[str]:
        protocol = make(uvicorn.Config(nothing, log_config=None), ServerState(), {})
        return [name for name in names.split() if not hasattr(protocol, name)]

    lost = asyncio.run(missing())
    assert not lost, told(f"{make.__name__} has no {', '.join(lost)} any more")


def test_the_state_of_uvicorn_s_server_is_there() -> None:
    server = uvicorn.Server(uvicorn.Config(lambda: None, log_config=None))
    for owner, name, kind in [
        (server, "should_exit", bool),
        (server, "started", bool),
        (server.server_state, "connections", set),
        (server.server_state, "tasks", set),
    ]:
        assert isinstance(getattr(owner, name, None), kind), told(f"{name} was a {kind.__name__}")
    assert "self.lifespan.state" in inspect.getsource(uvicorn.Server.startup), told("startup() hands on lifespan.state")
    assert "self.servers" in inspect.getsource(uvicorn.Server.shutdown), told("the listening servers are in .servers")


def test_everything_overridden_is_named_here() -> None:
    """Whoever overrides another method of uvicorn adds it above."""
    for glued in (drain.Server, uvicorn_glue.PlainHttp, pinging_websocket.PingingWebSocket):
        base = glued.__mro__[1]
        overridden = {name for name, what in vars(glued).items() if inspect.isfunction(what) and hasattr(base, name)}
        assert overridden - set(METHODS[base]) == set(), glued.__name__
