"""Translates large values of answers and pushed items to their reader's format, in turns, before they are sent.

A value is returned as it is stored to readers of its format. For one of the other format, ten megabytes take most of a
second, so others have their turns in between. Subscribers of the same item share its translation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from synap.engine.callers import Steps
from synap.errors import SynapError
from synap.wire.translate import translate_content

if TYPE_CHECKING:
    from synap.server.service import Service

__all__ = ["Translations"]

Done = Callable[[Any], None]


class Translations:
    """The translations of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._under_way: dict[tuple[int, str], tuple[Any, list[Done]]] = {}
        """What is translated and who waits for it, by the content's identity and the format."""

    def begin(self, key: str, content: Any, format: str, done: Done) -> None:
        """Translate in turns of a key or address; then `done` is called with the outcome or an error, within a turn.

        `done` must not raise.
        """
        place = id(content), format
        if place in self._under_way:
            self._under_way[place][1].append(done)
            return
        self._under_way[place] = content, [done]
        self._service.turns.run(key, self._translate(content, format))

    def _translate(self, content: Any, format: str) -> Steps:
        host = self._service.host
        try:
            outcome = yield from translate_content(content, format)
        except SynapError as error:
            host.count_error(error.code)
            outcome = error
        except Exception:  # it is an error to whoever waits for it
            outcome = host.crashed("translating a value")
        for done in self._under_way.pop((id(content), format))[1]:
            done(outcome)
        host.end_turn()
