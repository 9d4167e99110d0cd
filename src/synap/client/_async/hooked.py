"""Calls and deliveries wrapped in hooks, for clients that were made while hooks were registered."""

from __future__ import annotations

from typing import Any, Callable, Tuple

from synap.client.handlers import async_finish
from synap.client.hooks import Call, Delivery, Hook, entered
from synap.commands import Command
from synap.config import Target


def async_hooked_call(call: Callable[..., Any], target: Target, hooks: Tuple[Hook, ...]) -> Callable[..., Any]:
    """Wrap `AsyncCalls.call` in hooks."""

    async def hooked(command: Command, payload: Any, wait: float = 0) -> Any:
        about = Call(command.name, payload, target)
        with entered(hooks, about):
            about.result = await call(command, payload, wait)
        return about.result

    return hooked


def async_hooked_delivery(
    give: Callable[[Any], Any], room: str, target: Target, hooks: Tuple[Hook, ...]
) -> Callable[[Any], Any]:
    """Wrap the delivery of an item to a callback, which it awaits, in hooks."""

    async def hooked(item: Any) -> None:
        with entered(hooks, Delivery(item, room, target)):
            outcome = give(item)
            if outcome is not None:
                await async_finish(outcome)

    return hooked
