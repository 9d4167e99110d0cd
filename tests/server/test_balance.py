"""After any storm of requests, translations and aborted connections, nothing counts as in flight any more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from synap.commands import BY_CODE
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import EngineHost
from synap.server.native import NativeSession
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.frames import Kind, frame
from tests.helpers.inside import Line, line
from tests.helpers.patience import PATIENCE
from tests.server.test_held_answers import Gate
from tests.server.test_translations import ENCODE, Asgi

BY_NAME = {one.name: one for one in BY_CODE.values()}
FORMATS = ("json", "msgpack")
LARGE: list[Any] = [[number, "text"] for number in range(8_000)]
VALUES: list[Any] = [1, "x" * 3_000, "x" * 300_000, LARGE, {"deep": LARGE}]
LIMIT = 24 * 1024 * 1024


class Storm:
    """A service in this process to which everything happens in a random order."""

    def __init__(self, seed: int, *, disk: bool) -> None:
        self.random = random.Random(seed)
        numbers = iter(range(10**9))
        engine = Engine(ids=lambda: next(numbers))
        self.log = Gate() if disk else None
        self.host = EngineHost(engine, log=self.log, soon=lambda work: asyncio.get_running_loop().call_soon(work))
        if self.log is not None:
            self.log.host = self.host
        self.service = Service(self.host, ServerConfig(transit_limit=LIMIT))
        self.sessions: list[NativeSession] = []
        self.lines: list[Line] = []
        self.asked: list[Asgi] = []
        self.rest_of: dict[Line, bytes] = {}
        """What is still to come of what was sent."""
        self.number = 0
        self.budget = engine.budget.aside

    # ---- what may happen
    def connect(self) -> None:
        made = line(self.service, self.random.choice(FORMATS), deaf=self.random.random() < 0.2)
        made.session._gzip = self.random.random() < 0.2
        self.lines.append(made)
        self.sessions.append(made.session)

    def payload(self) -> tuple[str, dict[str, Any]]:
        pick = self.random.choice
        value, key = pick(VALUES), pick("abc")
        return pick(
            [
                ("kv.set", {"key": key, "value": value}),
                ("kv.get", {"key": key}),
                ("kv.mget", {"keys": [key] * pick([1, 40, 3_000 if len(str(value)) < 5_000 else 30])}),
                ("queue.publish", {"queue": "q", "message": value}),
                ("queue.consume", {"queue": "q", "timeout": pick([0, 1_000])}),
                ("queue.consume_many", {"queues": ["q"], "max": 10}),
                ("stream.publish", {"room": "r", "event_type": "t", "data": value}),
                ("stream.subscribe", {"room": "r", "replay": True}),
                ("stream.delete", {"room": "r"}),
                ("pubsub.subscribe", {"topics": ["t"]}),
                ("pubsub.publish", {"topic": "t", "message": value}),
                ("queue.purge", {"queue": "q"}),
                ("batch", {"commands": [{"command": "kv.get", "payload": {"key": key}}] * pick([1, 60])}),
            ]
        )

    def send(self) -> None:
        open_ = [one for one in self.lines if not one.over and not one.session.closed]
        if not open_:
            return
        to = self.random.choice(open_)
        if to in self.rest_of:
            to.receive(self.rest_of.pop(to))
            return
        parts = []
        for _ in range(self.random.randrange(1, 5)):
            self.number += 1
            command, payload = self.payload()
            body = ENCODE[to.session.codec.format](payload)
            parts.append(frame(Kind.REQUEST, self.number, body, BY_NAME[command].code))
        whole = b"".join(parts)
        at = self.random.choice([len(whole), len(whole), len(whole) // 2])
        if at < len(whole):
            self.rest_of[to] = whole[at:]
        to.receive(whole[:at])

    def break_off(self) -> None:
        """A malformed frame, which ends the connection behind what it had asked for."""
        open_ = [one for one in self.lines if not one.over and not one.session.closed]
        if open_:
            self.random.choice(open_).receive(b"\xff" * 12)

    def post(self) -> None:
        command, payload = self.payload()
        if BY_NAME[command].pushes:
            return
        given, answer = self.random.choice(FORMATS), self.random.choice(FORMATS)
        body = ENCODE[given]({"command": command, "payload": payload})
        headers = {"content_type": f"application/{given}", "accept": f"application/{answer}"}
        if self.random.random() < 0.3:
            headers["accept_encoding"] = "gzip"
        self.asked.append(Asgi(self.service, body, **headers))

    def abort(self) -> None:
        """End a connection, whatever is under way."""
        if self.lines:
            self.lines.pop(self.random.randrange(len(self.lines))).abort()

    def hang_up(self) -> None:
        if self.asked:
            self.random.choice(self.asked).gone.set()

    def take_back(self) -> None:
        for request in list(self.service.waiting):
            request.take_back(SynapError("UNAUTHORIZED", "the key was revoked"))

    def measure(self) -> None:
        self.service.transit.look()

    def disk(self) -> None:
        if self.log is not None:
            if self.random.random() < 0.8:
                self.log.commit()
            else:
                self.log.fail()
                self.host.recovered()

    async def rest(self) -> None:
        for _ in range(self.random.randrange(20)):
            await asyncio.sleep(0)

    async def blow(self, count: int) -> None:
        """Let `count` things happen."""
        happens: list[Callable[[], Any]] = [self.connect] + [self.send] * 8 + [self.post] * 3 + [self.disk] * 3
        happens += [self.abort, self.hang_up, self.take_back, self.measure, self.break_off]
        for _ in range(count):
            self.random.choice(happens)()
            await self.rest()

    # ---- its end
    async def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, (self.counted(), bool(self.service.turns), self.host.busy, self.host.touched)
            if self.log is not None:
                self.log.commit()
            await asyncio.sleep(0)

    def counted(self) -> dict[str, Any]:
        """What counts as in flight."""
        service = self.service
        return {
            "bodies": {str(one): size for one, size in service.transit.bodies.items()},
            "translations": len(service.translations._under_way) + len(service.translations._behind),
            "held": sum(size for _, size in service.transit._held()),
            "promised": [one.promised for one in self.sessions if one.promised],
            "elsewhere": [one.elsewhere for one in self.sessions if one.elsewhere],
            "behind": [one for one in self.sessions if one._behind],
            "waiting": len(service.waiting),
            "connections": len(service.connections),
            "aside": self.host.engine.budget.aside - self.host.engine.replies.counted - self.budget,
        }

    def idle(self) -> bool:
        return not (self.service.turns or self.service.translations._under_way or self.host.busy or self.host.touched)


NOTHING = {
    "bodies": {},
    "translations": 0,
    "held": 0,
    "promised": [],
    "elsewhere": [],
    "behind": [],
    "waiting": 0,
    "connections": 0,
    "aside": 0,
}


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("seed", range(3))
async def test_after_a_storm_nothing_is_in_flight(seed: int, disk: bool) -> None:
    storm = Storm(seed, disk=disk)
    await storm.blow(150)
    for one in storm.asked:
        one.gone.set()
    for made in storm.lines:
        made.abort()
    await storm.until(lambda: all(one.task.done() for one in storm.asked))
    await storm.until(lambda: storm.idle() and all(one.closed for one in storm.sessions))
    await storm.until(storm.idle)
    for one in storm.asked:
        one.task.result()
    storm.measure()
    assert storm.counted() == NOTHING
