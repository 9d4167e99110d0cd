"""Gateways of an earlier release are replaced by those of this one while clients work on them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Coroutine, List

import synap
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import PATIENCE

__all__ = ["GatewayedCluster", "upgrade"]

Happens = Callable[[ThrowawayCluster], Coroutine[Any, Any, None]]


class GatewayedCluster(ThrowawayCluster):
    """A cluster with two gateways of an earlier release: this one's source with another text of the function library,
    and so another digest and other names of functions."""

    def __init__(self, primaries: int, replicas: int, *, durability: str, **given: Any) -> None:
        super().__init__(primaries, replicas, **given)
        self.earlier = tempfile.mkdtemp(prefix="synap-earlier-")
        self.gateways = [
            ThrowawayServer(
                arguments=["--engine", self.url, "--durability", durability, "--patience", "15"],
                environment={"PYTHONPATH": self.earlier},
            )
            for _ in range(2)
        ]
        self._stack = ExitStack()

    @property
    def services(self) -> List[str]:
        """Where the gateways listen."""
        return [gateway.url for gateway in self.gateways]

    def start(self, timeout: float = 30.0) -> ThrowawayCluster:
        super().start(timeout)
        source = Path(synap.__file__).parent
        shutil.copytree(source, Path(self.earlier) / "synap", ignore=shutil.ignore_patterns("__pycache__"))
        with open(Path(self.earlier) / "synap" / "cluster" / "lua" / "0_base.lua", "a", encoding="utf-8") as file:
            file.write("-- an earlier text\n")
        for gateway in self.gateways:
            self._stack.enter_context(gateway)
        return self

    def stop(self) -> None:
        self._stack.close()
        super().stop()
        shutil.rmtree(self.earlier, ignore_errors=True)

    def replace(self, gateway: ThrowawayServer) -> None:
        """Let a gateway drain and stop, and start this release's in its place."""
        gateway.stop()
        gateway.environment.clear()
        gateway.start()

    def reload(self) -> None:
        """Load every library that is there again, over itself."""
        for node in self.current_primaries():
            for library in node.ask("FUNCTION", "LIST", "LIBRARYNAME", "synap_*", "WITHCODE"):
                code = dict(zip(library[::2], library[1::2]))[b"library_code"]
                node.ask("FUNCTION", "LOAD", "REPLACE", code)

    def prune(self) -> None:
        """Delete the libraries of other releases."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
        command = [sys.executable, "-m", "synap", "cluster", "init", self.url, "--prune"]
        subprocess.run(command, check=True, timeout=PATIENCE, env=environment, stdout=subprocess.DEVNULL)

    def libraries(self) -> int:
        """Count the versions of the library that are loaded."""
        return max(len(node.ask("FUNCTION", "LIST", "LIBRARYNAME", "synap_*")) for node in self.current_primaries())


def upgrade() -> Happens:
    """Two libraries side by side, loaded again over themselves, one gateway replaced after the other, the old library
    deleted."""

    async def happens(cluster: ThrowawayCluster) -> None:
        assert isinstance(cluster, GatewayedCluster)
        run = asyncio.get_running_loop().run_in_executor
        end = time.monotonic() + PATIENCE
        while await run(None, cluster.libraries) != 2:  # until clients beside the gateways have loaded this release's
            assert time.monotonic() < end, "the gateways have this release's library"
            await asyncio.sleep(0.05)
        for gateway in cluster.gateways:
            await run(None, cluster.reload)
            await asyncio.sleep(0.5)
            await run(None, cluster.replace, gateway)
            await asyncio.sleep(1.0)
        await run(None, cluster.prune)
        assert await run(None, cluster.libraries) == 1, "a library is left"

    return happens
