"""The host whose engine is a cluster: what lanes talk to, as they do to the host of an engine in this process.

Every request is a coroutine under `Running`; its answer comes in the turn in which the node's answer came. Callers'
sessions are remembered in the cluster, so a request may be sent again through any gateway.
"""

from __future__ import annotations

import functools
import logging
import secrets
import time
from collections import OrderedDict
from itertools import chain
from types import GeneratorType
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from synap import commands as c
from synap.cluster import checks
from synap.cluster.batches import Item, Recorder, run_atomic, run_each
from synap.cluster.calls import Refused
from synap.cluster.channels import PING_EVERY, Channels
from synap.cluster.condition import LOOK_EVERY, Condition
from synap.cluster.facilities import Facilities, explain
from synap.cluster.figures import Collector
from synap.cluster.link import Link
from synap.cluster.memory import LATE, Memory, Request
from synap.cluster.options import EngineOptions
from synap.cluster.queues import Delivery
from synap.cluster.rooms import RoomSubscription
from synap.cluster.running import Pending, Running, in_slices
from synap.cluster.sweeper import Sweeper
from synap.cluster.waiting import Consumers
from synap.engine.callers import Caller, Number, Steps, run
from synap.engine.deliveries import sent_again, waits_already
from synap.engine.limits import Limits
from synap.engine.topics import TopicSubscription
from synap.errors import UNCERTAIN, SynapError
from synap.host import Host, Session
from synap.host.batches import HINTS, is_numbered
from synap.host.jobs import SLICE
from synap.wire.codec import find
from synap.wire.frames import MAX_ANSWER
from synap.wire.large import LARGE

log = logging.getLogger("synap.cluster")

RENEW_EVERY = 5.0
"""Seconds between signs of life to rooms and to the registry of topics."""
FORGET_EVERY = LATE
"""Seconds between looks for sessions whose answers have expired."""
REMEMBERED = 10_000
"""Messages that can still be taken back by a caller that went away."""

Key = Tuple[Union[str, Session], Number]


class _Waits(NamedTuple):
    """A request that waits, its caller, and the queues that it waits for."""

    running: Pending
    session: Session
    command: c.Command
    payload: Any
    request: Request

    @property
    def queues(self) -> Sequence[str]:
        return self.command.names(self.payload) or () if self.command.waits else ()


UNFITTING = (TypeError, ValueError, AttributeError, LookupError)
"""What reading an answer raises that is another command's."""


class ClusterHost(Host):
    """Executes requests on a cluster. `direct`: all callers are in this process; `guard` is held by who uses the
    host."""

    holds = True
    remembers = True

    def __init__(
        self,
        options: EngineOptions,
        *,
        limits: Optional[Limits] = None,
        direct: bool = False,
        guard: Optional[ContextManager[Any]] = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.limits = Limits() if limits is None else limits
        self.direct = direct
        self.gateway = secrets.token_hex(6).encode()
        self.link = Link(options, guard=guard, turned=self.end_turn, flowing=self.read_on)
        self.warnings: List[str] = []
        self._under_way: Dict[Key, List[_Waits]] = {}
        """Requests that may take long, by whose they are: several where one that subscribes was sent again on another
        connection."""
        self._decoding: Dict[Session, Number] = {}
        """Callers whose large requests, or the commands of whose batches, are being decoded, each by one's number."""
        self._holding: Dict[Session, set[Number]] = {}
        """Requests that what their callers sent after them waits for, since a part of them is still to be sent."""
        self._delivered: OrderedDict[Key, List[Delivery]] = OrderedDict()
        self._delivered_count = 0
        self._closed = False
        self._opened = False

    # ------------------------------------------------------------------------------------------ life

    async def open(self) -> None:
        """Reach the cluster, check that it can do what is asked of it, and load the library; raises `SynapError`."""
        link = self.link
        try:
            await link.open()
            found = await checks.prepare(link)
        except BaseException:
            await link.close()
            raise
        self.warnings = found.warnings
        for warning in found.warnings:
            log.warning("%s", warning)
        self.channels = Channels(link, self._received, self._gap)
        self.facilities = Facilities(link, self.channels, self.gateway, self.limits, found.secret)
        self.facilities.keys.most_bytes = None if self.direct else MAX_ANSWER
        self.consumers = Consumers(link, self.facilities.queues, self.channels, self.gateway)
        self.memory = Memory(link, secrets.token_hex(16).encode(), direct=self.direct)
        self.recorder = Recorder(link.places)
        self._recorded = Facilities(self.recorder, self.channels, self.gateway, self.limits, found.secret)
        self.collector = Collector(link, self.facilities, self.limits)
        self.sweeper = Sweeper(link, self.facilities.queues, self.gateway, self.limits)
        link.moved = self.channels.repair
        self._joiners = [*self.facilities.queues.joiners, self.consumers.joiner]
        self._opened = True
        self._every(PING_EVERY, self.channels.check)
        self._every(RENEW_EVERY, self._renew)
        self._every(FORGET_EVERY, self.memory.age)
        self._every(1.0, self.sweeper.sweep)
        self.condition = Condition(link, self._judged)
        if not self.direct:
            self._every(LOOK_EVERY, self.condition.look)

    async def close(self) -> None:
        """Withdraw what is registered for this gateway, and end all connections."""
        self._closed = True
        if not self._opened:
            return
        with self.link.guard:
            self.drain()
            left = [
                subscription
                for room in self.facilities.rooms.followed.values()
                for subscription in room.subscriptions.values()
            ]
            for subscription in left:
                self.facilities.rooms.drop(subscription)
            for topic in list(self.facilities.topics.here.subscriptions.values()):
                self.facilities.topics.drop(topic)
            self.channels.close()
            self.memory.close()
        await self.link.settle(1.0)
        await self.link.close()

    def _every(self, seconds: float, what: Callable[[], None]) -> None:
        def again() -> None:
            if not self._closed:
                self.link.later(seconds, again)
                what()

        self.link.later(seconds, again)

    def _judged(self, trouble: Optional[SynapError], partial: bool) -> None:
        self.unavailable, self.partial = trouble, partial

    def _renew(self) -> None:
        rooms = self.facilities.rooms
        rooms.look_again(list(rooms.followed))
        Running(self.facilities.topics.alive()).start()

    # ------------------------------------------------------------------------------------------ requests

    def execute(
        self,
        session: Session,
        number: Number,
        command: c.Command,
        body: Any,
        retried: bool = False,
        *,
        decoded: bool = False,
    ) -> None:
        if not decoded and not self.direct and len(body) > LARGE:
            self._decode(session, number, command, body, retried)
            return
        self.requests[command.code] += 1
        try:
            payload = body if decoded else session.decode(command, body)
            if command.waits:
                self._check_number(session, number)
                if self._take_over(session, number, command):
                    return
            request = self.memory.request(session.session, number, retried)
            if request.order is not None:
                self._flush_earlier(command, payload, request)
            running = self._start(session, number, command, payload, request)
            if command.stepwise and command.writes:
                self._hold(session, number, True)
        except SynapError as error:
            self.count_error(error.code)
            session.refuse(number, error)
            return
        except Exception:  # a bug is an error to its own caller
            session.refuse(number, self.crashed(command.name))
            return
        self._await(number, _Waits(running, session, command, payload, request))

    def _await(self, number: Number, one: _Waits) -> None:
        """Have a request answered once it is done."""
        running, session, command, payload, request = one
        if command.waits or command.pushes:
            self._under_way.setdefault((session.session or session, number), []).append(one)
            session.waiting.add(number)
        running.when_done(functools.partial(self._finished, session, number, command, payload, request, running))

    def _take_over(self, session: Session, number: Number, command: c.Command) -> bool:
        """Have a request that waits answered where it was sent again, on another connection: two would take messages
        for one caller. Returns whether there was one."""
        for one in self._under_way.get((session.session or session, number), ()):
            if one.command is command and not one.running.done:
                self._forget(one.session, number)
                one.session.refuse(number, sent_again(may_have_happened=True))
                self._await(number, one._replace(session=session))
                return True
        return False

    def _decode(self, session: Session, number: Number, command: c.Command, body: Any, retried: bool) -> None:
        """Decode a large request in slices, with others' requests in between; what its caller sent after it waits."""
        steps = session.codec.decode_in_steps(command, body)
        self._decoding[session] = number
        self.busy = True

        def go_on() -> None:
            end = time.perf_counter() + SLICE
            try:
                while time.perf_counter() < end:
                    if next(steps):
                        break
                self.link.later(0.0, turn)
                return
            except StopIteration as done:
                payload = done.value
            except SynapError as error:
                payload = error
            except Exception:  # a bug is an error to its own caller
                payload = self.crashed(command.name)
            self._decoded(session)
            try:
                if isinstance(payload, SynapError):
                    raise payload
                session.check(command, payload)
            except SynapError as error:
                self.requests[command.code] += 1
                self.count_error(error.code)
                session.refuse(number, error)
            else:
                self.execute(session, number, command, payload, retried, decoded=True)

        def turn() -> None:
            if session in self._decoding:  # else it has left
                go_on()
                self.end_turn()
                if session not in self._decoding:
                    session.go_on()

        go_on()

    def _decoded(self, session: Session) -> None:
        del self._decoding[session]
        self.busy = bool(self._decoding or self._holding)

    def _hold(self, session: Session, number: Number, hold: bool) -> None:
        """Have what a caller sends after a request wait, or no longer. In this process it comes in no order."""
        if hold and not self.direct:
            self._holding.setdefault(session, set()).add(number)
            self.busy = True
        elif number in self._holding.get(session, ()):
            self._holding[session].discard(number)
            if not self._holding[session]:
                del self._holding[session]
            self.busy = bool(self._decoding or self._holding)
            self.link.soon(session.go_on)

    def working_for(self, session: Session) -> bool:
        return session in self._decoding or session in self._holding

    def _check_number(self, session: Session, number: Number) -> None:
        """Raise where a request of the caller with this number is under way."""
        if any(one.session is session for one in self._under_way.get((session.session or session, number), ())):
            raise waits_already(number)

    def _flush_earlier(self, command: c.Command, payload: Any, request: Request) -> None:
        """Send what the same caller asked before ahead of this, where they may be in one partition."""
        queue = getattr(payload, "queue", None)
        for joiner in self._joiners:
            if joiner.command is not command:
                joiner.flush(request.order, queue)

    def _start(self, session: Session, number: Number, command: c.Command, payload: Any, request: Request) -> Pending:
        if command.bundle:
            return Running(self._batch(session, number, payload, request)).start()
        if command.admin:
            return Running(self._administer(session, command, payload)).start()
        if command.leases:
            return self.consumers.begin(command, payload, request)
        if command.pushes or command.ends is not None:
            return self.facilities.begin(command, payload, session)
        return self.facilities.begin(command, payload, request)

    def _finished(
        self, session: Session, number: Number, command: c.Command, payload: Any, request: Request, running: Pending
    ) -> None:
        if command.waits or command.pushes:
            self._forget(session, number)
        elif self._holding:
            self._hold(session, number, False)
        error = running.error
        if request.touched and not (isinstance(error, SynapError) and error.may_have_happened):
            self.memory.answered(session.session, number, request)
        if error is not None:
            self._failed(session, number, command, payload, request, error)
            return
        value = running.value
        pushed = command.pushes and not command.admin
        if pushed:
            try:
                session.check_again(command, payload, value.subscription_id)
            except SynapError as refusal:
                self.unsubscribe(session, value.subscription_id)
                self._failed(session, number, command, payload, request, refusal)
                return
        elif command.leases:
            value = self._leased(session, number, command, value)
        session.answer(number, value)
        if pushed:
            self.resume(session, value.subscription_id)

    def _failed(
        self,
        session: Session,
        number: Number,
        command: c.Command,
        payload: Any,
        request: Request,
        error: BaseException,
    ) -> None:
        if isinstance(error, Refused):
            error = explain(error, payload)
        elif isinstance(error, UNFITTING) and request.kin and request.retried != b"0":
            log.warning("%s was answered what is remembered of another command: %s", command.name, error)
            error = SynapError("INVALID_REQUEST", f"request {number} was another command before")
            error.may_have_happened = True  # of a batch, the rest
        if isinstance(error, SynapError):
            self.count_error(error.code)
            session.refuse(number, error)
            return
        try:
            raise error
        except Exception:  # likewise
            session.refuse(number, self.crashed(command.name))

    def _leased(self, session: Session, number: Number, command: c.Command, found: List[Delivery]) -> Any:
        """Note deliveries, so that a caller that has gone meanwhile can give them back, and build the answer."""
        answer = self.consumers.answer(command, found)
        if found:
            for delivery in found:
                del delivery.answer  # with the message, which may be large
            key = session.session or session, number
            self._forget_delivered(key)
            self._delivered[key] = found
            self._delivered_count += len(found)
            while self._delivered_count > REMEMBERED:
                self._forget_delivered(next(iter(self._delivered)))
        return answer

    def _forget_delivered(self, key: Key) -> Sequence[Delivery]:
        found = self._delivered.pop(key, ())
        self._delivered_count -= len(found)
        return found

    async def _administer(self, session: Session, command: c.Command, payload: Any) -> Any:
        if command is c.ADMIN_STATS:
            await self.collector.collect()
        answer = self.administer(command, payload, session)
        return run(answer) if isinstance(answer, GeneratorType) else answer

    async def _batch(self, session: Session, number: Number, batch: c.BatchRequest, request: Request) -> Any:
        numbered = is_numbered(batch)
        items = await self._in_turns(session, number, self._items(session, batch))
        if batch.atomic:
            return await run_atomic(items, request, self.link, self._recorded, self.recorder)
        requests: List[Request] = []
        for place, item in enumerate(batch.commands):
            if numbered:
                part = self.memory.request(session.session, item.number or 0, True)
            else:
                part = request.piece(place)
                part.order = part.order or request
            requests.append(part)
        execute, hold = functools.partial(self._execute_item, session), functools.partial(self._hold, session, number)
        answer = await run_each(items, requests, execute, self.count_error, hold)
        if numbered:
            for item, part, outcome in zip(batch.commands, requests, answer.results):
                if outcome.error is None or UNCERTAIN not in outcome.error.details:
                    self.memory.answered(session.session, item.number or 0, part)
        return answer

    def _items(self, session: Session, batch: c.BatchRequest) -> Steps:
        """Decode the commands of a batch, and check that its caller may do them."""
        items: List[Item] = []
        codec, errors = session.codec, 0
        for item in batch.commands:
            hint = errors < HINTS
            try:
                command = find(item.command, hint=hint)
                self.requests[command.code] += 1
                body = bytes(item.payload) or codec.empty
                if len(body) > LARGE:
                    payload = yield from codec.decode_in_steps(command, body, hint=hint)
                else:
                    payload = codec.decode_payload(command, body, hint=hint)
                session.check(command, payload)
                items.append((command, payload))
            except SynapError as error:
                errors += 1
                items.append((None, error))
            yield
        return items

    async def _in_turns(self, session: Session, number: Number, steps: Steps) -> Any:
        """Return what steps return, with others' requests in between; what their caller sent after them waits."""
        if self.direct:  # what its caller sends is in no order
            return await in_slices(steps, self.link.soon)

        def soon(turn: Callable[[], None]) -> None:
            self._decoding[session] = number
            self.busy = True
            self.link.soon(lambda: turn() if session in self._decoding else None)  # else it has left

        try:
            return await in_slices(steps, soon)
        finally:
            if session in self._decoding:
                self._decoded(session)
                self.link.soon(session.go_on)

    def _execute_item(self, session: Session, command: c.Command, payload: Any, request: Request) -> Any:
        session.check(command, payload)  # again: the commands before may have taken long
        if request.order is not None:
            self._flush_earlier(command, payload, request)
        return self.facilities.execute(command, payload, request)

    # ------------------------------------------------------------------------------------------ what lanes ask

    def end_turn(self) -> None:
        if self.touched:
            self.deliver()

    def resume(self, session: Session, subscription_id: int) -> bool:
        subscription = session.subscriptions.get(subscription_id)
        if isinstance(subscription, RoomSubscription):
            return self.facilities.rooms.resume(subscription)
        return True

    def unsubscribe(self, session: Session, subscription_id: int) -> None:
        subscription = session.subscriptions.get(subscription_id)
        if isinstance(subscription, RoomSubscription):
            self.facilities.rooms.drop(subscription)
        elif isinstance(subscription, TopicSubscription):
            self.facilities.topics.drop(subscription)

    def cancel(self, session: Session, number: Number) -> bool:
        key = (session.session or session, number)
        waiting = list(self._under_way.get(key, ()))
        for waits in waiting:
            self._forget(waits.session, number)
            waits.running.cancel()
        session.waiting.discard(number)
        for delivery in self._forget_delivered(key):
            self.facilities.queues.give_back(delivery)
        return bool(waiting)

    def _forget(self, session: Session, number: Number) -> List[_Waits]:
        """Note that a request of one connection waits no longer; returns it, where it did."""
        key = (session.session or session, number)
        waiting = self._under_way.pop(key, [])
        others = [waits for waits in waiting if waits.session is not session]
        if others:
            self._under_way[key] = others
        session.waiting.discard(number)
        return [waits for waits in waiting if waits.session is session]

    def confirm(self, session: Session, below: int) -> None:
        self.memory.confirm(session.session, below)

    def leave(self, session: Session) -> None:
        if session in self._decoding:
            number = self._decoding[session]
            self._decoded(session)
            session.dropped(number)
        with self.consumers.together():
            for number in list(session.waiting):
                for waits in self._forget(session, number):
                    waits.running.cancel()
        for subscription_id in list(session.subscriptions):
            self.unsubscribe(session, subscription_id)
        self.memory.leave(session.session)
        self.end_turn()

    def drain(self) -> None:
        if self._opened:
            self.consumers.drain()
        self.end_turn()

    def inherited(self) -> bool:
        return False

    @property
    def stalled(self) -> bool:
        return self.link.stalled

    def settled(self) -> bool:
        return not (self.touched or self._decoding or self._holding) and self.link.calls == self.condition.under_way

    def waits(self) -> Iterator[Tuple[Caller, str]]:
        for waits in chain.from_iterable(list(self._under_way.values())):
            if not waits.running.done:
                for queue in waits.queues:
                    yield waits.session, queue

    # ------------------------------------------------------------------------------------------ messages of channels

    def _received(self, channel: bytes, message: bytes) -> None:
        _, _, rest = channel.partition(b"}:")
        kind, _, name = rest.partition(b":")
        if kind == b"ss":
            self.facilities.rooms.received(name.decode(), message)
        elif message[:1] == b"t":
            self.facilities.topics.received(message[1:])
        else:
            self.consumers.hint(message[1:].decode())

    def _gap(self, channels: List[bytes]) -> None:
        """Read what may have been missed while channels were lost."""
        kinds = [channel.partition(b"}:")[2].partition(b":") for channel in channels]
        self.facilities.rooms.look_again([name.decode() for kind, _, name in kinds if kind == b"ss"])
        self.consumers.look_again(set(channels))

    # ------------------------------------------------------------------------------------------ figures

    def stats(self, most: Optional[int] = None) -> Dict[str, Any]:
        """Figures of the cluster, at most a second older than the last time they were asked for."""
        self.collector.refresh()
        topics = self.facilities.topics
        rooms = self.facilities.rooms.followed.values()
        here = {
            "stream_subscriptions": sum(len(room.subscriptions) for room in rooms),
            "topic_subscriptions": len(topics.here.subscriptions),
            "topic_patterns": len(topics.mirror.patterns),
            "topic_published_total": topics.published,
            "topic_delivered_total": topics.here.delivered,
            "waiting": self.consumers.waiting,
            "replies": 0,
        }
        return {**self.collector.figures(most), **here, **super().stats(most)}

    def health(self) -> Dict[str, Any]:
        return {
            **super().health(),
            "durable": True,
            "engine": "cluster",
            "durability": self.options.durability,
            "primaries": len(self.link.topology.primaries),
            "calls_under_way": self.link.calls,
            "warnings": list(self.warnings),
        }
