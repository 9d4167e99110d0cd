"""The checks before a cluster is used, and the messages that say what to change."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

import hiredis

from synap.cluster import functions
from synap.cluster.calls import unanswered, unavailable
from synap.cluster.link import Link
from synap.cluster.options import Address
from synap.cluster.places import Places
from synap.cluster.running import in_task
from synap.cluster.topology import converse, missing_right
from synap.errors import SynapError

APART = 0.1
"""Seconds that the clocks of the nodes may be apart without a warning."""
OLDEST = {"valkey": (8, 0), "redis": (7, 2)}


class NodeState(NamedTuple):
    """What a node reports. Where a service hides its configuration, `settings` is None."""

    address: Address
    primary: bool
    server: str
    version: Tuple[int, ...]
    replicas: int
    members: int
    """Replicas that it has in the cluster, connected or not."""
    memory: int
    memory_limit: int
    lag: int
    """Bytes that the slowest replica lags behind."""
    behind: float
    """Seconds that its clock is ahead of this machine's."""
    settings: Optional[Dict[str, str]]
    libraries: List[str]


class Prepared(NamedTuple):
    """A cluster that can be used: the secret that signs cursors, and warnings for its operators."""

    secret: bytes
    warnings: List[str]


async def inspect_node(link: Link, address: Address, timeout: float = 5.0) -> NodeState:
    """Ask a node about itself. Raises `SynapError` where it can't be asked."""
    try:
        info, now, nodes, config, listed = await converse(
            address,
            link.options,
            ("INFO",),
            ("TIME",),
            ("CLUSTER", "NODES"),
            ("CONFIG", "GET", "appendonly", "appendfsync", "maxmemory-policy", "maxmemory"),
            ("FUNCTION", "LIST", "LIBRARYNAME", "synap_*"),
            timeout=timeout,
        )
    except hiredis.ReplyError as error:
        raise missing_right(address, error, link.options) from None
    except (OSError, asyncio.TimeoutError) as error:
        raise unavailable(unanswered(address, error)) from None
    for answer in (info, now, nodes, listed):
        if isinstance(answer, Exception):
            raise missing_right(address, answer, link.options)
    figures = dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)
    server = "valkey" if "valkey_version" in figures else "redis"
    text = figures.get("valkey_version") or figures["redis_version"]
    offset = int(figures["master_repl_offset"])
    offsets = [
        int(dict(part.split("=") for part in figures[f"slave{n}"].split(","))["offset"])
        for n in range(int(figures["connected_slaves"]))
    ]
    settings = None
    if not isinstance(config, Exception):
        settings = {config[n].decode(): config[n + 1].decode() for n in range(0, len(config), 2)}
    return NodeState(
        address,
        figures["role"] == "master",
        server,
        tuple(int(part) for part in text.split(".")[:2]),
        int(figures["connected_slaves"]),
        _own_replicas(nodes.decode()),
        int(figures["used_memory"]),
        int(figures["maxmemory"]),
        max((offset - seen for seen in offsets), default=0),
        int(now[0]) + int(now[1]) / 1e6 - time.time(),
        settings,
        sorted(dict(zip(library[::2], library[1::2]))[b"library_name"].decode() for library in listed),
    )


def _own_replicas(nodes: str) -> int:
    """Count a primary's replicas in what CLUSTER NODES says there: those too that CLUSTER SLOTS leaves out, as it does
    until they have synchronized."""
    lines = [line.split(" ") for line in nodes.splitlines()]
    me = next(line[0] for line in lines if "myself" in line[2])
    return sum(line[3] == me for line in lines)


async def examine(link: Link, *, partly: bool = False) -> Tuple[List[NodeState], List[str], List[str]]:
    """Ask all nodes; returns what they report, why the cluster can't be used as asked, and warnings for its operators.

    Replicas must be as primaries, since a failover makes them some. A primary that can't be asked is among the reasons
    if `partly`; else `SynapError` is raised.
    """
    primaries = link.topology.primaries
    replicas = dict.fromkeys(replica for shard in link.topology.shards for replica in shard.replicas)
    asked = [*(inspect_node(link, node) for node in primaries), *(inspect_node(link, node, 2.0) for node in replicas)]
    states: List[NodeState] = []
    silent: List[str] = []
    unknown: List[str] = []
    for address, found in zip((*primaries, *replicas), await asyncio.gather(*asked, return_exceptions=True)):
        if isinstance(found, NodeState):
            states.append(found)
        elif isinstance(found, SynapError) and address not in primaries:
            unknown.append(f"a replica can't be asked what it would be like as a primary: {found.message}")
        elif isinstance(found, SynapError) and partly:
            silent.append(f"a primary can't be asked: {found.message}")
        else:
            raise found
    refusals, warnings = _judge(link, states)
    return states, silent + refusals, warnings + unknown


def _judge(link: Link, states: List[NodeState]) -> Tuple[List[str], List[str]]:
    options = link.options
    refusals: List[str] = []
    warnings: List[str] = []
    for state in states:
        oldest = OLDEST[state.server]
        if state.version < oldest:
            refusals.append(
                f"{state.address} runs {state.server} {dotted(state.version)}; {dotted(oldest)} or newer is needed"
            )
        if state.primary and options.copies > state.replicas:
            few = f"{state.address} has {state.replicas} replicas and durability '{options.durability}' needs "
            if any(other.replicas >= options.copies for other in states):  # as after a failover
                warnings.append(f"{few}{options.copies}: writes there wait until they are back")
            else:
                refusals.append(
                    f"{few}{options.copies}: add replicas, ask for fewer (--replicas, SYNAP_REPLICAS), or say "
                    "--durability none (SYNAP_DURABILITY)"
                )
        if state.settings is None:
            if options.durability == "synced":
                refusals.append(
                    f"{state.address} hides its settings, so 'synced' can't be checked; say --unchecked where its "
                    "people promise appendonly yes and appendfsync always"
                )
            continue
        _judge_settings(state, options.durability, options.allow_eviction, refusals, warnings)
    empty = [str(state.address) for state in states if (state.settings or {}).get("appendonly") == "no"]
    if empty and options.durability != "synced":
        warnings.append(
            f"{', '.join(empty)}: appendonly is no, so a primary that restarts empty before its replica is promoted "
            "empties the replica too; set appendonly yes"
        )
    lazy = [str(state.address) for state in states if _may_lag_its_file(state)]
    if lazy and options.durability == "replicated":
        warnings.append(
            f"{', '.join(lazy)}: appendfsync isn't always, so a primary that is killed and restarted before its "
            "replica is promoted may lack what it answered last, and takes it from the replica too; set appendfsync "
            "always, or have nodes restarted only after the failover (systemd's RestartSec, several times "
            "cluster-node-timeout)"
        )
    clocks = [state.behind for state in states]
    if clocks and max(clocks) - min(clocks) > APART:
        warnings.append(
            f"the clocks of the nodes are {max(clocks) - min(clocks):.1f} s apart; leases and ttls shift by that in a "
            "failover"
        )
    if None in link.topology.owners:
        warnings.append("some slots have no node; what belongs there can't be used")
    return refusals, warnings


def _may_lag_its_file(state: NodeState) -> bool:
    """Whether a node's file may lack what it answered."""
    settings = state.settings or {}
    return settings.get("appendonly") == "yes" and settings.get("appendfsync") != "always"


def _judge_settings(
    state: NodeState, durability: str, allow_eviction: bool, refusals: List[str], warnings: List[str]
) -> None:
    settings = state.settings or {}
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        lost = "what requests were answered, so that one sent again takes effect twice,"
        lost = lost if policy.startswith("volatile") else "queues and rooms"
        text = f"{state.address} has maxmemory-policy {policy}, which deletes {lost} when memory is short"
        if allow_eviction:
            warnings.append(text)
        else:
            refusals.append(f"{text}: set noeviction, or say --allow-eviction")
    if durability == "synced" and (settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always"):
        refusals.append(f"{state.address} must have appendonly yes and appendfsync always for durability 'synced'")


async def prepare(link: Link) -> Prepared:
    """Check the cluster, load the library at all primaries, and agree on partitions. Raises `SynapError`.

    A failover that is under way is waited for, as it is by calls.
    """
    until = link.loop.time() + link.options.patience
    while True:
        try:
            return await _prepare(link)
        except SynapError as error:
            if error.code != "SERVICE_UNAVAILABLE" or link.loop.time() > until:
                raise
        await asyncio.sleep(0.2)
        await link.topology.learn(link.places, ())


async def _prepare(link: Link) -> Prepared:
    options = link.options
    warnings: List[str] = []
    if not options.unchecked:
        end = link.loop.time() + options.patience
        while True:
            states, refusals, warnings = await examine(link)
            coming = any(state.replicas < options.copies <= state.members for state in states)
            if not refusals or not coming or link.loop.time() > end:
                break
            await asyncio.sleep(0.1)  # replicas are on their way back to their primary, as after a failover
            await link.topology.learn(link.places, ())
        if refusals:
            raise SynapError("INVALID_REQUEST", "this cluster can't be used as asked: " + "; ".join(refusals))
    for address in link.topology.primaries:
        try:
            await link.topology.load(address)
        except hiredis.ReplyError as error:
            raise missing_right(address, error, link.options) from None
        except (OSError, asyncio.TimeoutError) as error:
            raise unavailable(unanswered(address, error)) from None
    arguments = (b"%d" % (options.partitions or 256), b"%d" % functions.SHAPE, secrets.token_hex(16).encode())
    opening = link.call(0, "syn_open", (link.places.bases[0] + b"meta",), arguments)
    partitions, shape, secret = await in_task(opening)
    if int(shape) != functions.SHAPE:
        raise SynapError(
            "INVALID_REQUEST",
            f"the keys of space {options.space!r} have shape {int(shape)} and this release knows {functions.SHAPE}",
        )
    if options.partitions is not None and int(partitions) != options.partitions:
        raise SynapError(
            "INVALID_REQUEST",
            f"space {options.space!r} has {int(partitions)} partitions, which can't be changed; leave --partitions out",
        )
    if int(partitions) != link.places.count:
        link.places = Places(int(partitions), options.space)
        await link.topology.learn(link.places, ())
    return Prepared(secret, warnings)


def dotted(version: Tuple[int, ...]) -> str:
    """Format a version."""
    return ".".join(map(str, version))
