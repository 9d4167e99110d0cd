"""The state machine behind every lane: key-value, queues, event streams, pub/sub.

No I/O, no clock, no threads, no randomness of its own: time comes in with every call, ids from the generator it is
made with, so one run can be replayed exactly. `engine` dispatches, batches and keeps time; each facility has a file
of its own, `core` is what they share; `replies` remembers answered writes, whose form is in `remembered`; `journal`
records what changed; `callers` is its output.
"""
