"""The lane without a socket, in an event loop: `memory://`, `file://` and clusters."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, Callable, Dict, Optional, Tuple

from msgspec import Struct

from synap.commands import Command
from synap.config import CLUSTERS, ClientConfig, Target
from synap.errors import SynapError
from synap.host.inprocess import LocalHost, enter, enter_here, leave
from synap.lanes._async.base import AsyncLane
from synap.lanes.errors import client_closed
from synap.lanes.inprocess.attachment import Attachment, enter_arguments
from synap.lanes.inprocess.deadlines import Deadlines
from synap.lanes.inprocess.session import PushedSession, Waiter
from synap.wire.codec import Codec
from synap.wire.conversation import Listener


class _AsyncWaiter(Waiter):
    """A waiting task, in its event loop."""

    def __init__(self, deadlines: Deadlines, listener: Optional[Listener] = None) -> None:
        super().__init__(listener)
        self.deadlines = deadlines
        self.loop = deadlines.loop
        self.thread = threading.get_ident()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def settle(self, answer: Any, error: Optional[SynapError]) -> None:
        if threading.get_ident() == self.thread:
            self._settle(answer, error)
            return
        with suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            self.loop.call_soon_threadsafe(self._settle, answer, error)

    def _settle(self, answer: Any, error: Optional[SynapError]) -> None:
        if self.future.done():
            return
        self.deadlines.withdraw(self)
        if error is None:
            self.future.set_result(answer)
        else:
            self.future.set_exception(error.copy())

    def wait(self, command: Command, began: float, timeout: float) -> asyncio.Future[Any]:
        """Return a future of the answer, which fails with `TIMEOUT`. Whoever stops waiting for it calls `leave`."""
        if not self.future.done():
            self.deadlines.add(self, command, began, timeout)
        return self.future

    def leave(self) -> None:
        self.deadlines.withdraw(self)


class AsyncLocalLane(AsyncLane):
    """Reaches an engine in this process, from any event loop."""

    def __init__(self, config: ClientConfig, target: Target, codec: Codec) -> None:
        super().__init__(config, target, codec)
        self._attachment: Optional[Attachment] = None
        self._elsewhere: Optional[Attachment] = None
        """For event loops other than the one that a cluster's host runs in."""
        self._pushed: Dict[asyncio.AbstractEventLoop, PushedSession] = {}
        self._number = count(1).__next__
        self._deadlines: Optional[Deadlines] = None
        """Of the event loop that called last."""

    async def connect(self, deadline: float) -> None:
        await self._enter()

    async def _enter(self) -> Attachment:
        attachment = self._here()
        if attachment is not None:
            return attachment
        if self.closed:
            raise client_closed()
        arguments = enter_arguments(self.config, self.target)
        loop = asyncio.get_running_loop()
        if self.target.scheme == "memory":
            local = enter(*arguments)
        elif self.target.scheme in CLUSTERS and self._attachment is None:
            local = await enter_here(*arguments[:3])
        else:  # reading a directory takes its time, and so does reaching a cluster from a second event loop
            entering = loop.run_in_executor(None, enter, *arguments)
            try:
                local = await asyncio.shield(entering)
            except asyncio.CancelledError:
                entering.add_done_callback(_leave_again)
                raise
        attachment = self._here()
        if attachment is not None or self.closed:  # another task was faster, or `close()`
            await _on_a_thread(local, leave, local)
            if attachment is None:
                raise client_closed()
            return attachment
        attachment = Attachment(local, self.codec, self)
        if self._attachment is None:
            self._attachment = attachment
            self.connected()
        else:
            self._elsewhere = attachment
        return attachment

    def _here(self) -> Optional[Attachment]:
        """Return the attachment that can be used from the running event loop; None where there is none yet."""
        attachment = self._attachment
        if attachment is None or attachment.loop is None or attachment.loop is asyncio.get_running_loop():
            return attachment
        return self._elsewhere

    def ticket(self) -> int:
        return self._number()

    def drop(self, ticket: Any) -> None:
        if self._attachment is not None:
            self._attachment.open.discard(ticket)

    def _waiter(self, listener: Optional[Listener] = None) -> _AsyncWaiter:
        loop = asyncio.get_running_loop()
        deadlines = self._deadlines
        if deadlines is None or deadlines.loop is not loop:
            deadlines = self._deadlines = Deadlines(loop)
        return _AsyncWaiter(deadlines, listener)

    async def call(self, command: Command, payload: Struct, ticket: Any, began: float, timeout: float) -> Any:
        attachment = self._attachment
        if attachment is None or attachment.loop is not None:
            attachment = self._here() or await self._enter()
        answer = attachment.begin(command, payload, ticket, self._waiter)
        if type(answer) is _AsyncWaiter:
            waiter = answer
            try:
                answer = await waiter.wait(command, began, timeout)
            except BaseException as error:
                waiter.leave()
                attachment.failed(ticket, error)
                raise
        return attachment.result(command, answer)

    async def subscribe(
        self, command: Command, payload: Struct, listener: Listener, deadline: float
    ) -> Tuple[Any, Any]:
        attachment = await self._enter()
        session = self._pushed_here(attachment)
        body = self.codec.encode_payload(command, payload)
        waiter = self._waiter(listener)
        attachment.subscribe(session, command, self._number(), body, waiter)
        try:
            answer = await waiter.wait(command, monotonic(), max(deadline - monotonic(), 0.0))
        except BaseException:
            waiter.leave()
            attachment.unsubscribe_late(session, waiter)
            raise
        return (attachment, session, answer.subscription_id), attachment.result(command, answer)

    def _pushed_here(self, attachment: Attachment) -> PushedSession:
        """Return the session for pushes to the running event loop."""
        loop = asyncio.get_running_loop()
        for former in [former for former in list(self._pushed) if former.is_closed()]:
            ended = self._pushed.pop(former, None)
            if ended is not None:
                attachment.end(ended)
        session = self._pushed.get(loop)
        if session is None:
            thread = threading.get_ident()

            def wake() -> None:
                try:
                    if threading.get_ident() == thread:
                        loop.call_soon(hand_out)
                    else:
                        loop.call_soon_threadsafe(hand_out)
                except RuntimeError:
                    pass  # the loop is closed

            session = self._pushed[loop] = PushedSession(attachment.host, attachment.codec, wake)
            hand_out = session.hand_out_with(attachment.lock)
            attachment.sessions.append(session)
        return session

    async def unsubscribe(self, handle: Any) -> None:
        attachment, session, subscription_id = handle
        attachment.unsubscribe(session, subscription_id)

    async def health(self, deadline: float) -> Dict[str, Any]:
        attachment = await self._enter()
        return attachment.health()

    async def close(self) -> None:
        self.closed = True
        attachments = [attachment for attachment in (self._attachment, self._elsewhere) if attachment is not None]
        self._attachment = self._elsewhere = None
        self._pushed.clear()
        for attachment in attachments:
            if attachment.local.durable:  # waits for the disk. Cancelled in the queue, it would never run
                await _on_a_thread(attachment.local, attachment.leave)
            else:
                attachment.leave()
            self.disconnected("the client was closed")

    def abandon(self) -> None:
        self._pushed.clear()
        if self._elsewhere is not None:
            self._elsewhere.inherited()
        self._elsewhere = None
        if self._attachment is not None and not self._attachment.inherited():
            self._attachment = None


async def _on_a_thread(local: LocalHost, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function to its end on a thread, where one can be started: not while the interpreter ends.

    Raises `RuntimeError` where none can be and the host's event loop is this one, which it needs meanwhile.
    """
    try:
        running = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:
        if local.loop is not None:
            raise
        function(*arguments)
    else:
        await asyncio.shield(running)


def _leave_again(entering: asyncio.Future[LocalHost]) -> None:
    """Leave an engine whose opening was abandoned. That waits for the disk, and the loop's executor may have ended."""
    if not entering.cancelled() and entering.exception() is None:
        thread = threading.Thread(target=leave, args=(entering.result(),), name="synap-leave")
        try:
            thread.start()
        except RuntimeError:  # there are as many as there may be, or the interpreter ends
            thread.run()
