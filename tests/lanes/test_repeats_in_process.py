"""A consume in this process whose outcome is unknown can be made again, and takes one message."""

from __future__ import annotations

from time import monotonic
from typing import Any

from synap import SynapClient
from synap import commands as c
from synap.errors import SynapError
from tests.helpers.patience import PATIENCE


def test_a_consume_that_may_have_happened_takes_no_second_message() -> None:
    with SynapClient(url="memory://") as client:
        client.queue.publish("q", 1)
        client.queue.publish("q", 2)
        calls: Any = client.kv._call.__self__  # type: ignore[attr-defined]  # a bound method
        lane = calls.lane
        number = lane.ticket()
        unknown = SynapError("SERVICE_UNAVAILABLE", "nobody knows")
        unknown.may_have_happened = True

        def consume() -> Any:
            return lane.call(c.QUEUE_CONSUME, c.QueueConsume("q"), ticket=number, began=monotonic(), timeout=PATIENCE)

        first = consume()
        lane._attachment.failed(number, unknown)
        again = consume()
        assert (again.message_id, again.message) == (first.message_id, first.message)
        assert client.queue.stats("q").pending == 1
