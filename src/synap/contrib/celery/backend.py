"""Celery's results as keys, told by pub/sub to who waits for them."""

from __future__ import annotations

import queue
from typing import Any, Dict, Iterable, List, Optional, Set, Union
from urllib.parse import unquote, urlsplit

from celery import states
from celery.backends.asynchronous import AsyncBackendMixin, BaseResultConsumer
from celery.backends.base import BaseKeyValueStoreBackend

from synap import KeyNotFoundError, SynapClient, SyncSubscription
from synap.contrib.celery.transport import client_url

__all__ = ["ResultConsumer", "SynapBackend"]


def _text(key: Union[str, bytes]) -> str:
    return key if isinstance(key, str) else key.decode()


def topic_of(key: str) -> str:
    """Return the topic on which a result is told: one word, whatever the task's id."""
    return "celery." + key.replace("%", "%25").replace(".", "%2E").replace("*", "%2A").replace("#", "%23")


class ResultConsumer(BaseResultConsumer):
    """Hears of results that this process waits for."""

    def __init__(self, *arguments: Any, **about: Any) -> None:
        super().__init__(*arguments, **about)
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._subscriptions: Dict[str, SyncSubscription[Any]] = {}
        self._ready: Set[str] = set()

    def start(self, initial_task_id: str, **about: Any) -> None:
        """Begin with a first task."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """Hear no more."""
        while self._subscriptions:
            _, subscription = self._subscriptions.popitem()
            subscription.unsubscribe()

    def on_after_fork(self) -> None:
        """Forget the parent's subscriptions."""
        self._subscriptions = {}
        self._arrived = queue.SimpleQueue()

    def consume_from(self, task_id: str) -> None:
        """Hear of a task from now on."""
        if task_id not in self._subscriptions:
            topic = topic_of(self.backend.key_of(task_id))
            self._subscriptions[task_id] = self.backend.client.pubsub.subscribe([topic], self._heard)

    def _heard(self, topic: str, message: Any) -> None:
        self._arrived.put(message)

    def cancel_for(self, task_id: str) -> None:
        """Hear of a task no longer."""
        subscription = self._subscriptions.pop(task_id, None)
        if subscription is not None:
            subscription.unsubscribe()

    def drain_events(self, timeout: Optional[float] = None) -> None:
        """Take what has arrived, waiting up to `timeout` seconds for it."""
        try:
            message = self._arrived.get(timeout=timeout)
        except queue.Empty:
            return
        self.on_state_change(self.backend.decode_result(message), message)

    def on_state_change(self, meta: Dict[str, Any], message: Any) -> None:
        """Take a new state of a task."""
        super().on_state_change(meta, message)
        if meta["status"] in states.READY_STATES:
            self.cancel_for(meta["task_id"])

    def on_wait_for_pending(self, result: Any, **about: Any) -> None:
        """Look at what was there before it was subscribed to."""
        for meta in result._iter_meta(**about):
            if meta is not None:
                self.on_state_change(meta, None)


class SynapBackend(BaseKeyValueStoreBackend, AsyncBackendMixin):
    """A result backend. Chords count with `kv.incr`, and results expire after `result_expires`.

    `result_backend_transport_options = {"options": {…}}`: fields of `ClientConfig`.
    """

    ResultConsumer = ResultConsumer
    supports_autoexpire = True
    supports_native_join = True
    implements_incr = True
    persistent = True

    def __init__(self, url: Optional[str] = None, **about: Any) -> None:
        super().__init__(expires_type=int, url=url, **about)
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
            told = self.app.conf.get("result_backend_transport_options", {}).get("options", {})
            self._client = SynapClient(
                url=client_url(parts.scheme, parts.hostname, parts.port),
                **{"api_key": unquote(parts.password) if parts.password else None, **told, "format": "msgpack"},
            )
        return self._client

    def key_of(self, task_id: str) -> str:
        """Return the key of a task's result."""
        return _text(self.get_key_for_task(task_id))

    def as_uri(self, include_password: bool = False) -> str:
        """Return the URL as it may be shown."""
        parts = urlsplit(self.url)
        if include_password or not parts.password:
            return self.url
        return self.url.replace(f":{parts.password}@", ":**@")

    def get(self, key: Union[str, bytes]) -> Any:
        """Return a value, None where there is none."""
        return self.client.kv.get(_text(key)).value

    def mget(self, keys: Iterable[Union[str, bytes]]) -> List[Any]:
        """Return several values in order."""
        names = [_text(key) for key in keys]
        return [found.value for found in self.client.kv.mget(*names)] if names else []

    def _ttl(self) -> Optional[int]:
        return int(self.expires) if self.expires else None

    def set(self, key: Union[str, bytes], value: Any) -> None:
        """Store a value, and tell who waits for it, in one call."""
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
        """Let a value expire."""
        try:
            self.client.kv.expire(_text(key), max(1, int(value)))
        except KeyNotFoundError:
            pass

    def __reduce__(self, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})
