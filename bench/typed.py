"""What typed values cost: `python -m bench.typed`, on `memory://`, where nothing hides it.

Beside `get` stands one of the same body without a line for `type=`; and beside plain dictionaries, objects of a
dataclass that are lowered to them and built of them. All take short slices in turn. Each figure is the least of its
slices: what else the machine does only ever adds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List

import click

from synap import SynapClient
from synap import commands as c
from synap.client.checks import text
from synap.errors import KeyNotFoundError
from synap.results import GetResult

__all__ = ["costs"]

SLICE = 100
"""Calls of one slice."""


@dataclass
class User:
    """What is stored."""

    name: str
    age: int
    tags: List[str] = field(default_factory=list)


def get_without(kv: Any, key: str, required: bool = False) -> Any:
    """`client.kv.get` as it would be without typed values."""
    if key.__class__ is not str:
        key = text("key", key)
    result: GetResult = kv._call(c.KV_GET, c.KvGet(key))
    if required and not result.found:
        raise KeyNotFoundError("KEY_NOT_FOUND", f"there is no key {key!r}", {"key": key})
    return result


def costs(slices: int) -> Dict[str, float]:
    """Return the microseconds of one call of each kind."""
    user = User("Alice", 36, ["admin", "staff"])
    plain = {"name": "Alice", "age": 36, "tags": ["admin", "staff"]}
    with SynapClient(url="memory://") as client:
        kv = client.kv
        kv.set("user", plain)
        calls: Dict[str, Callable[[], object]] = {
            "get, without a line for it": lambda: get_without(kv, "user"),
            "get": lambda: kv.get("user"),
            "get, type=User": lambda: kv.get("user", type=User),
            "set of a dictionary": lambda: kv.set("other", plain),
            "set of a User": lambda: kv.set("other", user),
        }
        least = dict.fromkeys(calls, float("inf"))
        for _ in range(slices):
            for name, call in calls.items():
                began = time.perf_counter()
                for _ in range(SLICE):
                    call()
                least[name] = min(least[name], time.perf_counter() - began)
    return {name: seconds / SLICE * 1e6 for name, seconds in least.items()}


@click.command(help="What typed values cost on memory://, used and unused.")
@click.option("--slices", default=2000, show_default=True, type=click.IntRange(1), help="Slices of each kind.")
def main(slices: int) -> None:
    """Print the microseconds of one call of each kind."""
    for name, cost in costs(slices).items():
        click.echo(f"{name:28} {cost:6.2f} µs")


if __name__ == "__main__":
    main()
