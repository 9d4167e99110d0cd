"""Is there an order of operations, each at a point between its call and its return, that explains what they answered?

The algorithm of Wing and Gong (1993) with Lowe's memory of what was tried (2017), as in porcupine: walk through calls
and returns; linearize an operation that can come next; where a return comes of one that wasn't, take the last decision
back. A pair of (operations linearized, state) that was tried before is not tried again.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Hashable, List, NamedTuple, Optional, Sequence, Set, Tuple

__all__ = ["UNKNOWN", "Operation", "kv_step", "linearizable", "unexplained"]

UNKNOWN = object()
"""What an operation answered whose answer never came: anything, and its effect may come at any later time."""


class Operation(NamedTuple):
    """One operation: `kind` with `given`, what it `answered`, when it was called and when it returned."""

    key: str
    kind: str
    given: Any
    answered: Any
    called: float
    returned: float = math.inf


Step = Callable[[Any, Operation], Tuple[bool, Any]]
"""Returns whether an operation can have answered what it did in a state, and the state after it."""


def kv_step(state: Any, operation: Operation) -> Tuple[bool, Any]:
    """The model of a key: what it holds, or None."""
    kind, given, answered = operation.kind, operation.given, operation.answered
    if kind == "get":
        return answered is UNKNOWN or answered == state, state
    if kind == "set":
        return True, given
    if kind == "delete":
        return answered is UNKNOWN or answered == (state is not None), None
    if kind == "compare":
        expected, new = given
        holds = state == expected and state is not None
        return answered is UNKNOWN or answered == holds, new if holds else state
    number = (state or 0) + given
    return answered is UNKNOWN or answered == number, number


class _Entry:
    """A call or a return, in a list that operations are taken out of and put back into."""

    __slots__ = ("following", "number", "previous", "returns")

    def __init__(self, number: int) -> None:
        self.number = number
        self.returns: Optional[_Entry] = None
        self.previous: Optional[_Entry] = None
        self.following: Optional[_Entry] = None

    def lift(self) -> None:
        """Take a call and its return out."""
        for entry in (self, self.returns):
            assert entry is not None
            assert entry.previous is not None
            entry.previous.following = entry.following
            if entry.following is not None:
                entry.following.previous = entry.previous

    def put_back(self) -> None:
        """Undo `lift`."""
        for entry in (self.returns, self):
            assert entry is not None
            assert entry.previous is not None
            entry.previous.following = entry
            if entry.following is not None:
                entry.following.previous = entry


def _entries(history: Sequence[Operation]) -> _Entry:
    events: List[Tuple[float, int, int]] = []
    for number, operation in enumerate(history):
        events += [(operation.called, 0, number), (operation.returned, 1, number)]
    head = _Entry(-1)
    last = head
    calls: Dict[int, _Entry] = {}
    for _, returns, number in sorted(events):
        entry = _Entry(number)
        if returns:
            calls[number].returns = entry
        else:
            calls[number] = entry
        last.following, entry.previous = entry, last
        last = entry
    return head


def linearizable(history: Sequence[Operation], step: Step = kv_step, initial: Hashable = None) -> bool:
    """Say whether the history of one object is linearizable."""
    head = _entries(history)
    state: Any = initial
    done = 0
    tried: Set[Tuple[int, Any]] = set()
    decisions: List[Tuple[_Entry, Any]] = []
    entry = head.following
    while head.following is not None:
        assert entry is not None
        if entry.returns is not None:
            fits, after = step(state, history[entry.number])
            mark = done | 1 << entry.number
            if fits and (mark, after) not in tried:
                tried.add((mark, after))
                decisions.append((entry, state))
                state, done = after, mark
                entry.lift()
                entry = head.following
            else:
                entry = entry.following
        elif decisions:
            entry, state = decisions.pop()
            done &= ~(1 << entry.number)
            entry.put_back()
            entry = entry.following
        else:
            return False
    return True


def unexplained(history: Sequence[Operation], step: Step = kv_step) -> List[str]:
    """Return the keys whose histories are not linearizable; keys are independent of each other."""
    keys: Dict[str, List[Operation]] = {}
    for operation in history:
        keys.setdefault(operation.key, []).append(operation)
    return sorted(key for key, operations in keys.items() if not linearizable(operations, step))
