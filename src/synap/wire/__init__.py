"""Bytes to messages and back, without I/O.

`values`: which values can be stored, and as which bytes; `codec`: payloads and answers in JSON and MessagePack;
`envelope`: the messages of HTTP and WebSocket; `frames`: those of the native lane; `handshake`: how it begins;
`conversation`: the client's side of a native connection.
"""
