"""`synap cluster`: check and prepare a Valkey or Redis Cluster before a service uses it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Dict

import click

from synap.cli.command import Command, Group
from synap.cli.connection import Connection, connects_to_cluster
from synap.cli.documents import emit
from synap.cli.exits import NEGATIVE, OK
from synap.cluster.opening import check_hiredis

if TYPE_CHECKING:
    from synap.cluster.checks import NodeState
    from synap.cluster.link import Link


@click.group(
    "cluster",
    cls=Group,
    short_help="Check and prepare a Valkey or Redis Cluster.",
    examples=["synap cluster status valkey://10.0.0.1:6379", "synap cluster init valkey://10.0.0.1:6379,10.0.0.2:6379"],
)
def cluster() -> None:
    """Check and prepare a Valkey or Redis Cluster before a service uses it."""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe how the cluster will be used."""
    for option in (
        click.option("--durability", metavar="none|replicated|synced", help="The durability it is to give."),
        click.option("--replicas", type=int, metavar="N", help="Replicas that must confirm a write."),
        click.option("--space", metavar="TEXT", help="Prefix of all keys."),
    ):
        command = option(command)
    return command


@cluster.command(
    "status",
    cls=Command,
    short_help="Print the state of a cluster, and what a service would refuse or warn of.",
    examples=[
        "synap cluster status valkey://10.0.0.1:6379 --durability synced",
        "synap cluster status valkeys://10.0.0.1 --engine-user me --engine-password-file secret --engine-ca ca.pem",
    ],
    negative="A service would refuse to use it.",
)
@connects_to_cluster
@click.argument("url", metavar="URL")
@options
def status(connection: Connection, url: str, **given: Any) -> int:
    """Print shards, versions, memory, libraries, and the errors and warnings that `synap serve` would give."""
    check_hiredis()
    link, states, refusals, warnings = asyncio.run(_examine(url, _reached(connection, url, given)))
    emit(
        {
            "shards": [_describe(link, state) for state in states if state.primary],
            "durability": link.options.durability,
            "refusals": refusals,
            "warnings": warnings,
        },
        connection.pretty,
    )
    return NEGATIVE if refusals else OK


@cluster.command(
    "init",
    cls=Command,
    short_help="Load the function library, where services may not.",
    examples=["synap cluster init valkey://10.0.0.1:6379 --engine-user admin --engine-password-file secret --prune"],
)
@connects_to_cluster
@click.argument("url", metavar="URL")
@click.option("--prune", is_flag=True, help="Delete the libraries of other releases; none may be in use any more.")
@options
def init(connection: Connection, url: str, prune: bool, **given: Any) -> int:
    """Load this release's function library at all primaries. `synap serve` does so itself where its user may."""
    check_hiredis()
    from synap.cluster.functions import LIBRARY

    asyncio.run(_load(url, _reached(connection, url, given), prune))
    emit({"library": LIBRARY}, connection.pretty)
    return OK


def _reached(connection: Connection, url: str, given: Dict[str, Any]) -> Dict[str, Any]:
    """Return the options of the engine, those of how it is reached included."""
    connection.check(url, "--url", "--timeout")
    return {**given, **(connection.engine(url) or {})}


@asynccontextmanager
async def _link(url: str, given: Dict[str, Any]) -> AsyncIterator[Link]:
    from synap.cluster.link import Link
    from synap.cluster.options import EngineOptions

    link = Link(EngineOptions.read(url, given))
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def _examine(url: str, given: Dict[str, Any]) -> Any:
    from synap.cluster.checks import examine

    async with _link(url, given) as link:
        return (link, *await examine(link, partly=True))


async def _load(url: str, given: Dict[str, Any], prune: bool) -> None:
    from synap.cluster.checks import inspect_node
    from synap.cluster.functions import LIBRARY
    from synap.cluster.topology import converse

    async with _link(url, given) as link:
        for address in link.topology.primaries:
            await link.topology.load(address)
            for library in (await inspect_node(link, address)).libraries:
                if prune and library != LIBRARY:
                    await converse(address, link.options, ("FUNCTION", "DELETE", library))


def _describe(link: Link, state: NodeState) -> Dict[str, Any]:
    shards = [shard for shard in link.topology.shards if shard.primary == state.address]
    return {
        "primary": str(state.address),
        "slots": sum(shard.last - shard.first + 1 for shard in shards),
        "replicas": state.replicas,
        "server": f"{state.server} {'.'.join(map(str, state.version))}",
        "memory": state.memory,
        "memory_limit": state.memory_limit or None,
        "lag_bytes": state.lag,
        "libraries": state.libraries,
    }
