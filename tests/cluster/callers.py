"""Callers of a gateway, as its lanes make them."""

from __future__ import annotations

from typing import Any, List

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
