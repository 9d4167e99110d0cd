"""Celery's result backend: results are keys, announced by pub/sub to processes that wait for them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple, Union
from urllib.parse import unquote, urlsplit

from celery import maybe_signature, states
from celery.backends.asynchronous import AsyncBackendMixin, BaseResultConsumer
from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result

from synap import KeyNotFoundError, SynapClient, SynapError, SyncSubscription, TimeoutError
from synap.client.retry import is_transient
from synap.contrib.celery.bindings import scan
from synap.contrib.celery.transport import client_url
from synap.contrib.sharing import PAUSE, Outage, slices

__all__ = ["ResultConsumer", "SynapBackend"]

log = logging.getLogger("synap.contrib.celery")

LOOK = 10.0
"""Seconds after which who waits looks by itself: a message that is published during an outage is missed."""


def _text(key: Union[str, bytes]) -> str:
    return key if isinstance(key, str) else key.decode()


def topic_of(key: str) -> str:
    """Return the topic on which a result is announced: one word, whatever the task's id."""
    return "celery." + key.replace("%", "%25").replace(".", "%2E").replace("*", "%2A").replace("#", "%23")


class ResultConsumer(BaseResultConsumer):
    """Receives the results that this process waits for.

    Celery says of each task of a group that its result is wanted, also where nobody ever waits. So tasks are gathered
    until somebody does, and one subscription is for many of them.
    """

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.on_after_fork()

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Subscribe to the first task."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """Unsubscribe from all tasks."""
        self._wanted.clear()
        for task_id in list(self._subscribed):
            self.cancel_for(task_id)

    def on_after_fork(self) -> None:
        """Drop the parent's subscriptions."""
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._subscribing = threading.Lock()
        self._look_at = 0.0
        """When the results that are waited for are looked at next."""
        self._outage = Outage(log, "waiting for results")
        self._wanted: Dict[str, None] = {}
        """Tasks that are not subscribed to yet."""
        self._subscribed: Dict[str, Tuple[SyncSubscription[Any], Set[str]]] = {}
        """Subscriptions by task, each with all of its tasks that are still waited for."""

    def consume_from(self, task_id: str) -> None:
        """Subscribe to a task's result, once somebody waits."""
        if task_id not in self._subscribed:
            self._wanted[task_id] = None

    def _subscribe(self) -> bool:
        """Subscribe to the tasks that aren't yet, and fetch what is stored of them, each `LOOK` seconds of all.

        Returns whether something was fetched.
        """
        fresh: List[str] = []
        with self._subscribing:  # whoever waits for a task fetches its result once that is subscribed to
            while self._wanted:
                some = set(next(slices(self._wanted)))
                topics = [topic_of(self.backend.key_of(task_id)) for task_id in some]
                subscription = self.backend.client.pubsub.subscribe(
                    topics, lambda _, message: self._arrived.put(message)
                )
                fresh += some
                for task_id in list(some):
                    self._subscribed[task_id] = subscription, some
                    if self._wanted.pop(task_id, ...) is ...:  # given up meanwhile
                        self.cancel_for(task_id)
        if fresh:
            self._look_at = time.monotonic() + LOOK
        elif time.monotonic() >= self._look_at:
            fresh = list(self._subscribed)
            self._look_at = time.monotonic() + LOOK
        if fresh:
            for _, meta in self.backend.get_many(fresh, interval=0, max_iterations=1):
                self.on_state_change(meta, None)
        self._outage.over()
        return bool(fresh)

    def cancel_for(self, task_id: str) -> None:
        """Unsubscribe from a task: with the last one of its subscription, from all of them."""
        self._wanted.pop(task_id, None)
        subscription, tasks = self._subscribed.pop(task_id, (None, set()))
        tasks.discard(task_id)
        if subscription is not None and not tasks:
            subscription.unsubscribe()

    def drain_events(self, timeout: Optional[float] = None) -> None:
        """Process one result that has arrived, waiting up to `timeout` seconds for it, by default and at most `LOOK`.

        Waits through an outage.
        """
        wait = LOOK if timeout is None else min(timeout, LOOK)
        try:
            if self._subscribe():
                return
        except SynapError as error:
            if not is_transient(error) and not isinstance(error, TimeoutError):
                raise
            self._outage.goes_on(error)
            self._look_at = 0.0  # as soon as it is over
            wait = min(wait, PAUSE)
        try:
            message = self._arrived.get(timeout=wait)
        except queue.Empty:
            return
        self.on_state_change(self.backend.decode_result(message), message)

    def on_state_change(self, meta: Dict[str, Any], message: Any) -> None:
        """Process a new state of a task."""
        super().on_state_change(meta, message)
        if meta["status"] in states.READY_STATES:
            self.cancel_for(meta["task_id"])

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        """Fetch results that were stored before the subscription."""
        self._subscribe()
        for meta in result._iter_meta(**{**kwargs, "interval": 0}):
            if meta is not None:
                self.on_state_change(meta, None)


class SynapBackend(BaseKeyValueStoreBackend, AsyncBackendMixin):
    """A result backend. Results and the parts of a chord expire after `result_expires`.

    `result_backend_transport_options = {"options": {…}}`: fields of `ClientConfig`.
    """

    ResultConsumer = ResultConsumer
    supports_autoexpire = True
    supports_native_join = True
    persistent = True

    def __init__(self, url: Optional[str] = None, **kwargs: Any) -> None:
        super().__init__(expires_type=int, url=url, **kwargs)
        self.url = url or "synap://"
        self._client: Optional[SynapClient] = None
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )

    @property
    def client(self) -> SynapClient:
        """The client of this process."""
        if self._client is None:
            parts = urlsplit(self.url)
            options = self.app.conf.get("result_backend_transport_options", {}).get("options", {})
            self._client = SynapClient(
                url=client_url(parts.scheme, parts.hostname, parts.port),
                **{"api_key": unquote(parts.password) if parts.password else None, **options, "format": "msgpack"},
            )
        return self._client

    def key_of(self, task_id: str) -> str:
        """Return the key of a task's result."""
        return _text(self.get_key_for_task(task_id))

    def as_uri(self, include_password: bool = False) -> str:
        """Return the URL, with the password masked unless `include_password`."""
        parts = urlsplit(self.url)
        if include_password or not parts.password:
            return self.url
        return self.url.replace(f":{parts.password}@", ":**@")

    def get(self, key: Union[str, bytes]) -> Any:
        """Return the value of a key, or None."""
        return self.client.kv.get(_text(key)).value

    def mget(self, keys: Iterable[Union[str, bytes]]) -> List[Any]:
        """Return several values in order."""
        names = [_text(key) for key in keys]
        return [found.value for some in slices(names) for found in self.client.kv.mget(*some)]

    def _ttl(self) -> Optional[int]:
        return int(self.expires) if self.expires else None

    def set(self, key: Union[str, bytes], value: Any) -> None:
        """Store a value and announce it, in one call."""
        name = _text(key)
        commands = [
            {"command": "kv.set", "payload": {"key": name, "value": value, "ttl": self._ttl()}},
            {"command": "pubsub.publish", "payload": {"topic": topic_of(name), "message": value}},
        ]
        for result in self.client.batch(commands):
            if result.error is not None:
                raise OSError(f"the result was not stored: {result.error['message']}")  # Celery tries again

    def delete(self, key: Union[str, bytes]) -> None:
        """Delete a value."""
        self.client.kv.delete(_text(key))

    def incr(self, key: Union[str, bytes]) -> int:
        """Add one to a counter."""
        return self.client.kv.incr(_text(key))

    def expire(self, key: Union[str, bytes], value: float) -> None:
        """Set the seconds until a key expires."""
        with suppress(KeyNotFoundError):
            self.client.kv.expire(_text(key), max(1, int(value)))

    # ------------------------------------------------------------------------------------------ chords

    def _group_key(self, group_id: str, suffix: str) -> str:
        return _text(self.get_key_for_group(group_id, suffix))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Store the number of parts of a chord."""
        self.client.kv.set(self._group_key(group_id, ".s"), chord_size, ttl=self._ttl())

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Count one more part of a chord: a task was replaced by another."""
        self.client.kv.incr(self._group_key(chord_id, ".t"))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Store the structure of a header that contains groups, to put the results in order later."""
        group_id, results = header_result_args[:2]
        if any(isinstance(part, GroupResult) for part in results):
            self.app.GroupResult(group_id, results).save(backend=self)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Store a part's result; the last one to arrive calls the body, once."""
        task_id, group_id = request.id, request.group
        if not task_id or not group_id:
            return
        place = "~" if request.group_index is None else f"{request.group_index:010d}"
        prefix = self._group_key(group_id, ".j:")
        part = self.encode([1, task_id, state, self.encode_result(result, state)])
        counted = self._group_key(group_id, ".n")
        with self.client.pipeline() as step:
            done = [
                step.kv.set(counted, 0, ttl=self._ttl(), nx=True),
                step.kv.incr(counted),
                step.kv.set(f"{prefix}{place}:{task_id}", part, ttl=self._ttl()),
            ]
        for one in done:
            one.result()
        # The last part is counted by now, and its result stored. A part that runs again is counted once more.
        names = (self._group_key(group_id, suffix) for suffix in (".s", ".t", ".n"))
        size, more, count = (found.value or 0 for found in self.client.kv.mget(*names))
        if not size or count < size + more:
            return  # not all parts are done, or even on their way
        parts = sorted(scan(self.client, prefix))
        if len(parts) != size + more:
            return
        # Two parts that finish at once may both see all results.
        fired = self._group_key(group_id, ".f")
        first = self.client.kv.set(fired, task_id, nx=True, ttl=self._ttl()).success
        if first or self.client.kv.get(fired).value == task_id:  # or this same task runs again
            self._fire(request, group_id, parts)

    def _fire(self, request: Any, group_id: str, parts: List[str]) -> None:
        callback = maybe_signature(request.chord, app=self.app)
        what = "Join"
        try:
            results = self._header_results(group_id, parts)
            what = "Callback"
            callback.delay(results)
        except ChordError as error:
            self.chord_error_from_stack(callback, error)
        except Exception as error:  # whatever a task raised, or of a body that can't be serialized
            self.chord_error_from_stack(callback, ChordError(f"{what} error: {error!r}"))
        finally:
            for some in slices([*parts, *(self._group_key(group_id, suffix) for suffix in (".s", ".t", ".n"))]):
                self.client.kv.delete(*some)

    def _header_results(self, group_id: str, parts: List[str]) -> List[Any]:
        """Return the results of a chord's header; raises `ChordError` for a part that failed."""
        header: Any = GroupResult.restore(group_id, app=self.app)
        if header is None:
            return [self._part(value) for value in self.mget(parts)]
        header.on_ready()  # all results are stored, so joining doesn't wait
        with allow_join_result():
            joined: List[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
        return joined

    def _part(self, encoded: Any) -> Any:
        _, task_id, state, result = self.decode(encoded)
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(result)
        if state in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {task_id} raised {result!r}") from result
        return result

    def __reduce__(self, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})
