"""The commands of keys: values, expiry, counters, scans, `clear`."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple, Union

from msgspec import UNSET

from synap import commands as c
from synap.engine import records as r
from synap.engine.callers import STEP, WAITING, Caller, Number, Signal, Steps, at_once
from synap.engine.core import Core
from synap.engine.cursors import SEALED, read_cursor, write_cursor
from synap.engine.keystore import KEY_COST, Clearing, KeyStore, check_key, no_key
from synap.engine.values import integer, same
from synap.errors import SynapError

HIDDEN = 5_000
"""Keys that the caller may not see, or that have expired, after which a page of a scan ends, however few it has."""
CLEARED_AT_ONCE = 1000
"""Keys that `clear` deletes before other requests have their turn."""
SPARED = 20
"""How many times as many it goes over: it has to be faster than those who store keys where it is still to look."""

_PREVIOUS = 65_536
_LAST = "\U0010ffff" * 256
"""What no key is behind that begins with a text, when it is added to that."""
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def exclusive(field: str, other: str) -> SynapError:
    """Build the error for two fields that exclude each other."""
    text = f"{field} and {other} exclude each other, set one of them"
    return SynapError("INVALID_PAYLOAD", text, {"field": field})


def one_key(count: int) -> SynapError:
    """Build the error for a condition on the value of several keys."""
    return SynapError("INVALID_PAYLOAD", f"if_value goes with one key, got {count}", {"field": "if_value"})


def no_integer(key: str) -> SynapError:
    """Build the error for a value that can't be added to."""
    return SynapError("WRONG_TYPE", f"the value of {key!r} is not an integer; incr and decr need one", {"key": key})


def overflow(key: str) -> SynapError:
    """Build the error for a counter that is, or would be, beyond what counters hold."""
    text = f"the integer under {key!r} is, or would be, beyond 64 bits with a sign; it is unchanged"
    return SynapError("INTEGER_OVERFLOW", text, {"key": key})


def _holds(p: c.KvSet, old: Optional[bytes]) -> bool:
    """Return whether the conditions of a `set` hold. Raises `INVALID_PAYLOAD` where they exclude each other."""
    if p.nx and (p.xx or p.if_value is not UNSET):
        raise exclusive("nx", "xx" if p.xx else "if_value")
    if p.if_value is not UNSET:
        return same(old, p.if_value)
    return (old is None) is p.nx


class Keys(KeyStore):
    """The key-value facility: one method per command, named as it is."""

    def __init__(
        self, core: Core, secret: Optional[bytes], finished: Callable[[List[Caller], Number, c.Answer, float], None]
    ) -> None:
        super().__init__(core, secret)
        self.finished = finished
        """Called with the answer to a `clear` that took more than one slice."""

    # ------------------------------------------------------------------------------------------ commands

    def set(self, p: c.KvSet, now: float, answered: Optional[Tuple[str, Number, float]] = None) -> c.SetAnswer:
        """`answered`: the session and number under which success is remembered, and when."""
        if p.keep_ttl and p.ttl is not None:
            raise exclusive("ttl", "keep_ttl")
        key = p.key
        old = self._live(key, now)
        if (p.nx or p.xx or p.if_value is not UNSET) and not _holds(p, old):
            check_key(key)
            return c.SetAnswer(False, key, old if old is not None and len(old) <= _PREVIOUS else None)
        value: Any = p.value
        due = now + p.ttl if p.ttl is not None else self.expires.get(key) if p.keep_ttl else None
        self._put(key, value, due, old, False, answered)
        if old is None or len(old) > _PREVIOUS:
            return c.SetAnswer(True, key)
        return c.SetAnswer(True, key, old)

    def get(self, p: c.KvGet, now: float) -> c.GetAnswer:
        value = self.values.get(p.key)
        if value is None or self.expires:
            return self._read(p.key, now)
        return c.GetAnswer(True, value)

    def delete(self, p: c.KvDel, now: float) -> Union[c.DeletedAnswer, Steps]:
        return at_once(self._delete(p, now), len(p.keys))

    def _delete(self, p: c.KvDel, now: float) -> Steps:
        keys = list(dict.fromkeys(p.keys))
        if p.if_value is not UNSET:
            if len(keys) != 1:
                raise one_key(len(keys))
            if not same(self._live(keys[0], now), p.if_value):
                check_key(keys[0])
                return c.DeletedAnswer(0)
        for done, key in enumerate(keys, 1):
            if key not in self.values:
                check_key(key)
            if not done % STEP:
                yield
        gone: List[str] = []
        for done, key in enumerate(keys, 1):
            if self._live(key, now) is not None:
                gone.append(key)
                self._remove(key)
            if not done % STEP:
                yield
        if gone and self.journal.keep_records:
            self.journal.records.append((r.KEYS_GONE, gone))
        return c.DeletedAnswer(len(gone))

    def exists(self, p: c.KvExists, now: float) -> c.ExistsAnswer:
        return c.ExistsAnswer(self._read(p.key, now).found)

    def incr(self, p: c.KvIncr, now: float) -> c.NumberAnswer:
        return self._add(p.key, p.amount, now)

    def decr(self, p: c.KvDecr, now: float) -> c.NumberAnswer:
        return self._add(p.key, -p.amount, now)

    def expire(self, p: c.KvExpire, now: float) -> c.SuccessAnswer:
        if p.if_value is not UNSET and not same(self._live(p.key, now), p.if_value):
            check_key(p.key)
            return c.SuccessAnswer(False)
        return self._change_expiry(p.key, now + p.ttl, now)

    def persist(self, p: c.KvPersist, now: float) -> c.SuccessAnswer:
        return self._change_expiry(p.key, None, now)

    def ttl(self, p: c.KvTtl, now: float) -> c.TtlAnswer:
        answer = self._read(p.key, now)
        if not answer.found:
            raise no_key(p.key)
        return c.TtlAnswer(answer.ttl)

    def scan(self, p: c.KvScan, now: float) -> c.ScanAnswer:
        """List keys in order. A cursor is where a page ended, so other keys may come and go in between.

        Keys that the caller may not see don't count, not even for `has_more`, nor do those that have expired; after
        many of them a page is shorter.
        """
        prefix = p.prefix or ""
        after = "" if p.cursor is None else read_cursor(self._signing(), prefix, p.cursor)
        expires, only = self.expires, p.only
        page: List[str] = []
        hidden = 0
        for begin in p.ranges():
            behind = after >= begin and p.cursor is not None
            for key in self.ordered.irange(after if behind else begin or None, None, (not behind, True)):
                if not key.startswith(begin):
                    break
                if (expires and expires.get(key, now + 1) <= now) or (only is not None and not only.allows(key)):
                    hidden += 1
                    if hidden == HIDDEN:
                        return c.ScanAnswer(page, write_cursor(self._signing(), prefix, key, SEALED), True)
                    continue
                if len(page) == p.count:
                    return c.ScanAnswer(page, write_cursor(self._signing(), prefix, page[-1]), True)
                page.append(key)
        return c.ScanAnswer(page, None, False)

    def mset(self, p: c.KvMSet, now: float) -> Union[c.SuccessAnswer, Steps]:
        return at_once(self._mset(p, now), len(p.pairs))

    def _mset(self, p: c.KvMSet, now: float) -> Steps:
        growth = 0
        for done, pair in enumerate(p.pairs, 1):
            if pair.key not in self.values:
                check_key(pair.key)
                growth += KEY_COST + len(pair.key)
            growth += len(pair.value) - len(self.values.get(pair.key, b""))
            if not done % STEP:
                yield
        self.budget.check(growth)
        for done, pair in enumerate(p.pairs, 1):
            value: Any = pair.value
            old = self._live(pair.key, now)
            self._put(pair.key, value, None if pair.ttl is None else now + pair.ttl, old, checked=True)
            if not done % STEP:
                yield
        return c.SuccessAnswer()

    def mget(self, p: c.KvMGet, now: float) -> Union[c.MGetAnswer, Steps]:
        return at_once(self._mget(p.keys, now), len(p.keys))

    def _mget(self, keys: List[str], now: float) -> Steps:
        read = self._read
        found: List[c.GetAnswer] = []
        for at in range(0, len(keys), STEP):
            found += [read(key, now) for key in keys[at : at + STEP]]
            yield
        return c.MGetAnswer(found)

    def clear(self, p: c.KvClear, now: float, caller: Caller, number: Number) -> Union[c.DeletedAnswer, Signal]:
        """Delete the keys with the prefix that exist now: a first slice at once, the others in `advance`."""
        end = next(self.ordered.irange(p.prefix, p.prefix + _LAST, reverse=True), "")
        clearing = Clearing(p.prefix, end, caller, number)
        self.clearings.append(clearing)
        if self._clear_on(clearing, now, CLEARED_AT_ONCE):
            self.clearings.remove(clearing)
            return c.DeletedAnswer(clearing.deleted)
        self.horizon.note(0.0)
        caller.waiting.add(number)
        return WAITING

    def join(self, caller: Caller, number: Number) -> bool:
        """Have a caller that has sent a request again wait for the `clear` that it is; returns False for any other."""
        for clearing in self.clearings:
            if (clearing.number, clearing.callers[0].session) == (number, caller.session):
                if caller not in clearing.callers:
                    clearing.callers.append(caller)
                    caller.waiting.add(number)
                return True
        return False

    def _clear_on(self, clearing: Clearing, now: float, most: int) -> bool:
        """Delete up to `most` more keys; returns whether that was all."""
        over = True
        gone: List[str] = []
        for looked, key in enumerate(self.ordered.irange(clearing.begin, clearing.end), 1):
            if key not in clearing.spared:
                gone.append(key)
            if len(gone) == most or looked == SPARED * most:
                over = key == clearing.end
                clearing.begin = key + "\0"  # the least text behind it
                break
        dead = sum([self.expires.get(key, now + 1) <= now for key in gone]) if self.expires else 0
        for key in gone:
            self._remove(key)
        if gone and self.journal.keep_records:
            self.journal.records.append((r.KEYS_GONE, gone))
        clearing.deleted += len(gone) - dead
        return over

    def forget(self, caller: Caller, number: Optional[Number] = None) -> None:
        """Stop the `clear` of a caller that no longer waits. What it has deleted stays deleted."""
        for clearing in self.clearings:
            if caller in clearing.callers and number in (None, clearing.number):
                clearing.callers.remove(caller)
        self.clearings = [clearing for clearing in self.clearings if clearing.callers]

    def refuse(self, error: SynapError) -> None:
        """Stop every `clear` with an error: nothing may change now. What it has deleted stays deleted."""
        clearings, self.clearings = self.clearings, []
        for clearing in clearings:
            for caller in clearing.callers:
                caller.waiting.discard(clearing.number)
                stopped = error.copy()
                stopped.may_have_happened = True
                caller.refuse(clearing.number, stopped)

    # ------------------------------------------------------------------------------------------ reading and changing

    def _add(self, key: str, amount: int, now: float) -> c.NumberAnswer:
        old = self._live(key, now)
        number = 0 if old is None else integer(old)
        if number is None:
            raise no_integer(key)
        if number > _INT_MAX or not _INT_MIN <= number + amount <= _INT_MAX:
            raise overflow(key)
        number += amount
        self._put(key, b"%d" % number, self.expires.get(key), old)
        return c.NumberAnswer(number)

    def _change_expiry(self, key: str, due: Optional[float], now: float) -> c.SuccessAnswer:
        if self._live(key, now) is None:
            check_key(key)
            raise no_key(key)
        journal = self.journal
        if journal.keep_undo:
            journal.undos.append((self._put_back, (key, self.values[key], self.expires.get(key))))
        if due is None:
            self._drop_deadline(key)
        else:
            self._set_deadline(key, due)
        if journal.keep_records:
            journal.records.append((r.KEY_EXPIRES, key, due))
        return c.SuccessAnswer()

    # ------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> Optional[float]:
        return 0.0 if self.clearings else self.deadlines.first()

    def advance(self, now: float, most: int) -> None:
        """Remove up to `most` expired keys, and as many that are being cleared."""
        if self.clearings:
            clearing = self.clearings[0]
            if self._clear_on(clearing, now, most):
                del self.clearings[0]
                for caller in clearing.callers:
                    caller.waiting.discard(clearing.number)
                answer = c.DeletedAnswer(clearing.deleted)
                self.finished(clearing.callers, clearing.number, answer, now)
        for _ in range(most):
            entry = self.deadlines.pop(now)
            if entry is None:
                return
            self._expire(entry[1])
