"""Whatever is given for an option or an argument: it is taken, or refused with an error of ours."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from synap import AsyncSynapClient, ClientConfig, SynapClient, SynapError

ODD: List[Any] = [
    *(None, True, 0, -1, 1.5, math.nan, math.inf, -math.inf, 10**30, 1j),
    *("", "x", "\ud800", "a\x00b", " k ", "\n", "http://[", "x" * 3000, b"b"),
    *([], [1], (1,), {}, {"a": object()}, set(), object(), type, lambda: 1),
]
USUAL: Dict[str, Any] = {
    "callback": print,
    "topics": ["t"],
    "queues": ["q"],
    "keys": ["k"],
    "timeout": 0,
    "commands": [],
}
"""Values for the other arguments of a method, by name; a text where nothing is said."""
GROUPS = ("kv", "queue", "stream", "pubsub", "client")
OPTIONS = [field.name for field in dataclasses.fields(ClientConfig)]


def arguments(method: Callable[..., Any]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Give what to call a method with: each of its arguments odd in each way, the others as they should be."""
    parameters = inspect.signature(method).parameters.values()
    named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    for odd in named:
        for value in ODD:
            given = {
                one.name: USUAL.get(one.name, "x")
                for one in named
                if one.default is inspect.Parameter.empty or one.name in USUAL
            }
            yield odd.name, {**given, odd.name: value}


def methods(client: Any, group: str) -> List[Tuple[str, Callable[..., Any]]]:
    if group == "client":
        return [(name, getattr(client, name)) for name in ("batch", "lock", "pipeline")]
    found = inspect.getmembers(getattr(client, group), callable)
    return [(name, method) for name, method in found if not name.startswith("_")]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_an_option_is_taken_or_refused_by_us(option: str, value: Any) -> None:
    for make in (ClientConfig, SynapClient):
        try:
            made: Any = make(**{"url": "memory://", option: value})
        except SynapError:
            continue
        if make is SynapClient:
            made.close()


@pytest.mark.parametrize("group", GROUPS)
def test_an_argument_of_the_sync_client_is_taken_or_refused_by_us(group: str) -> None:
    with SynapClient(url="memory://") as client:
        for method, call in methods(client, group):
            for name, given in arguments(call):
                try:
                    answer = call(**given)
                except SynapError:
                    continue
                except BaseException as error:
                    raise AssertionError(f"{group}.{method}: {name}={given[name]!r:.40}") from error
                if hasattr(answer, "unsubscribe"):
                    answer.unsubscribe()


@pytest.mark.parametrize("group", GROUPS)
async def test_an_argument_of_the_async_client_is_taken_or_refused_by_us(group: str) -> None:
    async with AsyncSynapClient(url="memory://") as client:
        for method, call in methods(client, group):
            for name, given in arguments(call):
                try:
                    answer = call(**given)
                    if inspect.isawaitable(answer):
                        answer = await answer
                except SynapError:
                    continue
                except BaseException as error:
                    raise AssertionError(f"{group}.{method}: {name}={given[name]!r:.40}") from error
                if hasattr(answer, "unsubscribe"):
                    await answer.unsubscribe()


@pytest.mark.parametrize("name", ["a\x00b", "a%00b", "\ud800"])
def test_a_file_url_that_can_name_no_directory_is_refused(name: str) -> None:
    for make in (SynapClient, AsyncSynapClient):
        with pytest.raises(SynapError, match="the name of a directory") as caught:
            make(url=f"file:///tmp/{name}")
        assert caught.value.code == "INVALID_REQUEST"
