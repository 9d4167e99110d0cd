"""What two threads do to one lane in the same moment, each between the other's look and what it does about it.

Under the GIL such moments are rare; without it, they are not.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, List, Optional

import pytest

from synap.client._sync.calls import Calls
from synap.client.handlers import Handlers
from synap.config import ClientConfig, parse_url
from synap.lanes.native.lane import NativeLane
from synap.lanes.native.pushes import Pushes
from synap.wire.codec import JSON
from tests.helpers.patience import PATIENCE

NOWHERE = "http://127.0.0.1:1"
MOMENT = 0.2
"""Seconds that the other thread has for what it is not to do now."""


def nowhere(**options: Any) -> NativeLane:
    """Make a lane that isn't connected."""
    return NativeLane(ClientConfig(url=NOWHERE, **options), parse_url(NOWHERE), JSON)


class Meanwhile:
    """An attribute that another thread changes just after it was read."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._change: Optional[Callable[[], None]] = None
        self.other: Optional[threading.Thread] = None

    def between(self, value: Any, change: Callable[[], None]) -> None:
        """Let it be `value` now, and `change` run in another thread once that was read."""
        self.value, self._change = value, change

    def __get__(self, instance: Any, owner: Any) -> Any:
        value = self.value
        change, self._change = self._change, None
        if change is not None:
            self.other = threading.Thread(target=change)
            self.other.start()
            self.other.join(MOMENT)
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        self.value = value


class Vanishing(List[Any]):
    """Slots that look as if there were some until one is to be taken."""

    def __len__(self) -> int:
        return 1


def test_an_idle_connection_that_another_thread_took_is_not_missed() -> None:
    lane = nowhere(pool_size=2)
    lane._idle = Vanishing()
    assert lane.ticket() is not lane.ticket()


def test_a_slot_that_comes_back_while_the_lane_closes_is_not_kept() -> None:
    lane = nowhere()
    slot = lane.ticket()

    class Closing(List[Any]):
        def append(self, item: Any) -> None:
            lane.close()
            super().append(item)

    closed: List[str] = []

    class Connection:
        stream = type("Stream", (), {"interrupt": staticmethod(lambda: None)})

        def close(self) -> None:
            closed.append("closed")

    slot.take(Connection())  # type: ignore[arg-type]
    lane._idle = Closing()
    lane.drop(slot)
    assert closed == ["closed"]
    assert not lane._idle


@pytest.mark.parametrize("up", [True, False])
def test_a_client_is_told_once_that_it_is_connected_or_not(up: bool) -> None:
    told: List[bool] = []

    class Watched(NativeLane):
        _up = Meanwhile(not up)

    lane = Watched(ClientConfig(url=NOWHERE), parse_url(NOWHERE), JSON)
    seam = Watched.__dict__["_up"]
    seam.between(not up, lambda: told.append(lane._changed(up=up)))
    told.append(lane._changed(up=up))
    seam.other.join(PATIENCE)
    assert sorted(told) == [False, True]
    seam.value = False


def test_a_connection_that_ended_takes_none_with_it_that_came_in_its_place() -> None:
    lane = nowhere()
    former, current = object(), object()

    def replace() -> None:
        with pushes._change:
            pushes._reader = current

    class Watched(Pushes):
        _reader = Meanwhile(None)

    pushes = Watched(lane)
    seam = Watched.__dict__["_reader"]
    seam.between(former, replace)
    pushes._ended(former, "it ended")  # type: ignore[arg-type]
    seam.other.join(PATIENCE)
    assert seam.value is current
    seam.value = None


def test_a_client_that_leaves_its_lane_while_it_is_looked_for_opens_another() -> None:
    lane = nowhere()

    class Watched(Calls):
        lane = Meanwhile(None)

    calls = Watched(ClientConfig(url=NOWHERE), Handlers())
    Watched.__dict__["lane"].between(lane, lambda: calls.replace_lane(lane))
    assert calls.open(0.0) is lane


def test_a_lane_may_be_forgotten_twice() -> None:
    lane = nowhere()

    class Emptied(List[Any]):
        def __contains__(self, item: object) -> bool:
            return True

    calls = Calls(ClientConfig(url=NOWHERE), Handlers())
    calls._lanes = Emptied()
    calls._forget(lane)
