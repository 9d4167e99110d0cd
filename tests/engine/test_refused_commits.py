"""A disk that refuses takes everything back that was done since the last commit; what it took stays."""

from __future__ import annotations

from typing import Any, Dict, List

import msgspec
import pytest

from synap import commands as c
from synap.engine.journal import Journal, Record
from synap.errors import SynapError
from tests.engine.test_refused import EVERY, furnish
from tests.helpers.world import Client, picture, replay

NAMES = ("new", "q", "full", "empty", "q.dlq", "r", "other", "a", "t")


class Worked:
    """A world in which anything is done, with a disk that takes it or refuses it."""

    def __init__(self, seed: int, limits: Dict[str, Any]) -> None:
        self.world, caller, _ = furnish(seed=seed, **limits)
        self.engine = self.world.engine
        self.random = self.world.random
        self.callers: List[Client] = [caller, Client("t" * 32), Client()]
        self.number = 1000
        self.done: Dict[str, int] = {}

    def command(self) -> Any:
        """Make some command, about something that there is more often than not."""
        if self.random.random() < 0.3:
            queue = self.engine.store.queues.get(self.random.choice(NAMES))
            if queue is not None and queue.leased:
                text = self.random.choice(list(queue.leased))
                lease = queue.leased[text].lease
                return self.random.choice(
                    [
                        c.QueueAck(queue.name, text, lease),
                        c.QueueNack(queue.name, text, lease=lease),
                        c.QueueNack(queue.name, text, lease=lease, delay=3),
                        c.QueueNack(queue.name, text, requeue=False, lease=lease),
                        c.QueueExtend(queue.name, text, 20, lease),
                    ]
                )
        payload = self.random.choice(EVERY)
        for field in ("key", "queue", "room"):
            if hasattr(payload, field) and self.random.random() < 0.5:
                payload = msgspec.structs.replace(payload, **{field: self.random.choice(NAMES)})
        return payload

    def work(self) -> None:
        """Do one thing: a command, an atomic batch, time that passes, or a caller that leaves."""
        world, caller = self.world, self.random.choice(self.callers)
        self.number += 1
        what = self.random.random()
        try:
            if what < 0.75:
                payload = self.command()
                world(payload, caller, self.number)
                name = type(payload).__name__
                self.done[name] = self.done.get(name, 0) + 1
            elif what < 0.87:
                world.batch(*[self.command() for _ in range(3)], atomic=True, caller=caller, number=self.number)
            elif what < 0.98:
                world.sleep(self.random.choice([0.5, 4, 40, 1200]))
            else:
                self.engine.forget(caller, world.now)
        except SynapError:
            pass

    def refuse(self) -> None:
        """Take back what was done, as a host does: who waits or has just subscribed is refused."""
        Journal.roll_back(self.engine.collect()[1])
        self.engine.release_waiters(self.world.now, SynapError("SERVICE_UNAVAILABLE", "the disk refused"))
        Journal.roll_back(self.engine.collect()[1])


@pytest.mark.parametrize("limits", [{}, {"idle": 100}, {"memory": 40_000}, {"memory": 40_000, "evict": True}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_what_the_disk_refuses_never_was(seed: int, limits: Dict[str, Any]) -> None:
    worked = Worked(seed, limits)
    world, engine = worked.world, worked.engine
    log: List[Record] = [record for page in engine.dump() for record in page]
    before, used = picture(engine), engine.budget.used
    for turn in range(250):
        for _ in range(worked.random.randrange(1, 6)):
            worked.work()
        if worked.random.random() < 0.5:
            worked.refuse()
            after = picture(engine)
            assert {**after, "replies": 0} == {**before, "replies": 0}, f"turn {turn}"
            assert after["replies"].items() <= before["replies"].items(), "the oldest are forgotten, and stay so"
            assert engine.budget.used == used
        else:
            log += engine.collect()[0]
            before, used = picture(engine), engine.budget.used
        if not turn % 100:
            world.sleep(0)
            log += engine.collect()[0]
            before, used = picture(engine), engine.budget.used
            again = picture(replay(world.fresh(), log, world.now))
            assert {**again, "replies": 0} == {**before, "replies": 0}
    assert len(worked.done) > 25
