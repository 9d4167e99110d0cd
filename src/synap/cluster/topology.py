"""Which node has which partition, and short conversations with single nodes."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterable, List, NamedTuple, Optional, Tuple

import hiredis

from synap.cluster import functions
from synap.cluster.calls import pack, unanswered, unavailable
from synap.cluster.options import Address, EngineOptions
from synap.cluster.places import Places
from synap.errors import SynapError

ANSWER = 1.0
"""Seconds a node has to answer before the next one is asked."""


class Shard(NamedTuple):
    """A range of slots and who has them."""

    first: int
    last: int
    primary: Address
    replicas: Tuple[Address, ...]


async def converse(
    address: Address, options: EngineOptions, *commands: Tuple[Any, ...], timeout: float = 2.0
) -> List[Any]:
    """Send commands to one node on a connection of their own; answers that are errors are returned, not raised."""
    return await asyncio.wait_for(_converse(address, options, commands), timeout)


async def _converse(address: Address, options: EngineOptions, commands: Tuple[Tuple[Any, ...], ...]) -> List[Any]:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=options.ssl)
    try:
        parser = hiredis.Reader()
        answers: List[Any] = []
        first = () if options.login is None else (options.login,)
        writer.write(b"".join(pack(command) for command in (*first, *commands)))
        while len(answers) < len(first) + len(commands):
            answer = parser.gets()
            if answer is False:
                data = await reader.read(65536)
                if not data:
                    raise OSError("it ended the connection")
                parser.feed(data)
            else:
                answers.append(answer)
        if first and isinstance(answers[0], hiredis.ReplyError):
            raise answers[0]
        return answers[len(first) :]
    except hiredis.ProtocolError as error:
        raise OSError(f"it doesn't speak the protocol of Valkey and Redis: {error}") from None
    finally:
        writer.close()


class Topology:
    """`owners[p]` is the address of the primary that has partition p, None where no node has it."""

    def __init__(self, options: EngineOptions, guard: Optional[ContextManager[Any]] = None) -> None:
        self.options = options
        self.guard: ContextManager[Any] = nullcontext() if guard is None else guard
        self.known: List[Address] = list(options.seeds)
        """Nodes to ask, the seeds last."""
        self.owners: List[Optional[Address]] = []
        self.shards: List[Shard] = []
        self.learned = 0.0
        """When, by the event loop's clock, the owners were learned."""
        self.moved: Callable[[List[Optional[Address]], List[Optional[Address]]], None] = lambda before, after: None
        """Called, under the guard, when other owners have taken the place of those that were known."""

    async def learn(self, places: Places, silent: Iterable[Address], last: float = ANSWER) -> bool:
        """Ask a node who has which slots; returns whether an owner changed. Raises `SERVICE_UNAVAILABLE`, or
        `INVALID_REQUEST` where what answers is no cluster. `last`: seconds that the last one of them has to answer."""
        shunned = set(silent)
        others = [address for address in self.known if address not in shunned]
        random.shuffle(others)
        asked = list(dict.fromkeys([*others, *(seed for seed in self.options.seeds if seed not in shunned), *shunned]))
        why = "no node is known"
        for address in asked:
            try:
                timeout = last if address == asked[-1] else ANSWER
                answer = (await converse(address, self.options, ("CLUSTER", "SLOTS"), timeout=timeout))[0]
                if isinstance(answer, hiredis.ReplyError):
                    raise answer
            except hiredis.ReplyError as error:
                unusable = _unusable(address, error, self.options)
                if unusable.code == "SERVICE_UNAVAILABLE":  # it loads its data, say: others know, too
                    why = unusable.message
                    continue
                raise unusable from None
            except (OSError, asyncio.TimeoutError) as error:
                why = unanswered(address, error)
                continue
            shards = [_shard(address, given) for given in answer]
            if not shards:
                why = f"{address} knows of no slots: the cluster is not made yet"
                continue
            return self._take(places, shards)
        raise unavailable(f"no node of the cluster can be reached ({why})")

    def _take(self, places: Places, shards: List[Shard]) -> bool:
        slots: Dict[int, Address] = {}
        for shard in shards:
            first = -(-shard.first // places.width)
            for partition in range(first, shard.last // places.width + 1):
                slots[partition] = shard.primary
        owners = [slots.get(partition) for partition in range(places.count)]
        changed = owners != self.owners
        with self.guard:
            before, self.owners = self.owners, owners
            if changed:
                self.moved(before, owners)
        self.shards = shards
        self.known = list(dict.fromkeys(node for shard in shards for node in (shard.primary, *shard.replicas)))
        self.learned = asyncio.get_running_loop().time()
        return changed

    @property
    def primaries(self) -> List[Address]:
        """The nodes that have slots, each once."""
        return list(dict.fromkeys(shard.primary for shard in self.shards))

    async def load(self, address: Address) -> None:
        """Load the function library at a node that lacks it; raises `hiredis.ReplyError`."""
        commands = (("FUNCTION", "LOAD", functions.SOURCE), ("FUNCTION", "LIST", "LIBRARYNAME", functions.LIBRARY))
        answer, listed = await converse(address, self.options, *commands, timeout=5.0)
        there = isinstance(listed, list) and listed  # so it doesn't matter that the node is full, or this user may not
        if isinstance(answer, hiredis.ReplyError) and not there:
            raise answer


def _shard(asked: Address, given: List[Any]) -> Shard:
    nodes = [Address(node[0].decode() if node[0] else asked.host, node[1]) for node in given[2:]]
    return Shard(given[0], given[1], nodes[0], tuple(nodes[1:]))


RIGHTS = frozenset(("NOAUTH", "WRONGPASS", "NOPERM"))
"""First words of answers that mean that the user lacks a right."""
NOT_ALLOWED = re.compile(r"^ERR .*(ACL failure in script|user executing the script can't)")
"""The error of a function whose caller lacks a right for one of its commands."""


def in_a_function(error: Exception) -> bool:
    """Return whether an answer means that the user lacks a right for a command of the function that it called."""
    return NOT_ALLOWED.match(str(error)) is not None


def lacks_right(error: Exception) -> bool:
    """Return whether an answer means that the user lacks a right."""
    return str(error).partition(" ")[0] in RIGHTS or in_a_function(error)


def missing_right(address: Address, error: Exception, options: EngineOptions) -> SynapError:
    """Build the error for what a node refuses to its user, with what the user needs."""
    if lacks_right(error):
        needed = ACL.replace("syn:", f"{options.space}:")
        return SynapError("UNAUTHORIZED", f"{address} refuses this user ({error}); it needs: {needed}")
    return unavailable(f"{address} answered {str(error)!r}")


def _unusable(address: Address, error: Exception, options: EngineOptions) -> SynapError:
    text = str(error)
    if "cluster support disabled" in text:
        need = "start it with cluster-enabled yes (one node with all slots will do)"
        return SynapError("INVALID_REQUEST", f"{address} is a single server, no cluster: {need}")
    return missing_right(address, error, options)


ACL = (
    "ACL SETUSER synap on >PASSWORD ~syn:* &syn:* +@read +@write +@pubsub +@scripting +@connection +wait +time "
    "+cluster|slots +cluster|nodes +info +config|get"
)
"""What an ACL user needs, in the usual space."""
