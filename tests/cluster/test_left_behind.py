"""What gateways that died leave behind is taken away."""

from __future__ import annotations

from tests.cluster.asking import Asking


async def test_a_room_forgets_gateways_that_died(asking: Asking) -> None:
    keys = asking.places.room(asking.places.partition("r"), "r")
    for gateway, lease in ((b"dead", b"-1"), (b"lives", b"60000")):
        await asking.change("r", "syn_s_join", keys, b"r", b"inc", gateway, b"2", lease, b"", b"")
    await asking.change("r", "syn_s_trim", keys, b"r", b"60000")
    assert await asking.command("r", "HKEYS", keys[3]) == [b"lives"]
