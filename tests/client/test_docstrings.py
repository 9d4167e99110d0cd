"""What the methods of a client say of themselves: each argument by name, and what they raise."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, Callable, Dict, List, Tuple

import pytest

import synap
import synap.testing
import synap.worker
from synap import AsyncSynapClient, SynapClient, SynapError
from synap.client._async.kv import AsyncKeyValue
from synap.client._async.lock import Lock
from synap.client._async.pubsub import AsyncPubSub
from synap.client._async.queue import AsyncQueue
from synap.client._async.stream import AsyncStreams
from synap.client._async.subscription import Subscription
from synap.errors import CODES

CLASSES = (AsyncSynapClient, AsyncKeyValue, AsyncQueue, AsyncStreams, AsyncPubSub, Lock, Subscription)
GIVEN: Dict[str, Any] = {
    "ack_deadline": 1,
    "data": 1,
    "event_type": "t",
    "keys": "there is no such thing",
    "mapping": {"k": 1},
    "message": 1,
    "message_id": "1",
    "name": "n",
    "offset": 0,
    "prefix": "p",
    "queues": ["q"],
    "topic": "t",
    "topics": ["t"],
    "ttl": 1,
    "value": 1,
}
"""What a method is called with; what isn't here is the name of something that doesn't exist."""


def methods() -> List[Any]:
    found: List[Any] = []
    for owner in CLASSES:
        for name, method in vars(owner).items():
            if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__"):
                if name == "__init__" and owner is not AsyncSynapClient:
                    continue
                found.append(pytest.param(owner, method, id=f"{owner.__name__}.{name}"))
    return found


@pytest.mark.parametrize(("owner", "method"), methods())
def test_a_docstring_names_each_argument(owner: type, method: Callable[..., Any]) -> None:
    said = inspect.getdoc(method) or ""
    if method.__name__ == "__init__":  # the options of a client are those of `ClientConfig`
        said = inspect.getdoc(synap.ClientConfig) or ""
        said += " `config` `unknown`"
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    missing = [name for name in names if not re.search(rf"`{name}\b", said)]
    assert not missing, f"{owner.__name__}.{method.__name__} says nothing of {', '.join(missing)}"


@pytest.mark.parametrize(("owner", "method"), methods())
def test_a_docstring_names_errors_that_there_are(owner: type, method: Callable[..., Any]) -> None:
    said = inspect.getdoc(method) or ""
    for name in re.findall(r"`(\w+Error)`", said):
        assert issubclass(getattr(synap, name), SynapError)
    for code in re.findall(r"`([A-Z]+_[A-Z_]+)`", said):
        assert code in CODES


def calls() -> List[Tuple[str, str]]:
    groups = {"kv": AsyncKeyValue, "queue": AsyncQueue, "stream": AsyncStreams, "pubsub": AsyncPubSub}
    return [
        (group, name)
        for group, owner in groups.items()
        for name, method in vars(owner).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]


@pytest.mark.parametrize(("group", "name"), calls())
def test_what_is_raised_for_something_that_does_not_exist_is_in_the_docstring(group: str, name: str) -> None:
    with SynapClient("memory://") as client:
        method = getattr(getattr(client, group), name)
        needed = [
            parameter
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is parameter.empty
        ]
        given = [GIVEN.get(parameter.name, "there is no such thing") for parameter in needed]
        raised: List[SynapError] = []
        try:
            method(*given)
        except SynapError as error:
            raised.append(error)
    said = inspect.getdoc(method) or ""
    assert all(f"`{type(error).__name__}`" in said or f"`{error.code}`" in said for error in raised), raised


DURATIONS = re.compile(
    r"timeout|ttl|delay|grace|ack_deadline|seconds|heartbeat|\w+_(delay|deadline|ttl|timeout|secs|seconds)"
)


def public() -> List[Any]:
    """Return the public classes and functions: of the package, of the worker, of the help for tests."""
    found = [getattr(module, name) for module in (synap, synap.worker, synap.testing) for name in module.__all__]
    found += CLASSES
    return sorted(
        {one for one in found if inspect.isclass(one) or inspect.isfunction(one)}, key=lambda one: one.__qualname__
    )


def members() -> List[Any]:
    """Return those functions, and the public methods and properties of those classes."""
    found: List[Any] = []
    for one in public():
        if inspect.isfunction(one):
            found.append(pytest.param(one, id=one.__qualname__))
            continue
        for name, member in vars(one).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and not name.startswith("_"):
                found.append(pytest.param(function, id=f"{one.__module__}.{one.__qualname__}.{name}"))
    return found


@pytest.mark.parametrize("one", [pytest.param(one, id=one.__qualname__) for one in public() if inspect.isclass(one)])
def test_a_public_class_says_what_it_is_and_names_each_field(one: type) -> None:
    said = inspect.getdoc(one) or ""
    assert said
    if not dataclasses.is_dataclass(one) or one is synap.ClientConfig:  # whose fields have docstrings of their own
        return
    names = [field.name for field in dataclasses.fields(one) if field.name in vars(one).get("__annotations__", {})]
    missing = [name for name in names if f"`{name}`" not in said]
    assert not missing, f"{one.__name__} says nothing of {', '.join(missing)}"
    assert "second" in said or not any(DURATIONS.fullmatch(name) for name in names), f"{one.__name__} names no unit"


@pytest.mark.parametrize("member", members())
def test_a_public_method_says_what_it_does_and_the_unit_of_each_duration(member: Callable[..., Any]) -> None:
    said = inspect.getdoc(member) or ""
    assert said
    durations = [name for name in inspect.signature(member).parameters if DURATIONS.fullmatch(name)]
    assert "second" in said or not durations, f"{member.__qualname__} names no unit of {', '.join(durations)}"
