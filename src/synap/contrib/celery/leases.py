"""Renew the leases of messages that a connection has delivered and that are not settled yet.

A worker keeps a message for as long as its task runs, or until its ETA. With short, renewed leases the messages of a
killed worker are redelivered soon, however long tasks take.
"""

from __future__ import annotations

import logging
import threading
import uuid
from typing import Dict, Optional, Tuple

from synap import MessageNotFoundError, QueueNotFoundError, SynapClient, SynapError
from synap.contrib.celery.bindings import ALIVE, Binding, Bindings
from synap.contrib.sharing import Outage, slices

log = logging.getLogger("synap.contrib.celery")


class Leases:
    """Unacknowledged messages by delivery tag, and a thread that renews leases and temporary queues."""

    def __init__(self, client: SynapClient, bindings: Bindings, seconds: float) -> None:
        self.seconds = seconds
        self._client = client
        self._bindings = bindings
        self._lock = threading.Lock()
        self._held: Dict[str, Tuple[str, str]] = {}
        self._temporary: Dict[str, Dict[Tuple[str, Binding], None]] = {}
        self._over = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def hold(self, queue: str, message_id: str) -> str:
        """Renew the lease of a message from now on; returns the delivery tag by which it is released."""
        tag = str(uuid.uuid4())
        with self._lock:
            self._held[tag] = (queue, message_id)
        self._start()
        return tag

    def release(self, tag: str) -> Optional[Tuple[str, str]]:
        """Stop renewing; returns the queue and the message's id, None for an unknown tag."""
        with self._lock:
            return self._held.pop(tag, None)

    def keep(self, queue: str, *bindings: Tuple[str, Binding]) -> None:
        """Keep a temporary queue alive from now on, and bindings of it, each with its exchange."""
        with self._lock:
            self._temporary.setdefault(queue, {}).update(dict.fromkeys(bindings))
        self._start()

    def drop_queue(self, queue: str) -> None:
        """Stop keeping a temporary queue alive."""
        with self._lock:
            self._temporary.pop(queue, None)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="synap leases", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        outage = Outage(log, "renewing leases")
        while not self._over.wait(min(self.seconds, ALIVE) / 3):
            try:
                self._renew()
                outage.over()
            except SynapError as error:
                if not error.details.get("closed"):
                    outage.goes_on(error)

    def _renew(self) -> None:
        with self._lock:
            held = list(self._held.items())
            temporary = {queue: list(bindings) for queue, bindings in self._temporary.items()}
        for some in slices(held):  # a worker holds all tasks with an ETA: one by one took longer than their leases
            with self._client.pipeline() as step:
                answers = [step.queue.extend(queue, message_id, self.seconds) for _, (queue, message_id) in some]
            for (tag, _), answer in zip(some, answers):
                try:
                    answer.result()
                except (MessageNotFoundError, QueueNotFoundError):
                    self.release(tag)  # settled meanwhile, or redelivered
        for queue, bindings in temporary.items():
            self._bindings.keep_alive(queue)
            for exchange, binding in bindings:
                self._bindings.add(exchange, binding, temporary=True)
