"""The retry policy: when to try again, and after which pause.

The pause before the n-th further attempt is `retry_delay * retry_backoff ** (n - 1)`, at most `retry_max_delay`,
shortened at random by up to half ("equal jitter"), so that clients that failed together don't retry together. It is at
least what the service asks for (`retry_after`); where that is more than `retry_max_delay` the error is raised, and the
caller decides whether to wait so long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Optional

from synap.commands import Command
from synap.config import ClientConfig
from synap.errors import ConnectionError, SynapError

TRANSIENT = frozenset({"CONNECTION_FAILED", "CONNECTION_LOST", "RATE_LIMIT_EXCEEDED", "SERVICE_UNAVAILABLE"})
"""Codes of transient failures. `TIMEOUT` isn't one: the caller's time is used up."""
UNDECIDED = frozenset(
    {
        "UNAUTHORIZED",
        "FORBIDDEN",
        "INVALID_COMMAND",
        "INVALID_REQUEST",
        "PAYLOAD_TOO_LARGE",
        "MEMORY_LIMIT",
        "INTERNAL_ERROR",
    }
)
"""Codes of final refusals that may come before anybody has looked whether an earlier attempt was executed."""


LONGEST = 1_000_000.0
"""Seconds that a service may ask to wait: what counts as more is no time that anybody waits for, such as infinity."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which pauses, a request is retried."""

    config: ClientConfig
    chance: Callable[[], float] = random.random
    """Returns random numbers from 0 to 1."""

    def pause(self, error: SynapError, attempt: int, free: int = 0) -> Optional[float]:
        """Return the seconds to wait before further attempt number `attempt` (from 0); None: there is none.

        `free`: how many beside those another's connection brought about.
        """
        if attempt >= self.config.retries or not is_transient(error):
            return None
        after = retry_after(error)
        return None if after > self.config.retry_max_delay else max(self.backed_off(attempt + free), after)

    def backed_off(self, attempt: int) -> float:
        """Return the pause before further attempt number `attempt` (from 0), however many are allowed."""
        config = self.config
        try:
            longest = min(config.retry_delay * config.retry_backoff**attempt, config.retry_max_delay)
        except OverflowError:
            longest = config.retry_max_delay
        return longest * (1 - self.chance() / 2)


def is_transient(error: SynapError) -> bool:
    """Return whether the same request may succeed in a moment."""
    return error.code in TRANSIENT and not error.details.get("closed")


def leaves_doubt(error: SynapError) -> bool:
    """Return whether `error` says nothing of the earlier attempts at its request."""
    return isinstance(error, ConnectionError) or error.code in TRANSIENT or error.code in UNDECIDED


def retry_after(error: SynapError) -> float:
    """Return the seconds that the service asks to wait; 0 where it doesn't."""
    seconds = error.details.get("retry_after")
    return float(min(seconds, LONGEST)) if isinstance(seconds, (int, float)) and seconds > 0 else 0.0


def is_repeatable(command: Command, error: SynapError) -> bool:
    """Return whether repeating `command` after `error` can't make it take effect twice.

    The service deduplicates writes by their numbers. A topic message is not stored: where it may have been delivered,
    it is not sent again.
    """
    return command.writes or not (error.may_have_happened and command.has_effects)
