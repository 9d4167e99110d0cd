"""What may be done with keys, and with a lock."""

from __future__ import annotations

from typing import Any, List, Optional

import msgspec

from synap import commands as c
from synap.engine import keyvalue
from synap.engine.callers import WAITING
from tests.engine.model.base import Base, data_of

KEYS = ("a", "b", "ab", "c")
HOLDERS = (-1, -2, -3)
"""Tokens of those who want the lock, as values of its key."""
LOCK, FENCE = "lock", "fence"


def asked_of(value: int, packed: bool) -> bytes:
    """Write a value as a client of either format would name it."""
    if not packed:
        return b"%d" % value
    data: bytes = msgspec.msgpack.encode(value)
    return b"\xcc" + data if data[0] < 0x80 else data


class KeyActions(Base):
    """The commands of `kv`, each beside the model."""

    def a_key(self) -> str:
        return str(self.pick(*KEYS))

    def a_number(self) -> int:
        return int(self.pick(*range(-5, 6)))

    def a_ttl(self) -> Optional[int]:
        ttl: Optional[int] = self.pick(None, *range(1, 20))
        return ttl

    def due(self, ttl: Optional[int]) -> Optional[float]:
        return None if ttl is None else self.world.now + ttl

    def previous(self, key: str) -> Optional[bytes]:
        before = self.model.values.get(key)
        return None if before is None else data_of(before)

    def set(self) -> None:
        key, value, ttl = self.a_key(), self.a_number(), self.a_ttl()
        before = self.previous(key)
        assert self.run(c.KvSet(key, data_of(value), ttl)).previous == before
        self.model.set(key, value, self.due(ttl))

    def set_if(self) -> None:
        key, value, new = self.a_key(), self.a_number(), self.pick(True, False)
        answer = self.run(c.KvSet(key, data_of(value), nx=new, xx=not new))
        assert answer.success == ((key in self.model.values) != new)
        if answer.success:
            self.model.set(key, value, None)

    def set_and_keep_the_ttl(self) -> None:
        key, value = self.a_key(), self.a_number()
        before, due = self.previous(key), self.model.expires.get(key)
        assert self.run(c.KvSet(key, data_of(value), keep_ttl=True)).previous == before
        self.model.set(key, value, due)
        wrong = c.KvSet(key, data_of(value), ttl=3, keep_ttl=True)
        assert self.world.error(wrong).code == "INVALID_PAYLOAD"

    def change_if_it_holds_a_value(self) -> None:
        """Set, delete and expire where a key holds what is named, in either format."""
        key, value, ttl = self.a_key(), self.a_number(), self.a_ttl()
        asked = self.pick(self.model.values.get(key, 0), self.a_number())
        holds = self.model.values.get(key) == asked
        wanted: Any = asked_of(asked, self.pick(True, False))
        how = self.pick("set", "set", "keep", "delete", "expire")
        if how in ("set", "keep"):
            keep = how == "keep"
            before, kept = self.previous(key), self.model.expires.get(key)
            payload = c.KvSet(key, data_of(value), None if keep else ttl, if_value=wanted, keep_ttl=keep)
            answer = self.run(payload)
            assert (answer.success, answer.previous) == (holds, before)
            if holds:
                self.model.set(key, value, kept if keep else self.due(ttl))
        elif how == "delete":
            assert self.run(c.KvDel([key], if_value=wanted)).deleted == int(holds)
            if holds:
                self.model.drop(key)
            assert self.world.error(c.KvDel(["a", "b"], if_value=wanted)).code == "INVALID_PAYLOAD"
        else:
            assert self.run(c.KvExpire(key, ttl or 1, if_value=wanted)).success == holds
            if holds:
                self.model.set(key, asked, self.due(ttl or 1))

    def delete(self) -> None:
        keys = [self.a_key() for _ in range(2)]
        assert self.run(c.KvDel(keys)).deleted == len(set(keys) & set(self.model.values))
        for key in keys:
            self.model.drop(key)

    def clear(self) -> None:
        """Clear in slices of one key; what is stored in between stays."""
        prefix = self.pick("", "a", "ab", "x")
        self.model.expire(self.world.now)
        there = [key for key in self.model.values if key.startswith(prefix)]
        at_once, keyvalue.CLEARED_AT_ONCE = keyvalue.CLEARED_AT_ONCE, 1
        try:
            answer = self.run(c.KvClear(prefix))
        finally:
            keyvalue.CLEARED_AT_ONCE = at_once
        number = self.number
        spared: Optional[str] = None
        for key in there:
            self.model.drop(key)
        if FENCE in there:
            self.model.fences = []  # whoever deletes the counter has it begin anew
        if answer is WAITING:
            if self.pick(True, False):
                spared = self.a_key()
                self.run(c.KvSet(spared, data_of(7)))
                self.model.set(spared, 7, None)
            while number not in self.client.answers:
                self.world.engine.keys.advance(self.world.now, 1)
                self.model.expire(self.world.now)
            answer = self.client.answers.pop(number)
        # What was looked at before it was stored anew was deleted; what was not yet, was spared.
        assert answer.deleted in {len(there), len(there) - (spared in there)}

    def incr(self) -> None:
        key, amount = self.a_key(), self.a_number()
        value = self.model.values.get(key, 0) + amount
        assert self.run(c.KvIncr(key, amount)).value == value
        self.model.values[key] = value

    def change_expiry(self) -> None:
        key, ttl = self.a_key(), self.a_ttl()
        payload = c.KvPersist(key) if ttl is None else c.KvExpire(key, ttl)
        if key not in self.model.values:
            assert self.world.error(payload).code == "KEY_NOT_FOUND"
            return
        self.run(payload)
        self.model.set(key, self.model.values[key], self.due(ttl))

    def scan(self) -> None:
        prefix, count = self.pick("", "a", "ab"), self.pick(1, 2, 3)
        keys: List[str] = []
        cursor = None
        while True:
            page = self.run(c.KvScan(prefix, cursor, count))
            keys += page.keys
            cursor = page.cursor
            if not page.has_more:
                break
            assert len(page.keys) == count
        assert keys == sorted(key for key in self.model.values if key.startswith(prefix))

    # ---- a lock, as `client.lock` takes it, keeps it and gives it back

    def take_the_lock(self) -> None:
        """A number that grows with each holder, and a key that only one can set: both or neither."""
        who, ttl = self.pick(*HOLDERS), self.pick(2, 5, 9)
        free = LOCK not in self.model.values
        self.number += 1
        items = (c.KvIncr(FENCE), c.KvSet(LOCK, data_of(who), ttl, nx=True), c.KvGet(LOCK))
        fence, taken, found = self.world.batch(*items, atomic=True, caller=self.client, number=self.number)
        assert taken.success == free
        self.model.values[FENCE] = self.model.values.get(FENCE, 0) + 1
        assert fence.value == self.model.values[FENCE]
        if free:
            self.model.set(LOCK, who, self.due(ttl))
            assert fence.value > max(self.model.fences, default=0), "a later holder must be told from an earlier one"
            self.model.fences.append(fence.value)
        assert found.value == data_of(self.model.values[LOCK])

    def renew_the_lock(self) -> None:
        who, ttl = self.pick(*HOLDERS), self.pick(2, 5, 9)
        own = self.model.values.get(LOCK) == who
        asked: Any = data_of(who)
        assert self.run(c.KvSet(LOCK, data_of(who), ttl, if_value=asked)).success == own
        if own:
            self.model.set(LOCK, who, self.due(ttl))

    def give_the_lock_back(self) -> None:
        who = self.pick(*HOLDERS)
        own = self.model.values.get(LOCK) == who
        asked: Any = data_of(who)
        assert self.run(c.KvDel([LOCK], if_value=asked)).deleted == int(own)
        if own:
            self.model.drop(LOCK)
