"""What can happen to a cluster: one coroutine for each row of the table in docs/cluster.md."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, Coroutine, Dict, FrozenSet, NamedTuple

import hiredis

from synap.cluster.places import SLOTS
from synap.testing.cluster import ClusterNode, ThrowawayCluster
from tests.cluster.nemesis.network import cut_answers, delay, drop, half_open
from tests.cluster.nemesis.upgrade import GatewayedCluster, upgrade
from tests.cluster.proxied import ProxiedCluster
from tests.helpers.patience import PATIENCE

__all__ = ["ROWS", "Happens", "Row"]

Happens = Callable[[ThrowawayCluster], Coroutine[Any, Any, None]]


class Row(NamedTuple):
    """One row: what happens at which durability, and whether something may be lost then."""

    happens: Happens
    durability: str
    may_lose: bool = False
    persistent: bool = False
    stage: str = "nodes"

    def cluster(self) -> ThrowawayCluster:
        """Make the cluster that it happens to."""
        persistent = self.persistent or self.durability == "synced"
        given: Dict[str, Any] = {
            "persistent": persistent,
            "appendfsync": "always" if self.durability == "synced" else "everysec",
        }
        if self.stage == "proxies":
            return ProxiedCluster(3, 1, **given)
        if self.stage == "gateways":
            return GatewayedCluster(3, 1, durability=self.durability, **given)
        return ThrowawayCluster(3, 1, **given)


async def _off(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def _primary(cluster: ThrowawayCluster, turn: int) -> ClusterNode:
    primaries = await _off(cluster.current_primaries)
    found: ClusterNode = primaries[turn % len(primaries)]
    return found


def _wait_until_replaced(cluster: ThrowawayCluster, primary: ClusterNode) -> None:
    """Wait until a replica has taken over, however long a busy machine takes for that."""
    end = time.monotonic() + PATIENCE
    while primary in (primaries := cluster.current_primaries()) or not primaries:
        if time.monotonic() > end:
            raise RuntimeError(f"no replica of the node on port {primary.port} took over")
        time.sleep(0.05)


def kill(times: int, *, replaced: bool = True) -> Happens:
    """kill -9 a primary; it comes back once its replica has taken over, or at once, before that.

    A primary that is back before it is replaced goes on with what its file has, and its replica copies that.
    """

    async def happens(cluster: ThrowawayCluster) -> None:
        for turn in range(times):
            victim = await _primary(cluster, turn)
            await _off(victim.kill)
            if replaced:
                await _off(_wait_until_replaced, cluster, victim)
            cluster.spawn(victim)
            await asyncio.sleep(1.0)
            await _off(cluster.wait)

    return happens


def kill_shard() -> Happens:
    """kill -9 a primary and its replica, which come back with what they have on disk."""

    async def happens(cluster: ThrowawayCluster) -> None:
        primary = await _primary(cluster, 0)
        replica = (await _off(cluster.replicas_of, primary))[0]
        for node in (replica, primary):
            await _off(node.kill)
        await asyncio.sleep(1.0)
        for node in (primary, replica):
            cluster.spawn(node)
        await asyncio.sleep(1.0)
        await _off(cluster.wait)

    return happens


def lagging(times: int) -> Happens:
    """A replica stands still for a second, then its primary is killed and it takes over."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for turn in range(times):
            primary = await _primary(cluster, turn)
            replica = (await _off(cluster.replicas_of, primary))[0]
            replica.pause()
            await asyncio.sleep(1.0)
            await _off(primary.kill)
            replica.go_on()
            await _off(_wait_until_replaced, cluster, primary)
            cluster.spawn(primary)
            await asyncio.sleep(1.0)
            await _off(cluster.wait)

    return happens


def fail_over(times: int, how: str = "") -> Happens:
    """CLUSTER FAILOVER, as for maintenance, or with TAKEOVER against the primary's will."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for turn in range(times):
            await _off(cluster.fail_over, await _primary(cluster, turn), how)
            await _off(cluster.wait)
            await asyncio.sleep(0.5)

    return happens


def stop(seconds: float) -> Happens:
    """SIGSTOP a primary, and SIGCONT it when its replica has long taken over."""

    async def happens(cluster: ThrowawayCluster) -> None:
        primary = await _primary(cluster, 0)
        primary.pause()
        await asyncio.sleep(seconds)
        primary.go_on()
        await asyncio.sleep(2.0)
        await _off(cluster.wait)

    return happens


def cut(kind: str, times: int) -> Happens:
    """Cut all connections of a kind ('normal', 'pubsub') at all nodes."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for _ in range(times):
            for node in cluster.members:
                await _off(_quietly, node, "CLIENT", "KILL", "TYPE", kind)
            await asyncio.sleep(0.1)

    return happens


def _quietly(node: ClusterNode, *command: Any) -> None:
    try:
        node.ask(*command)
    except (OSError, hiredis.ReplyError):
        pass  # it cut our own connection too


def flush_functions(times: int) -> Happens:
    """FUNCTION FLUSH on all primaries: the library is gone."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for _ in range(times):
            for node in await _off(cluster.current_primaries):
                await _off(node.ask, "FUNCTION", "FLUSH")
            await asyncio.sleep(0.5)

    return happens


def move_slots(count: int) -> Happens:
    """Move slots key by key, as `--cluster reshard` does."""

    async def happens(cluster: ThrowawayCluster) -> None:
        source, target = await _primary(cluster, 0), await _primary(cluster, 1)
        await _off(_move, cluster, source, target, count)

    return happens


def _move(cluster: ThrowawayCluster, source: ClusterNode, target: ClusterNode, count: int) -> None:
    ids = {node.port: node.ask("CLUSTER", "MYID").decode() for node in (source, target)}
    slots = [slot for slot in range(0, SLOTS, SLOTS // 256) if _has(source, slot)][:count]
    for slot in slots:
        target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target.port])
        while True:
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), "100")
            if not keys:
                break
            source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys, timeout=30)
        for node in (target, source, *(other for other in cluster.current_primaries())):
            node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", ids[target.port])


def _has(node: ClusterNode, slot: int) -> bool:
    return any(
        first <= slot <= last and primary[1] == node.port for first, last, primary, *_ in node.ask("CLUSTER", "SLOTS")
    )


def migrate_slots() -> Happens:
    """Move all slots of a primary at once (Valkey 9's CLUSTER MIGRATESLOTS)."""

    async def happens(cluster: ThrowawayCluster) -> None:
        source, target = await _primary(cluster, 0), await _primary(cluster, 1)
        first, last = next(
            (first, last) for first, last, primary, *_ in source.ask("CLUSTER", "SLOTS") if primary[1] == source.port
        )
        id = target.ask("CLUSTER", "MYID").decode()
        await _off(source.ask, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", str(first), str(last), "NODE", id)
        while await _off(_has, target, first) is False:
            await asyncio.sleep(0.05)

    return happens


def rolling_restart() -> Happens:
    """Restart every node, primaries after a failover, as an upgrade of the server does."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for node in list(cluster.members):
            if node in await _off(cluster.current_primaries):
                await _off(cluster.fail_over, node)
                await _off(cluster.wait)
            await _off(node.ask, "CONFIG", "SET", "shutdown-timeout", "5")
            await _off(_quietly, node, "SHUTDOWN")
            assert node.process is not None
            await _off(node.process.wait)
            cluster.spawn(node)
            await _off(cluster.wait)

    return happens


def fill(bytes_allowed: int) -> Happens:
    """Let every primary reach its maxmemory for two seconds."""

    async def happens(cluster: ThrowawayCluster) -> None:
        for limit in (str(bytes_allowed), "0"):
            for node in cluster.members:
                await _off(node.ask, "CONFIG", "SET", "maxmemory", limit)
            await asyncio.sleep(2.0)

    return happens


class _Kind(NamedTuple):
    happens: Happens
    may_lose: FrozenSet[str] = frozenset()
    """Durabilities at which something may be lost."""
    persistent: bool = False
    stage: str = "nodes"


LEVELS = ("none", "replicated", "synced")
UNSAVED = frozenset(("none", "replicated"))
AT_NONE = frozenset(("none",))

KINDS: Dict[str, _Kind] = {
    "nothing": _Kind(fail_over(0)),
    "kill": _Kind(kill(2), AT_NONE, True),
    "kill-unsaved": _Kind(kill(2), AT_NONE),
    "restart": _Kind(kill(2, replaced=False), UNSAVED, True),
    "restart-empty": _Kind(kill(2, replaced=False), UNSAVED),
    "kill-shard": _Kind(kill_shard(), UNSAVED, True),
    "lagging": _Kind(lagging(2), AT_NONE, True),
    "failover": _Kind(fail_over(4)),
    "takeover": _Kind(fail_over(4, "TAKEOVER"), AT_NONE),
    "stop": _Kind(stop(8), AT_NONE),
    "cut": _Kind(cut("normal", 20)),
    "cut-pubsub": _Kind(cut("pubsub", 20)),
    "cut-answers": _Kind(cut_answers(20), stage="proxies"),
    "half-open": _Kind(half_open(6), stage="proxies"),
    "delay": _Kind(delay(6), stage="proxies"),
    "drop": _Kind(drop(4), stage="proxies"),
    "flush-functions": _Kind(flush_functions(4)),
    "upgrade": _Kind(upgrade(), stage="gateways"),
    "move-slots": _Kind(move_slots(40)),
    "migrate-slots": _Kind(migrate_slots()),
    "rolling-restart": _Kind(rolling_restart(), persistent=True),
    "full": _Kind(fill(1_000_000)),
}
"""What can happen, by name."""

ROWS: Dict[str, Row] = {
    f"{name}/{level}": Row(kind.happens, level, level in kind.may_lose, kind.persistent, kind.stage)
    for name, kind in KINDS.items()
    for level in LEVELS
    if not (level == "synced" and name in ("kill-unsaved", "restart-empty"))  # refused where nothing is saved
}
"""Each at each durability. Where `may_lose`, the figures are told and nothing is asserted of them."""
