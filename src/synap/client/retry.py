"""When to try again, and after how long.

The pause before the n-th further attempt is `retry_delay * retry_backoff ** (n - 1)`, at most `retry_max_delay`,
shortened at random by up to half, so that clients that failed together don't come back together ("equal jitter").
Where the service says how long to wait (`retry_after`), it is at least that; where that is more than
`retry_max_delay` the error goes to the caller, who knows better whether to wait so long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Optional

from synap.commands import Command
from synap.config import ClientConfig
from synap.errors import SynapError

__all__ = ["TRANSIENT", "RetryPolicy"]

TRANSIENT = frozenset({"CONNECTION_FAILED", "CONNECTION_LOST", "RATE_LIMIT_EXCEEDED", "SERVICE_UNAVAILABLE"})
"""Codes of failures that may be over in a moment. `TIMEOUT` isn't one: the time the caller gave is used up."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after what pauses, a request is tried again. Times are seconds."""

    retries: int
    delay: float
    backoff: float
    max_delay: float
    chance: Callable[[], float] = random.random
    """Gives numbers from 0 up to 1."""

    @classmethod
    def of(cls, config: ClientConfig) -> RetryPolicy:
        """Return the policy that a configuration describes."""
        return cls(config.retries, config.retry_delay, config.retry_backoff, config.retry_max_delay)

    def pause(self, error: SynapError, attempt: int) -> Optional[float]:
        """Return the seconds to wait before further attempt number `attempt` (from 0); None: there is none."""
        if attempt >= self.retries or not is_transient(error):
            return None
        after = retry_after(error)
        return None if after > self.max_delay else max(self.backed_off(attempt), after)

    def backed_off(self, attempt: int) -> float:
        """Return the pause before further attempt number `attempt` (from 0), however many are allowed."""
        try:
            longest = min(self.delay * self.backoff**attempt, self.max_delay)
        except OverflowError:
            longest = self.max_delay
        return longest * (1 - self.chance() / 2)


def is_transient(error: SynapError) -> bool:
    """Return whether the same request may succeed in a moment."""
    return error.code in TRANSIENT and not error.details.get("closed")


def retry_after(error: SynapError) -> float:
    """Return the seconds that the service asks to wait, 0 where it says nothing."""
    seconds = error.details.get("retry_after")
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else 0.0


def is_repeatable(command: Command, error: SynapError) -> bool:
    """Return whether repeating `command` after `error` can't make it take effect twice.

    Writes that are kept are numbered and remembered by the service. A topic message is kept nowhere: where it may have
    gone out, it is not sent again.
    """
    return command.writes or not (error.may_have_happened and command.has_effects)
