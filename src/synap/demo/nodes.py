"""The demo's cluster: three primaries with a replica each, in processes that end with the demo.

Prints what happens, a line each: `ready URL port/role …`. `kill SLOT` on its stdin kills the primary that has the slot:
`killed PORT`, `promoted PORT` and, once the killed one was started again and follows, `back PORT`.
"""

from __future__ import annotations

import sys
import time

from synap.testing.cluster import ClusterNode, ThrowawayCluster


def say(*words: object) -> None:
    """Write a line for the demo to read."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def owner(cluster: ThrowawayCluster, slot: int, among: ClusterNode) -> ClusterNode:
    """Find the primary that has a slot, as one node sees it."""
    port = next(shard[2][1] for shard in among.ask("CLUSTER", "SLOTS") if shard[0] <= slot <= shard[1])
    return next(node for node in cluster.members if node.port == port)


def kill(cluster: ThrowawayCluster, slot: int) -> None:
    """Kill the primary that has a slot, and start it again once its replica has taken over."""
    victim = owner(cluster, slot, cluster.members[0])
    witness = next(node for node in cluster.members if node is not victim)
    victim.kill()
    say("killed", victim.port)
    while (heir := owner(cluster, slot, witness)) is victim:
        time.sleep(0.02)
    say("promoted", heir.port)
    cluster.spawn(victim)
    cluster.wait()
    say("back", victim.port)


def main(folder: str) -> None:
    """Run the cluster until stdin ends."""
    with ThrowawayCluster(3, 1, persistent=True, folder=folder) as cluster:
        roles = [f"{node.port}/{'primary' if place < 3 else 'replica'}" for place, node in enumerate(cluster.members)]
        say("ready", cluster.url, *roles)
        for line in sys.stdin:
            kill(cluster, int(line.split()[1]))


if __name__ == "__main__":
    main(sys.argv[1])
