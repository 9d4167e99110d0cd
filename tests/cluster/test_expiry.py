"""Keys that expire: a key is in the index for as long as its node gives its value."""

from __future__ import annotations

from typing import Any, List

import pytest

from synap import commands as c
from synap.cluster.calls import Call
from synap.cluster.running import Running
from tests.cluster.asking import Asking, result

pytestmark = pytest.mark.usefixtures("only_what_is_asked")


async def put(asking: Asking, ttl: Any = None) -> None:
    value: Any = b"1"
    await result(Running(asking.host.facilities.keys.set(c.KvSet("k", value, ttl), asking.request())).start())


async def scanned(asking: Asking) -> List[str]:
    answer: c.ScanAnswer = await result(Running(asking.host.facilities.keys.scan(c.KvScan(), asking.request())).start())
    return answer.keys


async def test_a_key_is_found_up_to_the_millisecond_in_which_it_expires(asking: Asking) -> None:
    partition = asking.places.partition("k")
    at, index = asking.places.key(partition, "k"), asking.places.index(partition)
    for _ in range(20):
        await asking.write("k", "syn_set", (at, *index), b"k", b"1", b"20", b"")
        there = True
        while there:
            page = asking.link.call(partition, "syn_page", index, (b"-", b"+", b"10"), changes=False)
            exists = asking.link.send(Call.plain(("EXISTS", at), partition, True))
            ((live, _), there) = (await result(page), await result(exists))
            assert live or not there


@pytest.mark.parametrize("ttl", [None, 60])
async def test_a_key_that_is_over_for_another_node_only_stays_in_the_index(asking: Asking, ttl: Any) -> None:
    """The clocks of a primary and of the replica that takes over from it are never the same."""
    partition = asking.places.partition("k")
    index = asking.places.index(partition)

    async def now() -> int:
        seconds, micros = await asking.command("k", "TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    while True:
        await put(asking, 60)
        began = await now()
        await asking.command("k", "ZADD", index[1], str(began - 100), "k")
        await asking.call("k", "syn_sweep", index)
        if await now() < began + 900:  # else the machine was too busy
            break
    await put(asking, ttl)
    assert await scanned(asking) == ["k"]
