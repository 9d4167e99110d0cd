"""A file of keys with grants, and connections that use them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synap.errors import SynapError
from synap.server import keyfile
from synap.server.grants import Quota
from synap.testing.server import ThrowawayServer
from tests.helpers.raw import Http

NONE = Quota()
GRANTS = {
    "orders": [
        "queue:*:orders*",
        "kv:read:price:*",
        "stream:*:chat-*",
        "pubsub:read:news.#",
        "pubsub:write:news.sport",
    ],
    "worker": ["queue:consume:orders"],
    "reader": ["kv:read:user:*", "queue:read:*"],
    "ops": ["*:*:*", "admin"],
}


class File:
    """A file of keys, and the keys."""

    def __init__(self, path: Path, grants: dict[str, list[str]] = GRANTS, **quotas: Quota) -> None:
        self.path = path
        self.keys: dict[str, str] = {}
        for name, texts in grants.items():
            self.add(name, texts, quotas.get(name, NONE))

    def add(self, name: str, grants: list[str], quota: Quota = NONE) -> None:
        self.keys[name] = self.keys.get(name) or keyfile.new_key()
        keyfile.add(self.path, name, self.keys[name], grants, quota)

    def change(self, name: str, grants: list[str], quota: Quota = NONE) -> None:
        """Replace a key's grants in one step: a service reads the file whenever it has changed."""
        changed = self.path.with_name("changed.toml")
        shutil.copy(self.path, changed)
        keyfile.remove(changed, name)
        keyfile.add(changed, name, self.keys[name], grants, quota)
        changed.replace(self.path)


_spoken: list[Http] = []


def speak(server: ThrowawayServer, key: str | None = None) -> Http:
    """Open a keep-alive connection that ends with the test, in folders that have the fixture `hang_up`."""
    _spoken.append(Http(server) if key is None else Http(server, X_API_Key=key))
    return _spoken[-1]


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Close the connections of `speak`."""
    yield
    while _spoken:
        _spoken.pop().close()


def refused(call: Callable[[], Any]) -> SynapError:
    with pytest.raises(SynapError) as caught:
        call()
    assert caught.value.code == "FORBIDDEN", caught.value
    return caught.value
