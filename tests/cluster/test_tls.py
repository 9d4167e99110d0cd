"""`valkeys://`: a node behind something that speaks TLS, since the servers that tests get from wheels can't."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from synap import AsyncSynapClient
from synap.errors import SynapError
from synap.testing.cluster import ThrowawayCluster
from tests.helpers.patience import PATIENCE
from tests.helpers.streams import served

CERTIFICATES = Path(__file__).parent.parent / "lanes" / "certs"


class Terminator:
    """Takes TLS connections and passes what they carry on to a port."""

    def __init__(self) -> None:
        self.target = 0
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(CERTIFICATES / "cert.pem", CERTIFICATES / "key.pem")

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._pass(reader, inner_writer), self._pass(inner_reader, writer))
        finally:
            inner_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                data = await reader.read(65536)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def ended(*command: str) -> int:
    """Return the exit code of `synap` with these arguments."""
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "synap", *command),
        stdout=asyncio.subprocess.DEVNULL,
        env={**environment, "SYNAP_DURABILITY": "none"},
    )
    return await process.wait()


async def test_a_cluster_that_speaks_tls_is_checked_and_used(tmp_path: Path) -> None:
    terminator = Terminator()
    async with served(terminator.meet, ssl=terminator.context) as port:
        options = ("--cluster-announce-port", str(port), "--cluster-announce-ip", "127.0.0.1")
        loop = asyncio.get_running_loop()
        cluster = ThrowawayCluster(options=options)
        terminator.target = cluster.nodes[0].port
        try:
            await loop.run_in_executor(None, cluster.start)
            url = f"valkeys://localhost:{port}"
            engine = {"durability": "none", "engine_ca": str(CERTIFICATES / "cert.pem")}
            async with AsyncSynapClient(url=url, engine=engine) as client:
                await client.queue.publish("q", 1)
                message = await client.queue.consume("q", timeout=PATIENCE)
                assert message is not None
                async with await client.stream.subscribe("r") as events:
                    await client.stream.publish("r", "e", 2)
                    assert (await asyncio.wait_for(events.__anext__(), PATIENCE)).data == 2
            trusted = str(CERTIFICATES / "cert.pem")
            as_for_https: list[dict[str, Any]] = [
                {"tls_ca": trusted},
                {"ssl": ssl.create_default_context(cafile=trusted)},
            ]
            for own in as_for_https:
                async with AsyncSynapClient(url=url, engine={"durability": "none"}, **own) as client:
                    await client.kv.set("a", 1)
            ca = ("--engine-ca", trusted)
            for command in (("cluster", "status", url), ("export", url), ("kv", "get", "a", "--url", url)):
                assert await ended(*command) == 4
            assert await ended("cluster", "status", url, "--durability", "none", *ca) == 0
            assert await ended("cluster", "init", url, *ca) == 0
            assert await ended("export", url, str(tmp_path / "data"), *ca) == 0
            assert await ended("import", str(tmp_path / "data"), url, *ca) == 0
            assert await ended("kv", "set", "a", "1", "--url", url, *ca) == 0
            async with AsyncSynapClient(url=url, engine={"durability": "none"}, retries=0) as stranger:
                with pytest.raises(SynapError, match="no node of the cluster can be reached"):
                    await stranger.kv.get("a")
        finally:
            await loop.run_in_executor(None, cluster.stop)
