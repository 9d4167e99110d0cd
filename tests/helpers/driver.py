"""A caller in the host's own thread, and a thread for the host: what a server is to the log, without the sockets."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

from msgspec import Struct

from synap import commands
from synap.engine import records
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.host import ENDED, PUSH, EngineHost, Output, Session
from synap.storage import Durable, open_host
from synap.storage.inline import InlineCommits
from synap.storage.recovery import recover
from synap.wire.codec import JSON
from tests.helpers.patience import PATIENCE

__all__ = ["Client", "Service", "c", "contents", "contents_of"]

Outcome = Union[Any, SynapError]

c: Any = commands
"""The payloads; here their values are stored bytes already."""


class Client(Session):
    """A session that keeps what it is told."""

    __slots__ = ("answers", "on_answer", "pushed")

    def __init__(self, host: EngineHost, session: str = "") -> None:
        super().__init__(host, JSON, session)
        self.answers: Dict[Any, Outcome] = {}
        self.pushed: List[Any] = []
        self.on_answer: Callable[[Any, Outcome], None] = lambda number, outcome: None

    def deliver(self, output: List[Output]) -> None:
        for what, number, content, _ in output:
            if what in (PUSH, ENDED):
                self.pushed.append(content)
            else:
                self.answers[number] = content
                self.on_answer(number, content)

    def has_room(self) -> bool:
        return True


class AlwaysInline(InlineCommits):
    """Has each commit made inline that can be."""

    def __init__(self) -> None:
        super().__init__(None)

    def allowed(self, alone: bool, requests: Sequence[int], size: int, who: Optional[object] = None) -> bool:
        return alone


class Service:
    """A durable host whose thread is whoever holds `lock`, and calls that wait for their answer."""

    inline = False
    """Whether commits are made on the host's thread, but for those that must not be."""

    def __init__(self, directory: str, *, session: str = "", **options: Any) -> None:
        self.lock = threading.RLock()
        self._answered = threading.Condition(self.lock)
        self._opening: Optional[int] = None
        """The thread that opens the host, while it holds the lock."""
        self.durable: Durable = open_host(directory, call=self.call, guard=self._guard(), **options)
        self.host = self.durable.host
        self.log = self.durable.log
        if self.inline:
            self.log.inline = AlwaysInline()
        self.client = Client(self.host, session)
        self.client.on_answer = self._on_answer
        self._number = 0
        self._flows = True

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self.lock:
            self._opening = threading.get_ident()
            try:
                yield
            finally:
                self._opening = None

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._opening != threading.get_ident(), "other hosts' lock isn't reentrant: this would wait for ever"
        with self.lock:
            function(*arguments)

    def _on_flow(self) -> None:
        self._flows = True
        self._answered.notify_all()

    def _on_answer(self, number: Any, outcome: Outcome) -> None:
        self._answered.notify_all()

    def send(self, payload: Struct, number: Optional[int] = None, *, retried: bool = False) -> int:
        """Do a request without waiting for its answer; returns its number."""
        with self.lock:
            if self.host.stalled:
                self._flows = False
                self.host.when_flowing(self._on_flow)
                self._answered.wait_for(lambda: self._flows, PATIENCE)
            if number is None:
                self._number += 1
                number = self._number
            self.client.answers.pop(number, None)
            self.host.execute(self.client, number, c.BY_PAYLOAD[type(payload)], payload, retried, decoded=True)
            self.host.end_turn()
            return number

    def outcome(self, number: int, timeout: float = 30.0) -> Outcome:
        """Wait for the answer to a request, or its error."""
        with self.lock:
            if not self._answered.wait_for(lambda: number in self.client.answers, timeout):
                raise AssertionError(f"no answer to request {number} within {timeout} s")
            return self.client.answers[number]

    def do(self, payload: Struct, number: Optional[int] = None, *, retried: bool = False) -> Any:
        """Do a request and wait for its answer. Raises what it was refused with."""
        outcome = self.outcome(self.send(payload, number, retried=retried))
        if isinstance(outcome, SynapError):
            raise outcome
        return outcome

    def wait_until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until something holds that the log's thread brings about."""
        pause = threading.Event()
        for _ in range(int(timeout / 0.005)):
            with self.lock:
                if condition():
                    return
            pause.wait(0.005)
        raise AssertionError("it did not happen in time")

    def close(self) -> None:
        self.durable.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def contents(engine: Engine) -> List[str]:
    """Say all that an engine keeps, in an order that doesn't depend on how it came to be."""
    apart = (records.SECRET, records.TIME)
    return sorted(repr(plain(record)) for slice in engine.dump() for record in slice if record[0] not in apart)


def plain(thing: Any) -> Any:
    """Make lists of tuples, as a disk does."""
    if isinstance(thing, (list, tuple)):
        return [plain(item) for item in thing]
    if isinstance(thing, dict):
        return {name: plain(item) for name, item in sorted(thing.items())}
    return thing


def contents_of(directory: str, now: float = 0.0) -> List[str]:
    """Say all that a directory holds, without changing it."""
    engine = Engine(ids=lambda: 1)
    recover(directory, engine, now)
    return contents(engine)
