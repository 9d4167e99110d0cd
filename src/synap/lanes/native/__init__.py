"""The native lane, async and sync. The two are written apart on purpose: many calls on one connection, and one call on
a connection of a small pool, are different programs. What the frames mean is in `synap.wire.conversation`, once.
"""
