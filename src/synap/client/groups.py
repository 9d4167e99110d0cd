"""Descriptors for the groups of a client (`client.kv`, `client.queue`, …).

On an instance a group is an ordinary attribute, made at first access. On the class it is the descriptor itself, and
that of the async client passes for a coroutine function: `unittest.mock.AsyncMock(spec=AsyncSynapClient)` makes
awaitable children only of what looks like one, and `mock.kv.get` has to be awaitable.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from typing import Any, Callable, Generic, Optional, Type, TypeVar, Union, overload

G = TypeVar("G")


class Group(Generic[G]):
    """A group of methods of the sync client: `make` builds it from the client's calls."""

    def __init__(self, make: Callable[[Any], G]) -> None:
        self._make = make
        self._name = ""
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: Type[Any], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: Type[Any]) -> Group[G]: ...

    @overload
    def __get__(self, instance: object, owner: Type[Any]) -> G: ...

    def __get__(self, instance: Optional[Any], owner: Type[Any]) -> Union[Group[G], G]:
        if instance is None:
            return self
        group = self._make(instance._calls)
        instance.__dict__[self._name] = group  # found before this descriptor from now on
        return group


class AsyncGroup(Group[G]):
    """A group of methods of the async client."""

    def __init__(self, make: Callable[[Any], G]) -> None:
        super().__init__(make)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)
        else:
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # not in the stubs
