"""Bytes to messages and back, without I/O.

`values` what may be stored, and as which bytes; `codec` payloads and answers in JSON and MessagePack; `envelope` the
messages of the HTTP and WebSocket lanes; `frames` those of the native lane; `handshake` how the native lane begins.
"""
