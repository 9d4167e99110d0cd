"""Native frames inside a WebSocket, for proxies that refuse the upgrade to `synap/1` and pass WebSockets."""

from synap.lanes.websocket.framing import WebSocketOpening

__all__ = ["WebSocketOpening"]
