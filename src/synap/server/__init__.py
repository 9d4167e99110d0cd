"""The service: one port that speaks HTTP, WebSocket, server-sent events and the native lane. Python 3.10 and newer.

`settings` lists its options, `run` assembles and runs it, `drain` stops it, `service` is the state all lanes share.
`sniff` detects the protocol of a connection and hands it to `native`, or to uvicorn (`uvicorn_glue`), which calls
`app`, which calls `websocket` and `sse`.
"""
