"""Large events of a room: what one call of a function reads of them is in the node's memory at once."""

from __future__ import annotations

from typing import Any, Dict, List

from synap import commands as c
from synap.cluster.running import Running
from synap.engine.limits import ANSWER_BYTES
from tests.cluster.asking import Asking, result

MEGABYTE = 1024 * 1024
FULL = ANSWER_BYTES // MEGABYTE - 1  # the packed events are a little more than their data


async def publish(asking: Asking, count: int, size: int) -> None:
    data: Any = b'"' + b"x" * size + b'"'
    for _ in range(count):
        publish = asking.host.facilities.rooms.publish(c.StreamPublish("r", "t", data), asking.request())
        await result(Running(publish).start())


async def ranges(asking: Asking) -> int:
    """Return how often events were read."""
    text = await asking.command("r", "INFO", "commandstats")
    lines: Dict[str, str] = dict(line.split(":", 1) for line in text.decode().split() if line.startswith("cmdstat_"))
    return int(lines["cmdstat_xrange"].split(",")[0].partition("=")[2]) if "cmdstat_xrange" in lines else 0


def room(asking: Asking) -> List[bytes]:
    return list(asking.places.room(asking.places.partition("r"), "r"))


async def test_history_reads_few_large_events_at_once(asking: Asking) -> None:
    await publish(asking, 20, MEGABYTE)
    before = await ranges(asking)
    history = asking.host.facilities.rooms.history(c.StreamHistory("r", limit=20), asking.request())
    page: c.HistoryAnswer = await result(Running(history).start())
    assert [event.offset for event in page.events] == list(range(FULL))
    assert await ranges(asking) - before >= 4


async def test_old_events_go_in_pieces_large_ones_in_several_calls(asking: Asking) -> None:
    await publish(asking, 40, MEGABYTE)
    await publish(asking, 100, 10)
    before, gone = await ranges(asking), []
    while True:
        (more,) = await asking.change("r", "syn_s_trim", room(asking), b"r", b"-60000")
        gone.append(140 - await asking.command("r", "XLEN", room(asking)[2]))
        if not more:
            break
    assert gone[0] == 32
    assert gone[-1] == 140
    assert await ranges(asking) - before > 16
