"""An engine and a model side by side, and what takes back, restarts and dumps in the middle of it all."""

from __future__ import annotations

import copy
import random
from typing import Any, Dict, Iterator, List, Optional

from synap import commands as c
from synap.engine.engine import Limits
from synap.engine.journal import Journal, Record, Undo
from tests.engine.model.plain import ROOM_EVENTS, Model, Rules
from tests.helpers.world import Client, World, dumped, picture, replay

RULES: Dict[str, Rules] = {"q": (1, 0, 2, 3600), "r": (3, 2, 2, 5)}
"""The queues: one whose messages are tried twice, without a pause, and one that waits longer with each try."""


def data_of(value: int) -> Any:
    return b"%d" % value


def config_of(rules: Rules) -> c.QueueConfig:
    most, delay, backoff, longest = rules
    return c.QueueConfig(max_retries=most, retry_delay=delay, retry_backoff=backoff, retry_max_delay=longest)


class Base:
    """Runs commands, commits from time to time, and takes back what was not committed."""

    def __init__(self) -> None:
        self.random = random.Random()
        self.world = World(durable=True, limits=Limits(room_events=ROOM_EVENTS, reply_age=1e9))
        self.model = Model()
        self.client = Client("me")
        self.number = 0
        self.log: List[Record] = []
        self.undos: List[Undo] = []
        self.safe = (copy.deepcopy(self.model), picture(self.world.engine))
        self.dump: Optional[Iterator[List[Record]]] = None
        self.snapshot: List[Record] = []
        self.since: List[Record] = []
        for queue in RULES:
            self.make(queue)
        self.commit()

    def make(self, queue: str) -> None:
        self.run(c.QueueCreate(queue, config_of(RULES[queue])))
        self.model.queues[queue] = []
        self.model.rules[queue] = RULES[queue]

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def run(self, payload: Any, caller: Optional[Client] = None) -> Any:
        self.number += 1
        return self.world(payload, caller or self.client, self.number)

    # ---- time, commits, restarts

    def pass_time(self) -> None:
        self.happen(self.pick(*range(10)))

    def happen(self, seconds: int) -> None:
        self.model.ids = {name: queue.incarnation for name, queue in self.world.engine.store.queues.items()}
        until = self.world.now + seconds
        while True:
            due = self.world.due()
            if due is None or due > until:
                break
            self.world.now = max(due, self.world.now)
            self.world.engine.advance(self.world.now)
            self.model.advance(self.world.now)
        self.world.now = until

    def commit(self) -> None:
        records, self.undos = self.world.engine.collect()
        self.undos = []
        self.log += records
        self.since += records
        self.safe = (copy.deepcopy(self.model), picture(self.world.engine))

    def commit_now(self) -> None:
        self.commit()

    def the_disk_refuses(self) -> None:
        _, undos = self.world.engine.collect()
        Journal.roll_back(undos)
        model, before = self.safe
        assert picture(self.world.engine) == before
        self.model = copy.deepcopy(model)
        self.dump = None
        self.happen(0)  # what was taken back may be due again

    def restart_from_the_log(self) -> None:
        self.commit()
        before = self.safe[1]
        self.world.restart(self.log)
        assert picture(self.world.engine) == before
        self.dump = None

    def begin_a_snapshot(self) -> None:
        size = self.pick(1, 2, 4)
        self.commit()
        self.dump = self.world.engine.dump(size)
        self.snapshot, self.since = [], []

    def go_on_with_the_snapshot(self) -> None:
        if self.dump is None:
            return
        page = next(self.dump, None)
        if page is not None:
            self.snapshot += page
            return
        self.commit()
        self.dump = None
        twin = replay(self.world.fresh(), self.snapshot + self.since, self.world.now)
        assert picture(twin) == self.safe[1]
        again = replay(self.world.fresh(), self.snapshot + self.since + self.since, self.world.now)
        assert picture(again) == self.safe[1]

    def restart_from_a_snapshot(self) -> None:
        self.commit()
        self.log = dumped(self.world.engine)
        self.world.restart(self.log)
        assert picture(self.world.engine) == self.safe[1]
        self.dump = None
