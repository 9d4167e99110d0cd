"""A cluster that its clients reach through proxies which misbehave on demand; its nodes reach each other directly.

Each node tells clients an address of its own (`cluster-announce-client-ipv4`, Valkey 8 and newer), at which a proxy
listens under the node's port.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Dict, List

from synap.testing.cluster import ClusterNode, ThrowawayCluster
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.patience import PATIENCE

__all__ = ["ProxiedCluster"]

HOST = "127.0.0.2"


class ProxiedCluster(ThrowawayCluster):
    """`proxies` stand before the nodes, by port."""

    def __init__(self, primaries: int = 1, replicas: int = 0, **given: Any) -> None:
        options = (*given.pop("options", ()), "--cluster-announce-client-ipv4", HOST)
        super().__init__(primaries, replicas, options=options, **given)
        self.proxies: Dict[int, FaultProxy] = {}
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return super().url.replace("127.0.0.1", HOST)

    @property
    def all_proxies(self) -> List[FaultProxy]:
        """The proxies, in the order of the nodes."""
        return [self.proxies[node.port] for node in self.members]

    def start(self, timeout: float = PATIENCE) -> ThrowawayCluster:
        for node in self.members:
            proxy = FaultProxy("127.0.0.1", node.port, listens=(HOST, node.port))
            self.proxies[node.port] = self._stack.enter_context(proxy)
        super().start(timeout)
        end = time.monotonic() + timeout
        while not all(self._tells(node) for node in self.members):
            if time.monotonic() > end:
                raise RuntimeError(f"the nodes don't tell clients of {HOST}: that needs Valkey 8 or newer")
            time.sleep(0.02)
        return self

    @staticmethod
    def _tells(node: ClusterNode) -> bool:
        return all(place[0] == HOST.encode() for _, _, *places in node.ask("CLUSTER", "SLOTS") for place in places)

    def stop(self) -> None:
        self._stack.close()
        super().stop()
