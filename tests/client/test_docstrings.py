"""What the methods of a client say of themselves: each argument by name, and what they raise."""

from __future__ import annotations

import inspect
import re
from typing import Any, Callable, Dict, List, Tuple

import pytest

import synap
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
