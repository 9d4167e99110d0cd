"""Estimates of the bytes of answers and pushed items, made before they are encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from synap.commands import COMMANDS, ITEMS, BatchAnswer, Figures, GetAnswer, Item, SetAnswer
from synap.errors import SynapError
from synap.shapes import SMALL, estimator
from synap.wire.frames import MAX_ANSWER


def too_large(size: int, answer: Any, limit: int = MAX_ANSWER) -> SynapError:
    """Build the error for an answer of `size` bytes that can't be sent, to a read or to a request that was executed.

    The engine's answers only refer to values, so one that has a large value many times is small until it is encoded.
    """
    text = f"the answer would have about {size:,} bytes, more than {limit:,}; ask for less at once"
    return _unsent("PAYLOAD_TOO_LARGE", text, {"limit": limit}, answer)


def no_room(answer: Any) -> SynapError:
    """Build the error for a large answer while too many bytes are in flight."""
    text = "too many bytes are in flight to peers to send an answer that large"
    return _unsent("SERVICE_UNAVAILABLE", text, {"retry_after": 1.0}, answer)


def _unsent(code: str, text: str, details: dict[str, Any], answer: Any) -> SynapError:
    done = type(answer) in _DONE
    error = SynapError(code, text + (" (the request was executed)" if done else ""), details)
    error.may_have_happened = done
    return error


_DONE = {BatchAnswer, *(command.answer for command in COMMANDS.values() if command.has_effects)}
"""Classes of answers to requests with effects."""


def estimate(answer: Any) -> int:
    """Estimate the bytes of an answer or a pushed item."""
    size = ESTIMATES.get(type(answer))
    return SMALL if size is None else size(answer)


def _estimate_batch(batch: BatchAnswer) -> int:
    size = SMALL + (32 + SMALL) * len(batch.results)
    for outcome in batch.results:
        answer = outcome.payload
        kind = type(answer)
        if kind is GetAnswer:  # as in `ESTIMATES`, inlined for the most frequent answers
            size += len(answer.value or b"")
        elif kind is SetAnswer:
            size += len(answer.previous or b"")
        elif kind in ESTIMATES:
            size += ESTIMATES[kind](answer) - SMALL
    return size


ESTIMATES: dict[type, Callable[[Any], int]] = {BatchAnswer: _estimate_batch, Figures: lambda answer: 4096}
"""Estimators for the classes of answers of variable size."""
for _kind in (*(command.answer for command in COMMANDS.values()), *ITEMS):
    _estimate = estimator(_kind)
    if _estimate is not None:
        ESTIMATES.setdefault(_kind, _estimate)


class Weighed:
    """The last pushed item and its size: the same item goes to many subscribers."""

    __slots__ = ("item", "weight")

    def __init__(self) -> None:
        self.item: Any = None
        self.weight = 0

    def weigh(self, item: Item) -> int:
        """Estimate the bytes of an item, and remember it."""
        self.item = item
        self.weight = estimate(item)
        return self.weight
