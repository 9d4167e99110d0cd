"""Translates large values of answers and pushed items to their reader's format, in turns, before they are sent.

A value is returned as it is stored to readers of its format. For one of the other format, ten megabytes take most of a
second, so others have their turns in between. Subscribers of the same item share its translation. What is being made
may be six times what is stored; it counts as bytes in flight, and is given up once nobody waits for it any more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from synap.commands import ITEMS
from synap.errors import SynapError
from synap.server.sizes import no_room, too_large
from synap.server.turns import TURN
from synap.wire.frames import MAX_ANSWER
from synap.wire.large import Steps
from synap.wire.translate import translate_content

if TYPE_CHECKING:
    from synap.server.service import Service

COUNTED = 1024 * 1024
"""Bytes that a translation makes between two times that they are counted."""


class Reader(Protocol):
    """Who waits for a translation."""

    def wanted(self) -> bool:
        """Return whether it is still waited for."""

    def translated(self, outcome: Any) -> None:
        """Take the translated answer or item, or an error. Within a turn. Must not raise."""


class _Translation:
    """One translation. `Transit` has it among what is in flight, and may end it."""

    __slots__ = ("content", "counted", "error", "made", "readers", "steps", "weight")

    def __init__(self, content: Any, steps: Steps, weight: int, counted: bool) -> None:
        self.content = content
        self.steps = steps
        self.readers: list[Reader] = []
        self.weight = weight
        self.counted = counted
        """Whether its readers count its weight themselves."""
        self.made = 0
        self.error: SynapError | None = None

    def abort(self) -> None:
        """End it: too much is in flight."""
        self.error = no_room(self.content)

    @property
    def held(self) -> int:
        """Bytes in flight beside those that readers count. What it is made of may be gone from the store meanwhile."""
        return max(self.weight, self.made) - (self.weight if self.counted else 0)


class Translations:
    """The translations of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._under_way: dict[tuple[int, str | int], _Translation] = {}
        """By the content's identity and the format."""
        self._behind: dict[Any, deque[Callable[[], None]]] = {}
        """What begins after the translation that is under way for a connection, by that."""

    def begin(
        self,
        key: str,
        owner: Any,
        content: Any,
        format: str,
        reader: Reader,
        weight: int,
        *,
        steps: Steps | None = None,
        counted: bool = False,
    ) -> None:
        """Translate in turns of a key or address; then tell the reader.

        `owner`: the connection, of which one answer is translated at a time; None for what is pushed. `weight`: the
        estimated bytes of the content; `counted`: whether the reader counts them as in flight itself. `steps`: what is
        done in place of translating it; they yield how many bytes they have made since the step before.
        """
        place = id(content), format if steps is None else id(steps)
        owner = place if owner is None else owner
        found = self._under_way.get(place)
        if found is not None:
            found.readers.append(reader)
            return
        one = self._under_way[place] = _Translation(
            content, steps or translate_content(content, format), weight, counted
        )
        one.readers.append(reader)
        turns = self._service.turns

        def work() -> None:
            outcome = self._turn(one)
            if outcome is None:
                turns.ask(key, work)
                return
            del self._under_way[place]
            self._service.transit.bodies.pop(one, None)
            one.steps.close()
            behind = self._behind[owner]
            if behind:
                turns.ask(key, behind.popleft())
            else:
                del self._behind[owner]
            for waiting in one.readers:
                waiting.translated(outcome)
            self._service.host.end_turn()

        self._count(one, weight)
        behind = self._behind.get(owner)
        if behind is None:
            self._behind[owner] = deque()
            turns.ask(key, work)
        else:
            behind.append(work)

    def _count(self, one: _Translation, grown: int) -> None:
        transit = self._service.transit
        transit.bodies[one] = one.held
        transit.add(grown)

    def _turn(self, one: _Translation) -> Any:
        """Work for one turn; returns the outcome, None where there is more to do."""
        if not any(reader.wanted() for reader in one.readers):
            return no_room(one.content)  # its readers are gone
        end = time.perf_counter() + TURN
        before = one.made
        try:
            while time.perf_counter() < end:
                if one.error is not None:
                    self._service.host.count_error(one.error.code)
                    return one.error
                one.made += next(one.steps) or 0
                if one.made - before > COUNTED:
                    self._count(one, one.made - before)
                    before = one.made
                if one.made > MAX_ANSWER and type(one.content) not in ITEMS:
                    raise too_large(one.made, one.content)
        except StopIteration as done:
            return done.value
        except SynapError as error:
            self._service.host.count_error(error.code)
            return error
        except Exception:
            return self._service.host.crashed("translating a value")
        self._count(one, one.made - before)
        return None
