"""Sessions, and what passes between hosts, sessions and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Tuple

from synap.commands import Item
from synap.engine.callers import Caller
from synap.engine.journal import Record, Undo
from synap.errors import SynapError
from synap.wire.codec import Codec

if TYPE_CHECKING:
    from synap.host.engine import Host

__all__ = ["ANSWER", "ENDED", "PUSH", "REFUSE", "Batch", "Held", "Log", "Session"]

ANSWER, REFUSE, PUSH, ENDED = range(4)

Held = Tuple["Session", int, int, Any]
"""(session, what, number or subscription, answer or error or item): something said that waits for the disk."""


class Batch:
    """What one turn changed: records for the log, the way back, and what is to be said once it is safe."""

    __slots__ = ("held", "records", "undos")

    def __init__(self, records: List[Record], undos: List[Undo], held: List[Held]) -> None:
        self.records = records
        self.undos = undos
        self.held = held


class Log:
    """What a host needs of whatever makes changes durable. `synap.storage` has the real one."""

    holds = True
    """Whether answers wait until their batch is safe."""
    stalled = False
    """Whether so much waits for the disk that callers should not be read for now; looked at after each report."""

    def submit(self, batch: Batch) -> None:
        """Take a batch. Later, on the host's thread, calls `Host.committed` with it, or `Host.failed`."""
        raise NotImplementedError


class Session(Caller):
    """A caller on some lane. The lane implements the four `send_…`, `has_room` and `flush`."""

    __slots__ = ("codec", "host")

    def __init__(self, host: Host, codec: Codec, session: str = "") -> None:
        super().__init__(session)
        self.host = host
        self.codec = codec

    # ---- what the engine says; held back where it must be
    def answer(self, number: int, answer: Any) -> None:
        held = self.host.held
        if held is None:
            self.send_answer(number, answer)
        else:
            held.append((self, ANSWER, number, answer))

    def refuse(self, number: int, error: SynapError) -> None:
        held = self.host.held
        if held is None:
            self.send_error(number, error)
        else:
            held.append((self, REFUSE, number, error))

    def push(self, subscription_id: int, item: Item) -> bool:
        if not self.has_room():
            return False
        held = self.host.held
        if held is None:
            self.send_push(subscription_id, item)
        else:
            held.append((self, PUSH, subscription_id, item))
        return True

    def ended(self, subscription_id: int, error: SynapError) -> None:
        held = self.host.held
        if held is None:
            self.send_ended(subscription_id, error)
        else:
            held.append((self, ENDED, subscription_id, error))

    # ---- what the lane does with it
    def send_answer(self, number: int, answer: Any) -> None:
        """Send an answer (None: nothing came in time)."""
        raise NotImplementedError

    def send_error(self, number: int, error: SynapError) -> None:
        """Send an error."""
        raise NotImplementedError

    def send_push(self, subscription_id: int, item: Item) -> None:
        """Send a pushed item. The same item object goes to all its subscribers: encode it once."""
        raise NotImplementedError

    def send_ended(self, subscription_id: int, error: SynapError) -> None:
        """Say that the service ended a subscription."""
        raise NotImplementedError

    def lose_pushes(self) -> None:
        """Learn that items which `push` took will not be sent. Events of the past may be among them, so a lane that
        pushes ends the connection: its client subscribes anew where it had got to, without a gap.
        """

    def has_room(self) -> bool:
        """Whether a push fits what may be under way to this caller."""
        raise NotImplementedError

    def flush(self) -> None:
        """Let out what was sent in this turn; called once at the end of a turn for each session in `Host.touched`."""
        raise NotImplementedError
