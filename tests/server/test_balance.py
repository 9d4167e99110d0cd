"""After any storm of requests, translations, withdrawals and aborts, on all lanes, nothing is held any more.

Nothing counts as in flight, waits, or is awaited by the audit log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synap.commands import BY_CODE
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import EngineHost, jobs
from synap.host import engine as engine_host
from synap.server.app import App
from synap.server.native import NativeSession
from synap.server.service import Service
from synap.server.settings import ServerConfig
from synap.wire.frames import RETRY, Kind, frame
from tests.helpers.inside import Line, line
from tests.helpers.patience import PATIENCE
from tests.server.test_held_answers import Gate
from tests.server.test_translations import ENCODE, Asgi

BY_NAME = {one.name: one for one in BY_CODE.values()}
FORMATS = ("json", "msgpack")
LARGE: list[Any] = [[number, "text"] for number in range(8_000)]
VALUES: list[Any] = [1, "x" * 3_000, "x" * 300_000, LARGE, {"deep": LARGE}]
LIMIT = 24 * 1024 * 1024
MANY = [{"key": f"many{number}", "value": number} for number in range(1_200)]
"""So many that setting them takes several slices, during which all others wait."""


class WebSocket:
    """One WebSocket to the application, without a network."""

    def __init__(self, place: Service, deaf: bool = False, **headers: str) -> None:
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.messages.put_nowait({"type": "websocket.connect"})
        self._deaf = deaf
        self._over = asyncio.Event()
        scope = {"type": "websocket", "path": "/api/v1/ws", "query_string": b"", "subprotocols": []}
        scope |= {"headers": [(b"host", b"localhost"), *given], "client": ("127.0.0.1", 1)}
        self.task = asyncio.ensure_future(App(place)(scope, self.messages.get, self._send))

    async def _send(self, message: Any) -> None:
        if self._deaf and message["type"] == "websocket.send":
            await self._over.wait()

    def ask(self, body: bytes, format: str) -> None:
        kind = {"text": body.decode()} if format == "json" else {"bytes": body}
        self.messages.put_nowait({"type": "websocket.receive", **kind})

    def abort(self) -> None:
        self._over.set()
        self.messages.put_nowait({"type": "websocket.disconnect"})


class Storm:
    """A service in this process to which everything happens in a random order."""

    def __init__(self, seed: int, *, disk: bool, audit_log: str | None = None) -> None:
        self.random = random.Random(seed)
        numbers = iter(range(10**9))
        engine = Engine(ids=lambda: next(numbers))
        self.log = Gate() if disk else None
        self.later: list[Callable[[], None]] = []
        """What the host does in its next slices."""
        self.host = EngineHost(engine, log=self.log, soon=self.later.append)
        if self.log is not None:
            self.log.host = self.host
        self.service = Service(self.host, ServerConfig(transit_limit=LIMIT, audit_log=audit_log))
        self.sessions: list[NativeSession] = []
        self.lines: list[Line] = []
        self.asked: list[Asgi] = []
        self.carriers: list[WebSocket] = []
        self.tasks: list[asyncio.Future[None]] = []
        """Of all requests over HTTP, and WebSockets."""
        self.last: dict[Line, tuple[int, bytes, int]] = {}
        """The last request of each connection: its number, body and command."""
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
                ("batch", {"commands": [{"command": "kv.set", "payload": {"key": key, "value": "x" * 900}}] * 100}),
                ("batch", {"commands": [{"command": "queue.create", "payload": {"queue": "q"}}] * 100}),
                ("kv.mset", {"pairs": MANY}),
                ("kv.clear", {"prefix": pick(["many", "none"])}),
                ("queue.create", {"queue": "q"}),
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
            self.last[to] = self.number, body, BY_NAME[command].code
        whole = b"".join(parts)
        at = self.random.choice([len(whole), len(whole), len(whole) // 2])
        if at < len(whole):
            self.rest_of[to] = whole[at:]
        to.receive(whole[:at])

    def work(self) -> None:
        """Let the host have its next slices."""
        later, self.later[:] = list(self.later), []
        for work in later:
            work()

    def cancel(self) -> None:
        """Take back what a connection asked last."""
        open_ = [one for one in self.last if not one.over and one not in self.rest_of]
        if open_:
            to = self.random.choice(open_)
            to.receive(frame(Kind.CANCEL, self.last[to][0]))

    def reconnect(self) -> None:
        """Open a newer connection of the same session, and ask again what may not have been answered."""
        open_ = [one for one in self.last if one not in self.rest_of]
        if open_:
            earlier = self.random.choice(open_)
            session = earlier.session
            made = line(self.service, session.codec.format, session=session.session)
            self.lines.append(made)
            self.sessions.append(made.session)
            number, body, code = self.last[made] = self.last.pop(earlier)
            made.receive(frame(Kind.REQUEST, number, body, code, RETRY))

    def carry(self) -> None:
        """Open a WebSocket."""
        self.carriers.append(WebSocket(self.service, deaf=self.random.random() < 0.2))
        self.tasks.append(self.carriers[-1].task)

    def ask(self) -> None:
        """Ask over a WebSocket."""
        if self.carriers:
            command, payload = self.payload()
            format = self.random.choice(FORMATS)
            self.random.choice(self.carriers).ask(ENCODE[format](self.envelope(command, payload)), format)

    def envelope(self, command: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        what = {"type": "batch", **payload} if command == "batch" else {"command": command, "payload": payload}
        return {**what, "request_id": f"{'a' * 32}:{self.number}"}

    def withdraw(self) -> None:
        """Take back a request over HTTP or a WebSocket by another one."""
        if self.service.under_way:
            self.random.choice(list(self.service.under_way.values())).withdraw()
            self.host.end_turn()

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
        body = ENCODE[given](self.envelope(command, payload))
        headers = {"content_type": f"application/{given}", "accept": f"application/{answer}"}
        if self.random.random() < 0.3:
            headers["accept_encoding"] = "gzip"
        self.asked.append(Asgi(self.service, body, **headers))
        self.tasks.append(self.asked[-1].task)

    def abort(self) -> None:
        """End a connection, whatever is under way."""
        those: list[Any] = [*self.lines, *self.carriers]
        if those:
            one = self.random.choice(those)
            (self.lines if one in self.lines else self.carriers).remove(one)
            one.abort()

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
        happens += (
            [self.carry] + [self.ask] * 6 + [self.cancel, self.reconnect] * 2 + [self.withdraw] + [self.work] * 10
        )
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
            self.work()
            await asyncio.sleep(0)

    def counted(self) -> dict[str, Any]:
        """What counts as in flight."""
        service, work = self.service, self.host.jobs
        return {
            "bodies": {str(one): size for one, size in service.transit.bodies.items()},
            "translations": len(service.translations._under_way) + len(service.translations._behind),
            "held": sum(size for _, size in service.transit._held()),
            "promised": [one.promised for one in self.sessions if one.promised],
            "elsewhere": [one.elsewhere for one in self.sessions if one.elsewhere],
            "behind": [one for one in self.sessions if one._behind],
            "waiting": len(service.waiting),
            "working": sum(service.transit.working.values()),
            "under_way": list(service.under_way),
            "awaited": list(service.awaited),
            "unfinished": 0 if service.audit is None else len(service.audit._unfinished),
            "jobs": len(work.running) + len(work.waiting) + work.size + len(work._whose),
            "listeners": len(service.listeners) + len(service.native),
            "connections": len(service.connections),
            "aside": self.host.engine.budget.aside - self.host.engine.replies.counted - self.budget,
        }

    def idle(self) -> bool:
        settled = self.host.settled() and not self.host.busy
        return settled and not (self.service.turns or self.service.translations._under_way)


NOTHING = {
    "bodies": {},
    "translations": 0,
    "held": 0,
    "promised": [],
    "elsewhere": [],
    "behind": [],
    "waiting": 0,
    "working": 0,
    "under_way": [],
    "awaited": [],
    "unfinished": 0,
    "jobs": 0,
    "listeners": 0,
    "connections": 0,
    "aside": 0,
}


@pytest.mark.parametrize("audited", [False, True], ids=["plain", "audited"])
@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("seed", range(2))
async def test_after_a_storm_nothing_is_in_flight(
    seed: int, disk: bool, audited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE", 0.0)
    monkeypatch.setattr(engine_host, "JOBS_TURN", 0.00002)
    storm = Storm(seed, disk=disk, audit_log=str(tmp_path / "audit.jsonl") if audited else None)
    await storm.blow(250)
    for one in storm.asked:
        one.gone.set()
    for made in storm.lines:
        made.abort()
    for carrier in storm.carriers:
        carrier.abort()
    await storm.until(lambda: all(task.done() for task in storm.tasks))
    await storm.until(lambda: storm.idle() and all(one.closed for one in storm.sessions))
    await storm.until(storm.idle)
    for task in storm.tasks:
        task.result()
    storm.measure()
    assert storm.counted() == NOTHING
