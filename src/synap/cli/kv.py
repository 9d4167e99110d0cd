"""`synap kv`: keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence

import click
from msgspec import UNSET

from synap.cli.command import Group
from synap.cli.connection import Connection, connects
from synap.cli.documents import emit, emit_names, need_output, parse, read_value
from synap.cli.exits import negative, usage

if TYPE_CHECKING:
    from synap import SynapClient

MISSING = "The key does not exist."
PAGE = 1000


@click.group("kv", cls=Group, examples=["synap kv set greeting hello", "synap kv get greeting", "synap kv scan user:"])
def kv() -> None:
    """Keys and values."""


@kv.command(
    "set",
    examples=[
        'synap kv set user:1 \'{"name": "Alice"}\' --ttl 3600',
        "synap kv set zip 01234 --string",
        "synap kv set lock:report true --nx --ttl 60 && ./report",
        "synap kv set logo - --binary < logo.png",
    ],
    negative="--nx, --xx or --if-value did not hold; nothing was stored.",
)
@connects
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=int, metavar="SECONDS", help="Let the key expire.")
@click.option("--nx", is_flag=True, help="Only if the key does not exist.")
@click.option("--xx", is_flag=True, help="Only if the key exists.")
@click.option("--if-value", metavar="VALUE", help="Only if the key holds exactly this value.")
@click.option("--keep-ttl", is_flag=True, help="Keep the key's remaining ttl.")
@click.option("--string", is_flag=True, help="Take the value as text, also where it is JSON.")
@click.option("--binary", is_flag=True, help="Take the value as bytes.")
def set_(
    connection: Connection,
    key: str,
    value: str,
    ttl: Optional[int],
    nx: bool,
    xx: bool,
    if_value: Optional[str],
    keep_ttl: bool,
    string: bool,
    binary: bool,
) -> None:
    """Store VALUE under KEY (- reads it from stdin)."""
    thing = read_value(value, string=string, binary=binary)
    with connection.open(binary=binary) as client:
        known: Any = UNSET if if_value is None else read_value(if_value, string=string, binary=binary)
        result = client.kv.set(key, thing, ttl=ttl, nx=nx, xx=xx, if_value=known, keep_ttl=keep_ttl)
    emit(result, connection.pretty)
    if not result.success:
        why = "holds another value" if if_value is not None else "exists already" if nx else "does not exist"
        raise negative("CONDITION_FAILED", f"{key!r} {why}; nothing was stored")


@kv.command(
    "get",
    examples=[
        "synap kv get user:1",
        "synap kv get greeting --raw",
        "synap kv get user:1 --full",
        "synap kv get user:1 | jq .name",
    ],
    negative=MISSING,
)
@connects
@click.argument("key")
@click.option("--raw", is_flag=True, help="Print text without quotes, and bytes as they are.")
@click.option("--full", is_flag=True, help="Print found, value and ttl, also where there is no such key.")
def get(connection: Connection, key: str, raw: bool, full: bool) -> None:
    """Print the value of KEY."""
    with connection.open(binary=raw) as client:
        result = client.kv.get(key)
    if full:
        emit(result, connection.pretty)
    elif result.found:
        emit(result.value, connection.pretty, raw=raw)
    if not result.found:
        raise negative("KEY_NOT_FOUND", f"there is no key {key!r}")


@kv.command(
    "del", examples=["synap kv del user:1", "synap kv del user:1 user:2 user:3"], negative="None of the keys existed."
)
@connects
@click.argument("keys", nargs=-1, required=True)
def delete(connection: Connection, keys: Sequence[str]) -> None:
    """Delete KEYS and print how many there were."""
    with connection.open() as client:
        deleted = client.kv.delete(*keys)
    emit(deleted, connection.pretty)
    if not deleted:
        raise negative(
            "KEY_NOT_FOUND", "none of these keys exists" if len(keys) > 1 else f"there is no key {keys[0]!r}"
        )


@kv.command("clear", examples=["synap kv clear session:"])
@connects
@click.argument("prefix")
def clear(connection: Connection, prefix: str) -> None:
    """Delete all keys that begin with PREFIX ('' is every key), and print how many there were."""
    with connection.open() as client:
        emit({"deleted": client.kv.clear(prefix)}, connection.pretty)


@kv.command("incr", examples=["synap kv incr article:123:views", "synap kv incr counter --amount 5"])
@connects
@click.argument("key")
@click.option("--amount", type=int, metavar="N", default=1, show_default=True, help="How much to add.")
def incr(connection: Connection, key: str, amount: int) -> None:
    """Add to the number under KEY, which starts at 0, and print it."""
    with connection.open() as client:
        emit(client.kv.incr(key, amount), connection.pretty)


@kv.command("decr", examples=["synap kv decr inventory:item:42", "synap kv decr credit --amount 10"])
@connects
@click.argument("key")
@click.option("--amount", type=int, metavar="N", default=1, show_default=True, help="How much to subtract.")
def decr(connection: Connection, key: str, amount: int) -> None:
    """Subtract from the number under KEY, which starts at 0, and print it."""
    with connection.open() as client:
        emit(client.kv.decr(key, amount), connection.pretty)


@kv.command("exists", examples=["synap kv exists user:1 && echo yes"], negative=MISSING)
@connects
@click.argument("key")
def exists(connection: Connection, key: str) -> int:
    """Print whether KEY exists, and exit accordingly."""
    with connection.open() as client:
        there = client.kv.exists(key)
    emit(there, connection.pretty)
    return 0 if there else 1


@kv.command("ttl", examples=["synap kv ttl session:abc"], negative=MISSING)
@connects
@click.argument("key")
def ttl(connection: Connection, key: str) -> None:
    """Print the seconds until KEY expires; null if it does not."""
    with connection.open() as client:
        emit(client.kv.ttl(key), connection.pretty)


@kv.command("expire", examples=["synap kv expire session:abc 600"], negative=MISSING)
@connects
@click.argument("key")
@click.argument("seconds", type=int)
def expire(connection: Connection, key: str, seconds: int) -> None:
    """Set KEY to expire in SECONDS."""
    with connection.open() as client:
        client.kv.expire(key, seconds)


@kv.command("persist", examples=["synap kv persist session:abc"], negative=MISSING)
@connects
@click.argument("key")
def persist(connection: Connection, key: str) -> None:
    """Remove the expiry of KEY."""
    with connection.open() as client:
        client.kv.persist(key)


@kv.command(
    "mset", examples=["synap kv mset user:1=Alice user:2=Bob", 'echo \'{"a": 1, "b": [2]}\' | synap kv mset - --ttl 60']
)
@connects
@click.argument("given", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.option("--ttl", type=int, metavar="SECONDS", help="Let all of them expire.")
@click.option("--string", is_flag=True, help="Take the values as text, also where they are JSON.")
def mset(connection: Connection, given: Sequence[str], ttl: Optional[int], string: bool) -> None:
    """Store several pairs, all of them or none (- reads a JSON object from stdin)."""
    mapping: Dict[str, object] = {}
    if list(given) == ["-"]:
        document = read_value("-")
        if not isinstance(document, dict):
            raise usage("stdin must hold one JSON object, whose names are the keys")
        mapping = document
    else:
        for pair in given:
            key, separator, value = pair.partition("=")
            if not separator:
                raise usage(f"pairs must be KEY=VALUE, got {pair!r}")
            mapping[key] = value if string else parse(value)
    with connection.open() as client:
        client.kv.mset(mapping, ttl=ttl)


@kv.command(
    "mget",
    examples=["synap kv mget user:1 user:2", "synap kv mget a b | jq -c 'select(.found)'"],
    negative="None of the keys exists.",
)
@connects
@click.argument("keys", nargs=-1, required=True)
def mget(connection: Connection, keys: Sequence[str]) -> None:
    """Print key, found, value and ttl of each of KEYS."""
    with connection.open() as client:
        found = client.kv.mget(*keys)
    for key, result in zip(keys, found):
        emit({"key": key, "found": result.found, "value": result.value, "ttl": result.ttl}, connection.pretty)
    if not any(result.found for result in found):
        raise negative("KEY_NOT_FOUND", "none of these keys exists")


@kv.command(
    "scan",
    examples=[
        "synap kv scan",
        "synap kv scan user: --limit 10",
        "synap kv scan user: --values",
        "synap kv scan --raw | wc -l",
    ],
)
@connects
@click.argument("prefix", required=False)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Print at most this many.")
@click.option("--values", is_flag=True, help="Print key, value and ttl.")
@click.option("--raw", is_flag=True, help="Print keys without quotes.")
def scan(connection: Connection, prefix: Optional[str], limit: Optional[int], values: bool, raw: bool) -> None:
    """Print all keys, or those that begin with PREFIX, each once."""
    if values and raw:
        raise usage("--values and --raw don't go together")
    need_output()
    with connection.open() as client:
        for keys in pages(client, prefix, limit):
            if values:
                for key, result in zip(keys, client.kv.mget(*keys)):
                    if result.found:
                        emit({"key": key, "value": result.value, "ttl": result.ttl}, connection.pretty)
                continue
            emit_names(keys, raw, connection.pretty)


def pages(client: SynapClient, prefix: Optional[str], limit: Optional[int] = None) -> Iterator[List[str]]:
    """Yield pages of keys, none of them empty."""
    cursor: Optional[str] = None
    left = limit
    while left is None or left > 0:
        page = client.kv.scan(prefix=prefix, cursor=cursor, count=PAGE if left is None else min(left, PAGE))
        if page.keys:
            yield page.keys
        if left is not None:
            left -= len(page.keys)
        if not page.has_more:
            return
        cursor = page.cursor
