"""Checks what a queue's workers say they saw against what a queue promises.

Nothing is lost; no message is leased to two at a time; none comes back after it was acknowledged; every redelivery
counts; what is delivered for the first time comes in the order in which it was published.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Dict, List, NamedTuple, Sequence, Set


class Lease(NamedTuple):
    """One delivery: its number, when it was given (Unix seconds), how often before, and by which worker."""

    number: int
    begins: float
    deadline: float
    retry_count: int
    worker: int


def leases_of(logs: Sequence[List[Dict[str, Any]]], lease_seconds: float) -> Dict[str, List[Lease]]:
    """Collect each message's leases, in the order in which they were given."""
    leases: Dict[str, List[Lease]] = defaultdict(list)
    for worker, log in enumerate(logs):
        for line in log:
            if "got" in line:
                begins = line["deadline"] - lease_seconds
                leases[line["got"]].append(Lease(line["lease"], begins, line["deadline"], line["retry_count"], worker))
    for given in leases.values():
        given.sort(key=lambda lease: lease.begins)
    return leases


def faults(
    published: Sequence[str], dead: Set[str], logs: Sequence[List[Dict[str, Any]]], lease_seconds: float
) -> List[str]:
    """List what is wrong: `published` ids in order, `dead` those that ended as dead letters, a log for each worker."""
    found: List[str] = []
    leases = leases_of(logs, lease_seconds)
    acked: Dict[str, Set[int]] = defaultdict(set)
    perhaps: Dict[str, Set[int]] = defaultdict(set)
    nacked: Dict[str, Set[int]] = defaultdict(set)
    for log in logs:
        for line in log:
            for word, where in (("acked", acked), ("acking", perhaps), ("nacking", nacked)):
                if word in line:
                    where[line[word]].add(line["lease"])
            if "late" in line:  # refused, so certainly not done
                perhaps[line["late"]].discard(line["lease"])
                nacked[line["late"]].discard(line["lease"])
    for message in published:
        given = leases.get(message, [])
        done = acked[message] | perhaps[message]
        if not done and message not in dead:
            found.append(f"{message} is lost: leased {len(given)} times, neither acknowledged nor dead")
        if len(acked[message]) > 1:
            found.append(f"{message} was acknowledged {len(acked[message])} times")
        for earlier, later in zip(given, given[1:]):
            if later.number <= earlier.number:
                found.append(f"{message}: lease {later.number} came after {earlier.number}")
            if earlier.number in acked[message]:
                found.append(f"{message} came back after lease {earlier.number} had acknowledged it")
            if earlier.number not in nacked[message] and later.begins < earlier.deadline - 0.001:
                found.append(f"{message} was leased to two: {earlier} and {later}")
            if later.retry_count <= earlier.retry_count:
                found.append(f"{message}: retry_count {later.retry_count} after {earlier.retry_count}")
    for message in leases:
        if message not in set(published):
            found.append(f"{message} was never published")
    # A worker that is killed with a message just given to it doesn't say so; what is seen first with a
    # retry_count above 0 was such a one, and says nothing about the order.
    place = {message: number for number, message in enumerate(published)}
    for worker in range(len(logs)):
        firsts = [
            place[message]
            for message, given in leases.items()
            if message in place and given[0].worker == worker and given[0].retry_count == 0
        ]
        seen = sorted((leases[published[number]][0].begins, number) for number in firsts)
        order = [number for _, number in seen]
        if order != sorted(order):
            found.append(f"worker {worker} was given new messages out of order: {order}")
    return found
