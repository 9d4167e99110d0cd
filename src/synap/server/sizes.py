"""Estimates of the bytes of answers and pushed items, made before they are encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from synap.commands import (
    BatchAnswer,
    EventAnswer,
    Figures,
    GetAnswer,
    HistoryAnswer,
    Item,
    MessageAnswer,
    MGetAnswer,
    QueuesAnswer,
    RoomsAnswer,
    ScanAnswer,
    SetAnswer,
    SubscribedToTopics,
    TopicsAnswer,
)
from synap.errors import SynapError
from synap.wire.frames import MAX_ANSWER

__all__ = ["ESTIMATES", "SMALL", "Weighed", "check_size", "estimate", "too_large", "weigh"]


def check_size(answer: Any) -> None:
    """Refuse an answer that no client would take, before it is built.

    The engine's answers only refer to values, so one that names a large value often is small until it is encoded.
    Raises `PAYLOAD_TOO_LARGE`.
    """
    size = estimate(answer)
    if size > MAX_ANSWER:
        raise too_large(size)


def too_large(size: int) -> SynapError:
    """Build the error for an answer of `size` bytes that can't be sent."""
    error = SynapError(
        "PAYLOAD_TOO_LARGE",
        f"the answer would have about {size:,} bytes, more than {MAX_ANSWER:,}; ask for less at once "
        "(what the request was to change is changed)",
        {"limit": MAX_ANSWER},
    )
    error.may_have_happened = True
    return error


SMALL = 64
"""Bytes that an answer of a kind that is never large is counted as."""


def estimate(answer: Any) -> int:
    """Estimate the bytes of an answer."""
    size = ESTIMATES.get(type(answer))
    return SMALL if size is None else size(answer)


def _texts(texts: list[str]) -> int:
    return 16 * len(texts) + sum(map(len, texts))


def _pairs(texts: dict[str, str]) -> int:
    return _texts(list(texts)) + _texts(list(texts.values())) if texts else 0


def weigh(item: Item) -> int:
    """Estimate the bytes of a pushed item."""
    value = item.data if type(item) is EventAnswer else item.message  # type: ignore[union-attr]
    return 128 + len(value) + (_pairs(item.metadata) if item.metadata else 0)


ESTIMATES: dict[type, Callable[[Any], int]] = {
    GetAnswer: lambda answer: 32 + len(answer.value or b""),
    SetAnswer: lambda answer: SMALL if answer.previous is None else SMALL + len(answer.previous),
    MGetAnswer: lambda answer: SMALL + sum([32 + len(value.value or b"") for value in answer.values]),
    ScanAnswer: lambda answer: SMALL + _texts(answer.keys),
    MessageAnswer: lambda answer: 128 + len(answer.message) + _pairs(answer.headers),
    QueuesAnswer: lambda answer: SMALL + _texts(answer.queues),
    HistoryAnswer: lambda answer: SMALL + sum(map(weigh, answer.events)),
    RoomsAnswer: lambda answer: SMALL + _texts(answer.rooms),
    SubscribedToTopics: lambda answer: SMALL + _texts(answer.topics),
    TopicsAnswer: lambda answer: SMALL + _texts(answer.topics),
    BatchAnswer: lambda answer: SMALL + sum([32 + estimate(outcome.payload) for outcome in answer.results]),
    Figures: lambda answer: 4096,
}
"""Kinds of answers that can be large, and how large one is."""


class Weighed:
    """The last pushed item and its weight: the same item goes to many subscribers."""

    __slots__ = ("item", "weight")

    def __init__(self) -> None:
        self.item: Any = None
        self.weight = 0

    def weigh(self, item: Item) -> int:
        """Weigh an item, and remember it."""
        self.item = item
        self.weight = weigh(item)
        return self.weight
