"""Add a command in the three places that it takes (entry, method of the engine, method of the client), and use it.

PYTHONPATH=COPY/src python -m tests.helpers.added_command DIRECTORY    use it, with the copy that `plant` has made
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import synap
from synap import AsyncSynapClient, SynapClient
from synap.testing.server import ThrowawayServer, can_serve
from synap.wire.frames import RETRY
from tests.helpers.colour import coated

__all__ = ["plant"]

ROOT = Path(__file__).parents[2]

ENTRY = """
from typing import Any

class KvSquare(Payload):
    key: Key
    comment: Union[Value, UnsetType] = UNSET


class SquaredAnswer(Answer):
    before: int
    after: int
    comment: Optional[bytes] = None


class Squared(Struct):
    before: int
    after: int
    comment: Any = None


KV_SQUARE = Command(
    119, "kv.square", KvSquare, SquaredAnswer, "Square the integer under a key.", Flag.WRITE, result=Squared
)
"""
IN_ENGINE = """\
    def square(self, p: c.KvSquare, now: float) -> c.SquaredAnswer:
        before = self._add(p.key, 0, now).value
        after = self._add(p.key, before * before - before, now).value
        return c.SquaredAnswer(before, after, None if p.comment is UNSET else p.comment)

"""
IN_CLIENT = '''\
    async def square(self, key: str, comment: Any = UNSET) -> Any:
        """Square the integer under a key."""
        return await self._call(c.KV_SQUARE, c.KvSquare(key, comment))

'''


def plant(copy: Path) -> None:
    """Make a copy of the sources at `copy`, with the command `kv.square` added and what is generated made again."""
    for folder in ("src", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "docs").mkdir()
    package = copy / "src" / "synap"
    add(package / "commands" / "kv.py", ENTRY)
    add(package / "engine" / "keyvalue.py", IN_ENGINE, before="    def incr(")
    add(package / "client" / "_async" / "kv.py", IN_CLIENT, before="    async def delete(")
    subprocess.run([sys.executable, str(copy / "tools" / "async_to_sync.py")], cwd=str(copy), check=True)


def add(path: Path, text: str, before: str = "") -> None:
    """Add text to a file: at its end, or before the one line that begins with `before`."""
    old = path.read_text("utf-8")
    if before:
        assert old.count(f"\n{before}") == 1
        new = old.replace(f"\n{before}", f"\n{text}{before}")
    else:
        new = old + text
    path.write_text(new, "utf-8")


# ---------------------------------------------------------------------------------------------- in the copy


async def use(client: Any, key: str) -> None:
    """Call the command in each of the ways that a client has."""
    comment = {"of": ["a user", 1]}
    await client.kv.set(key, 3)
    answer = await client.kv.square(key, comment)
    assert (answer.before, answer.after, answer.comment) == (3, 9, comment)
    async with client.pipeline() as pipeline:
        handle = pipeline.kv.square(key)
    assert handle.result().after == 81
    for atomic in (False, True):
        await client.kv.set(key, 3)
        results = await client.batch(
            [{"command": "kv.square", "payload": {"key": key, "comment": comment}}], atomic=atomic
        )
        assert results[0].payload == {"before": 3, "after": 9, "comment": comment}, results
    await client.kv.set(key, "text")
    with pytest.raises(synap.SynapError, match="not an integer"):
        await client.kv.square(key)
    with pytest.raises(synap.SynapError, match="1 to 1,024 bytes"):
        await client.kv.square("")
    await client.kv.set(key, 7)
    await client.kv.square(key)


async def in_all_ways(url: str, key: str, **options: Any) -> int:
    """Use it in both formats and both colours; returns how many that are."""
    ways = 0
    for format in ("json", "msgpack"):
        for make in (AsyncSynapClient, lambda *args, **more: coated(SynapClient(*args, **more))):
            async with make(url, format=format, **options) as client:
                await use(client, key)
                ways += 1
    return ways


async def is_kept(url: str, key: str, **options: Any) -> None:
    async with AsyncSynapClient(url, **options) as client:
        assert (await client.kv.get(key)).value == 49


def on_a_server(directory: Path) -> int:
    """Use it over each transport of a durable server, and ask for its answers again after a crash."""
    from tests.helpers.raw import Http, Native

    with ThrowawayServer(data=directory) as server:
        ways = 0
        for transport in ("native", "websocket"):
            ways += asyncio.run(in_all_ways(server.url, f"of {transport}", transport=transport))
        http = Http(server)
        http.do("kv.set", key="plain", value=5)
        assert http.do("kv.square", key="plain").payload == {"before": 5, "after": 25, "comment": None}
        document = json.loads(http.request("GET", "/openapi.json").body)
        assert "kv.square" in json.dumps(document)
        http.close()
        native = Native(server)
        native.do(1, "kv.set", key="n", value=4)
        commands = [{"command": "kv.square", "payload": {"key": "n"}}]
        alone = native.do(2, "kv.square", key="n", comment="kept")
        batch = native.do(3, "batch", commands=commands)
        assert (alone["after"], batch["results"][0]["payload"]["after"]) == (16, 256)
        native.close()
        server.restart()
        again = Native(server, session=native.session)
        assert again.do(2, "kv.square", RETRY, key="n", comment="kept") == alone
        assert again.do(3, "batch", RETRY, commands=commands) == batch
        assert again.do(4, "kv.get", key="n")["value"] == 256
        again.close()
        for transport in ("native", "websocket"):
            asyncio.run(is_kept(server.url, f"of {transport}"))
        return ways


def main(directory: Path) -> None:
    ways = asyncio.run(in_all_ways("memory://", "k"))
    url = f"file://{directory / 'file'}"
    ways += asyncio.run(in_all_ways(url, "k"))
    asyncio.run(is_kept(url, "k"))
    if can_serve():
        ways += on_a_server(directory / "served")
    sys.stdout.write(f"{ways} ways with {synap.__file__}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
