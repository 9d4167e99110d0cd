"""Calls and deliveries with hooks around them, for clients made while there are hooks."""

from __future__ import annotations

from typing import Any, Callable, Tuple

from synap.client.handlers import async_finish
from synap.client.hooks import Call, Delivery, Hook, entered
from synap.commands import Command
from synap.config import Target

__all__ = ["async_hooked_call", "async_hooked_delivery"]


def async_hooked_call(call: Callable[..., Any], target: Target, hooks: Tuple[Hook, ...]) -> Callable[..., Any]:
    """Return `AsyncCalls.call` with hooks around it."""

    async def hooked(command: Command, payload: Any, wait: float = 0) -> Any:
        about = Call(command.name, payload, target)
        with entered(hooks, about):
            about.result = await call(command, payload, wait)
        return about.result

    return hooked


def async_hooked_delivery(
    give: Callable[[Any], Any], room: str, target: Target, hooks: Tuple[Hook, ...]
) -> Callable[[Any], Any]:
    """Return what hands an item to a callback, to its end, with hooks around it."""

    async def hooked(item: Any) -> None:
        with entered(hooks, Delivery(item, room, target)):
            outcome = give(item)
            if outcome is not None:
                await async_finish(outcome)

    return hooked
