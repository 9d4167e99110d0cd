"""Callers of a gateway, as its lanes make them, and batches."""

from __future__ import annotations

from typing import Any, List

import msgspec

from synap import commands as c
from synap.cluster.host import ClusterHost
from synap.host import Output, Session
from synap.wire.codec import CODECS


class Noted(Session):
    """A caller that notes what it is told, with the others."""

    def __init__(self, host: ClusterHost, told: List[Any], session: str = "") -> None:
        super().__init__(host, CODECS["json"], session)
        self._told = told
        self.went_on = 0
        self.lost: List[Any] = []

    def deliver(self, output: List[Output]) -> None:
        self._told += [(self, what, number, content) for what, number, content, _ in output]

    def go_on(self) -> None:
        self.went_on += 1

    def dropped(self, number: Any) -> None:
        self.lost.append(number)


def batch(*items: Any, atomic: bool = False) -> c.BatchRequest:
    """Make a batch from (name, payload, number) of each command."""
    return c.BatchRequest([c.BatchItem(name, raw(payload), number) for name, payload, number in items], atomic)


def raw(payload: Any) -> msgspec.Raw:
    """Encode a payload as it comes within a batch."""
    return msgspec.Raw(msgspec.json.encode(payload))
