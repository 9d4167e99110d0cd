"""What the facilities have in common: calls that change something and are remembered, calls that read."""

from __future__ import annotations

from typing import Any, List, Sequence

from synap.cluster.calls import Call, Refused
from synap.cluster.link import Link
from synap.cluster.memory import Request
from synap.cluster.running import Pending, in_slices
from synap.engine.callers import in_order
from synap.errors import SynapError


class Facility:
    """One of the four facilities over a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.places = link.places

    def write(
        self, request: Request, partition: int, function: str, keys: Sequence[bytes], arguments: Sequence[Any] = ()
    ) -> Call:
        """Call a function that changes something; what it answers is remembered under the request."""
        request.touched.append((partition, request.number))
        return self.link.call(
            partition,
            function,
            (self.places.memory(partition, request.session), *keys),
            (request.number, request.retried, *arguments),
            retried=(1,),
        )

    def read(self, partition: int, function: str, keys: Sequence[bytes], arguments: Sequence[Any] = ()) -> Call:
        """Call a function that only reads."""
        return self.link.call(partition, function, keys, arguments, changes=False)

    async def all(self, calls: Sequence[Pending]) -> List[Any]:
        """Wait for calls that are under way, all of them also where one fails; then raises its error.

        Where some took effect, the error says that the request may have happened.
        """
        answers: List[Any] = []
        failed = None
        for call in calls:
            try:
                answers.append(await call)
            except (SynapError, Refused) as error:
                failed = failed or error
        if failed is not None:
            if answers and isinstance(failed, SynapError) and isinstance(calls[0], Call) and calls[0].changes:
                failed.may_have_happened = True
            raise failed
        return answers

    async def names(self, command: str, kind: bytes) -> List[str]:
        """List what a set in each partition holds, in order. `command`: that which asks for it."""
        self.alone(command)
        calls = [self.link.command(q, "SMEMBERS", base + kind) for q, base in enumerate(self.places.bases)]
        found = [name.decode() for names in await self.all(calls) for name in names]
        ordered: List[str] = await in_slices(in_order(found), self.link.soon)
        return ordered

    def alone(self, name: str) -> None:
        """Refuse a command in an atomic batch that looks beyond one partition, or asks more than once."""
        if self.link.recording:
            text = f"{name} looks beyond one partition: on a cluster it can't be part of an atomic batch, send it alone"
            raise SynapError("INVALID_REQUEST", text, {"command": name})
