"""All keys, and every change to one: made, journaled and undone here.

Three structures hold the keys: a dict of stored values, a dict of expiry times, and the keys in order for scans. A
heap of deadlines lies beside them; an entry that differs from the dict of expiry times is stale. Which change is made
is decided in `keyvalue`.
"""

from __future__ import annotations

import sys
from itertools import islice
from math import ceil
from operator import itemgetter
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from sortedcontainers import SortedList  # type: ignore[import-untyped]

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import Caller, Number
from synap.engine.core import Core
from synap.engine.deadlines import Deadlines
from synap.engine.journal import Record
from synap.engine.limits import utf8_size
from synap.errors import KeyNotFoundError, invalid

KEY_COST = 200
"""Estimated bytes of a key beside its text and its value."""

TTL_COST = 100
"""Estimated bytes of its ttl."""

MANY = 10_000
"""Keys of a restored dict that doesn't fit a processor's caches, about."""

_due = itemgetter(3)
"""When the key of a record expires."""
_SLACK = 1e-5
"""Seconds that float arithmetic on Unix times may be off: a remaining ttl is rounded up only beyond that."""


def check_key(key: str) -> None:
    """Refuse a key that isn't 1 to 1,024 bytes of UTF-8."""
    size = len(key) if key.isascii() else utf8_size("key", key)
    if not 0 < size <= 1024:
        shown = key if len(key) <= 80 else key[:77] + "..."
        raise invalid("key", f"a string of 1 to 1,024 bytes of UTF-8 (it has {size:,})", shown)


def no_key(key: str) -> KeyNotFoundError:
    """Build the error for a key that isn't there."""
    return KeyNotFoundError("KEY_NOT_FOUND", f"there is no key {key!r}", {"key": key})


def hold_hashes(values: Dict[Any, bytes]) -> None:
    """Have a dict of strings hold their hashes, eight bytes each, as one does that has held another kind of key.

    Else, since CPython 3.11, only the strings have them, and each slot on the way to a free one or to the right one
    costs another cache miss: of a million keys, a quarter of the time to enter them, a seventh of that to find one.
    """
    if sys.hexversion >= 0x030B0000:
        values[0] = b""
        del values[0]


class Clearing:
    """A `clear` in progress: what it has still to look at goes from `begin` to `end`; `spared` was stored meanwhile.

    `callers`: who waits for it; several, where the request was sent again on another connection.
    """

    __slots__ = ("begin", "callers", "deleted", "end", "number", "spared")

    def __init__(self, begin: str, end: str, caller: Caller, number: Number) -> None:
        self.begin = begin
        self.end = end
        self.callers = [caller]
        self.number = number
        self.deleted = 0
        self.spared: Set[str] = set()


class KeyStore:
    """All keys with their values, and the deadlines of those that expire."""

    def __init__(self, core: Core, secret: Optional[bytes]) -> None:
        self.journal, self.budget, self.ids, self.horizon = core.journal, core.budget, core.ids, core.horizon
        self.secret = secret
        """Signs cursors."""
        self.values: Dict[str, bytes] = {}
        self.expires: Dict[str, float] = {}
        self.evicted = 0
        """Keys that were evicted."""
        self.ordered: Any = SortedList()
        self.clearings: List[Clearing] = []
        """`clear` commands in progress, oldest first."""
        expires = self.expires
        self.deadlines: Deadlines[Tuple[float, str]] = Deadlines(
            lambda entry: expires.get(entry[1]) == entry[0], core.horizon
        )

    # ------------------------------------------------------------------------------------------ reading and changing

    def _read(self, key: str, now: float) -> c.GetAnswer:
        value = self.values.get(key)
        if value is None:
            check_key(key)
            return c.GetAnswer(False)
        due = self.expires.get(key) if self.expires else None
        if due is None:
            return c.GetAnswer(True, value)
        if due <= now:
            return c.GetAnswer(False)
        return c.GetAnswer(True, value, max(ceil(due - now - _SLACK), 1))

    def _live(self, key: str, now: float) -> Optional[bytes]:
        """Return the value of a key that is about to change; one that has expired is removed."""
        value = self.values.get(key)
        if value is not None and self.expires and self.expires.get(key, now + 1) <= now:
            self._expire(key)
            return None
        return value

    def _expire(self, key: str) -> None:
        self._remove(key)
        if self.journal.keep_records:
            self.journal.records.append((r.KEYS_GONE, [key]))

    def _put(
        self,
        key: str,
        value: bytes,
        due: Optional[float],
        old: Optional[bytes],
        checked: bool = False,
        answered: Optional[Tuple[str, Number, float]] = None,
    ) -> None:
        """Let `key` hold `value` until `due`; `old` is what it holds now. `answered`: the rest of a `KEY_SET`."""
        budget = self.budget
        if old is None:
            check_key(key)
            growth = KEY_COST + len(key) + len(value)
        else:
            growth = len(value) - len(old)
        used = budget.used + growth
        if used > budget.limit and growth > 0 and not checked:
            budget.make_room(growth)
            old = self.values.get(key)  # it may have been evicted itself
            used = budget.used + len(value) - (-KEY_COST - len(key) if old is None else len(old))
        budget.used = used
        journal = self.journal
        expires = self.expires
        if journal.keep_undo:
            journal.undos.append((self._put_back, (key, old, expires.get(key))))
        self.values[key] = value
        if old is None:
            self.ordered.add(key)
        for clearing in self.clearings:
            if clearing.begin <= key <= clearing.end and key not in clearing.spared:
                clearing.spared.add(key)
                if journal.keep_undo:
                    journal.undos.append((clearing.spared.discard, (key,)))
        if due is not None:
            self._set_deadline(key, due)
        elif expires and key in expires:
            self._drop_deadline(key)
        if journal.keep_records:
            if answered is None:
                journal.records.append((r.KEY, key, value, due))
            else:
                session, number, now = answered
                said = journal.said
                if said is not None and said[0] is session and said[1] is now:
                    journal.records.append((r.KEY_SET_SAME, key, value, due, number))
                else:
                    journal.said = None  # an exception of a signal handler may come before it is known again
                    journal.records.append((r.KEY_SET, key, value, due, session, number, now))
                    journal.said = session, now

    def _remove(self, key: str) -> None:
        value = self.values.pop(key)
        due = self.expires.pop(key, None) if self.expires else None
        self.ordered.remove(key)
        self.budget.used -= KEY_COST + len(key) + len(value) + (0 if due is None else TTL_COST)
        if self.journal.keep_undo:
            self.journal.undos.append((self._put_back, (key, value, due)))

    def _put_back(self, key: str, value: Optional[bytes], due: Optional[float]) -> None:
        """Undo a change of a key: let it hold `value` until `due` again, or nothing."""
        held = self.values.pop(key, None)
        if held is not None:
            self.budget.used -= KEY_COST + len(key) + len(held)
            if value is None:
                self.ordered.remove(key)
        self._drop_deadline(key)
        if value is not None:
            self.budget.used += KEY_COST + len(key) + len(value)
            self.values[key] = value
            if held is None:
                self.ordered.add(key)
            if due is not None:
                self.expires[key] = due
                self.budget.used += TTL_COST
                self.deadlines.push_again((due, key))

    def _signing(self) -> bytes:
        if self.secret is None:
            self._adopt(b"".join(self.ids().to_bytes(8, "big") for _ in range(4)))
        return self.secret or b""

    def _adopt(self, secret: bytes) -> None:
        self.secret = secret
        if self.journal.keep_records:
            self.journal.records.append((r.SECRET, secret))

    # ------------------------------------------------------------------------------------------ time

    def _drop_deadline(self, key: str) -> None:
        if self.expires.pop(key, None) is not None:
            self.budget.used -= TTL_COST

    def _set_deadline(self, key: str, due: float) -> None:
        if key not in self.expires:
            self.budget.used += TTL_COST
        self.expires[key] = due
        self.deadlines.push((due, key))

    # ------------------------------------------------------------------------------------------ restart

    def restore_keys(self, values: Dict[str, bytes], expires: Dict[str, float]) -> None:
        """Apply a record of kind `KEYS`."""
        before = len(self.values)
        # `update` takes the hashes from the other dict, so this is faster than setting items or from pairs.
        self.values.update(values)
        if before < MANY <= len(self.values):
            hold_hashes(self.values)
        held = self.expires
        if held:
            for key in values:
                held.pop(key, None)
        held.update(expires)

    def restore_each(self, records: List[Record]) -> None:
        """Apply records of kind `KEY` in order."""
        expires: Dict[str, float] = {}
        if any(map(_due, records)):
            last = {key: due for _, key, _, due in records}
            expires = {key: due for key, due in last.items() if due is not None}
        self.restore_keys({key: value for _, key, value, _ in records}, expires)

    def restore(self, record: Record) -> None:
        kind = record[0]
        if kind == r.KEY:
            self.restore_each([record])
        elif kind == r.KEYS_GONE:
            for key in record[1]:
                self.values.pop(key, None)
                self.expires.pop(key, None)
        elif kind == r.KEY_EXPIRES:
            _, key, due = record
            if due is None or key not in self.values:
                self.expires.pop(key, None)
            else:
                self.expires[key] = due
        else:
            self.secret = record[1]

    def restored(self) -> None:
        self.ordered = SortedList(self.values)
        self.budget.used += (
            KEY_COST * len(self.values) + sum(map(len, self.values)) + sum(map(len, self.values.values()))
        )
        self.budget.used += TTL_COST * len(self.expires)
        self.deadlines.rebuild((due, key) for key, due in self.expires.items())
        if self.secret is None:
            self._signing()
        elif self.journal.keep_records:
            self.journal.records.append((r.SECRET, self.secret))

    def dump(self, slice_size: int, slice_bytes: int) -> Iterator[List[Record]]:
        if self.secret is not None:
            yield [(r.SECRET, self.secret)]
        first: Optional[str] = None
        last = next(reversed(self.ordered), None)  # those that come behind it meanwhile are in the journal
        while last is not None:
            page: Dict[str, bytes] = {}
            size = 0
            for key in islice(self.ordered.irange(first, last, (False, True)), slice_size):
                value = page[key] = self.values[key]
                size += len(key) + len(value)
                if size > slice_bytes:
                    break
            if not page:
                return
            expires = self.expires
            yield [(r.KEYS, page, {key: expires[key] for key in page if key in expires} if expires else {})]
            first = key
