"""Bugs planted in the worker."""

from __future__ import annotations

from tests.seeded.seed import Seed

SEEDS = (
    Seed(
        "the pause before another try grows without end",
        "worker/handlers.py",
        "return min(self.retry_max_delay, self.retry_delay * self.backoff**exponent)",
        "return self.retry_delay * self.backoff**exponent",
        "tests/worker/test_backoff.py",
    ),
    Seed(
        "intervals count from whenever a worker looks",
        "worker/schedule.py",
        "return number * self.seconds",
        "return moment + self.seconds",
        "tests/worker/test_periodic.py -k intervals",
    ),
    Seed(
        "a cron expression is in UTC whatever time zone is given",
        "worker/schedule.py",
        "self._zone = zone or timezone.utc",
        "self._zone = timezone.utc",
        "tests/worker/test_periodic.py -k cron",
    ),
    Seed(
        "an hour that comes twice counts twice",
        "worker/schedule.py",
        "return instants[:1] or",
        "return instants or",
        "tests/worker/test_periodic.py -k named_hour",
    ),
    Seed(
        "what a handler writes isn't bound to its acknowledgement",
        "worker/settling.py",
        "request = c.BatchRequest([self._ack(message), *items], atomic=True)",
        "request = c.BatchRequest([self._ack(message), *items], atomic=False)",
        "tests/worker/test_pipeline.py",
    ),
    Seed(
        "a settlement that is refused counts as done",
        "worker/settling.py",
        'settlement.done(None if result.status == "success" else error_of(result), result.payload)',
        "settlement.done(None, result.payload)",
        "tests/worker/test_handlers.py -k refused_is_not_done",
    ),
    Seed(
        "draining doesn't wait for what is on its way",
        "worker/settling.py",
        "while self._tasks or self._flushes:",
        "while self._flushes and not self._tasks:",
        "tests/worker/test_handlers.py",
    ),
)
