"""The synchronous client in an asynchronous coat, so that one test body serves both colours."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, AsyncIterator, Callable, cast

from synap import AsyncSynapClient, SynapClient

THREADS = ThreadPoolExecutor(64, thread_name_prefix="sync-client")
"""Where the synchronous client's calls run. Shared by the whole run; its threads end with the process."""

_END = object()


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a blocking function on a thread and wait for it."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(THREADS, lambda: function(*args, **kwargs))


class _Coat:
    """Anything synchronous: its methods become coroutine functions, what is no method stays what it is."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "pipeline":
            return lambda **options: _BlockCoat(found(**options))
        if name == "lock":
            return lambda *args, **options: _LockCoat(found(*args, **options))
        if not inspect.ismethod(found) or name == "on":
            return _Coat(found) if name in ("kv", "queue", "stream", "pubsub") else found

        async def call(*args: Any, **kwargs: Any) -> Any:
            outcome = await in_thread(found, *args, **kwargs)
            return _SubscriptionCoat(outcome) if hasattr(outcome, "unsubscribe") else outcome

        return call

    def __repr__(self) -> str:
        return repr(self._inner)

    async def __aenter__(self) -> _Coat:
        await in_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await in_thread(self._inner.__exit__, *error)


class _BlockCoat:
    """A context manager whose beginning and end block; what it gives is the same in both colours."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aenter__(self) -> Any:
        return await in_thread(self._inner.__enter__)

    async def __aexit__(self, *error: Any) -> Any:
        return await in_thread(self._inner.__exit__, *error)


class _LockCoat(_Coat):
    async def __aenter__(self) -> _Coat:
        await in_thread(self._inner.__enter__)
        return self


class _SubscriptionCoat(_Coat):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items()

    async def _items(self) -> AsyncIterator[Any]:
        iterator = iter(self._inner)
        while True:
            item = await in_thread(next, iterator, _END)
            if item is _END:
                return
            yield item


def coated(client: SynapClient) -> AsyncSynapClient:
    """Make a synchronous client look like the asynchronous one."""
    return cast(AsyncSynapClient, _Coat(client))


__all__ = ["coated", "in_thread"]
