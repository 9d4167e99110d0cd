"""Bugs planted in the engine."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "redrive counts only ready messages against max_depth",
        "engine/queues.py",
        "room = queue.config.max_depth - queue.depth",
        "room = queue.config.max_depth - queue.ready",
        "tests/engine/test_queues.py",
    ),
    Seed(
        "a lagging subscriber skips kept events behind retention",
        "engine/streams.py",
        "start = max(subscription.next, room.oldest)",
        "start = subscription.next if subscription.next >= room.oldest else room.next - 2",
        "tests/engine/test_streams.py",
    ),
    Seed(
        "a batch of acks alone is not remembered",
        "engine/engine.py",
        "outcome.error is None and self._table[type(item)][1] != _READ",
        "outcome.error is None and self._table[type(item)][1] == _WRITE",
        "tests/engine/test_repeats.py",
    ),
    Seed(
        "a consume sent again gives a lease that another holds",
        "engine/replies.py",
        "if message is None or message.lease != self.lease:",
        "if message is None:",
        "tests/engine/test_repeats.py",
    ),
)
