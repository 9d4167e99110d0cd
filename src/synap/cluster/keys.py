"""The key-value commands."""

from __future__ import annotations

import secrets
from itertools import count
from math import ceil
from typing import Any, Dict, List, Optional, Sequence, Tuple

from msgspec import UNSET

from synap import commands as c
from synap.cluster.facility import Facility
from synap.cluster.memory import Request
from synap.engine.cursors import SEALED, read_cursor, write_cursor
from synap.engine.keystore import check_key
from synap.engine.keyvalue import HIDDEN, exclusive, one_key
from synap.engine.values import in_the_other_format, integer
from synap.errors import SynapError

PIECE = 500
"""Keys that one call changes."""
MOST_BYTES, LEAST_BYTES = 64 * 1024 * 1024, 1024 * 1024
"""Bytes of values that are read at once, and of each partition's at least."""
FEW = 4
"""Partitions that are asked at once for a value each that may be larger."""
TOGETHER = 32
"""Partitions that a scan asks at once while it finds nothing."""


def stored(value: Any) -> bytes:
    """Return a value as it is kept: integers as decimal text, also from MessagePack, so that INCRBY can add to them."""
    data: bytes = value
    head = data[0]
    if head == 0x22 or head == 0x7B or head == 0x5B:  # JSON's strings, objects and arrays
        return data
    number = integer(data)
    return data if number is None else b"%d" % number


def either(value: Any) -> Tuple[bytes, bytes]:
    """Return a value as it is kept, and as it would be in the other format ('' where that can't hold it)."""
    other = in_the_other_format(value)
    return stored(value), other and stored(other)


def _range(prefix: str) -> Tuple[bytes, bytes]:
    """Return between which keys those lie that begin with a text, as ZRANGE takes it."""
    text = prefix.encode()
    return (b"[" + text, b"(" + text + b"\xff") if text else (b"-", b"+")


class Keys(Facility):
    """The key-value facility: one method per command, named as it is."""

    most_bytes: Optional[int] = None
    """The most bytes of values that one answer holds, where that has to be sent on."""
    secret = b""
    """Signs the cursors of scans; kept in the cluster, so that any gateway takes another's."""

    # ------------------------------------------------------------------------------------------ one key

    async def set(self, p: c.KvSet, request: Request) -> c.SetAnswer:
        check_key(p.key)
        partition = self.places.partition(p.key)
        rule, expected = self._rule(p)
        ttl = b"" if p.ttl is None else b"%d" % (p.ttl * 1000)
        if p.keep_ttl:
            if p.ttl is not None:
                raise exclusive("ttl", "keep_ttl")
            ttl = b"keep"
        usual = not (ttl or rule)
        answer = await self.write(
            request,
            partition,
            "syn_set",
            (self.places.key(partition, p.key), *self.places.index(partition)),
            (p.key.encode(), stored(p.value), *(() if usual else (ttl, rule, *expected))),
        )
        return c.SetAnswer(answer.startswith(b"1"), p.key, answer[1:] or None)

    @staticmethod
    def _rule(p: c.KvSet) -> Tuple[bytes, Tuple[bytes, ...]]:
        """Return on what condition a set depends, and the values that an `if_value` means."""
        if p.nx and (p.xx or p.if_value is not UNSET):
            raise exclusive("nx", "xx" if p.xx else "if_value")
        if p.if_value is not UNSET:
            return b"is", either(p.if_value)
        return b"nx" if p.nx else b"xx" if p.xx else b"", ()

    async def get(self, p: c.KvGet, request: Request) -> c.GetAnswer:
        return self._found(await self._read(p.key))

    async def exists(self, p: c.KvExists, request: Request) -> c.ExistsAnswer:
        return c.ExistsAnswer(await self._read(p.key) is not None)

    async def ttl(self, p: c.KvTtl, request: Request) -> c.TtlAnswer:
        return c.TtlAnswer(self._found(await self._read(p.key, b"1")).ttl)

    def _read(self, key: str, needed: bytes = b"") -> Any:
        check_key(key)
        partition = self.places.partition(key)
        return self.read(partition, "syn_get", (self.places.key(partition, key),), (needed,))

    @staticmethod
    def _found(answer: Any) -> c.GetAnswer:
        if answer is None:
            return c.GetAnswer(False)
        if isinstance(answer, bytes):
            return c.GetAnswer(True, answer)
        value, left = answer
        return c.GetAnswer(True, value, max(ceil(left / 1000), 1))

    async def incr(self, p: c.KvIncr, request: Request) -> c.NumberAnswer:
        return await self._add(p.key, p.amount, request)

    async def decr(self, p: c.KvDecr, request: Request) -> c.NumberAnswer:
        return await self._add(p.key, -p.amount, request)

    async def _add(self, key: str, amount: int, request: Request) -> c.NumberAnswer:
        check_key(key)
        amounts = (b"%d" % (2**63 - 1), b"1") if amount == 2**63 else (b"%d" % amount,)  # INCRBY takes 64 bits only
        partition = self.places.partition(key)
        keys = (self.places.key(partition, key), *self.places.index(partition))
        number = await self.write(request, partition, "syn_incr", keys, (key.encode(), *amounts))
        return c.NumberAnswer(int(number))

    async def expire(self, p: c.KvExpire, request: Request) -> c.SuccessAnswer:
        expected = (b"",) if p.if_value is UNSET else (b"1", *either(p.if_value))
        return await self._expire(p.key, b"%d" % (p.ttl * 1000), expected, request)

    async def persist(self, p: c.KvPersist, request: Request) -> c.SuccessAnswer:
        return await self._expire(p.key, b"", (b"",), request)

    async def _expire(self, key: str, ttl: bytes, expected: Tuple[bytes, ...], request: Request) -> c.SuccessAnswer:
        check_key(key)
        partition = self.places.partition(key)
        keys = (self.places.key(partition, key), self.places.index(partition)[1])
        (done,) = await self.write(request, partition, "syn_expire", keys, (key.encode(), ttl, *expected))
        return c.SuccessAnswer(bool(done))

    # ------------------------------------------------------------------------------------------ several keys

    async def mset(self, p: c.KvMSet, request: Request) -> c.SuccessAnswer:
        """Each partition's pairs are stored all or none, up to 500 together."""
        for pair in p.pairs:
            check_key(pair.key)
        pairs = {pair.key: pair for pair in p.pairs}
        calls = []
        for partition, part, keys in self._parted(list(pairs), request):
            arguments: List[bytes] = []
            for key in keys:
                ttl = pairs[key].ttl
                arguments += (key.encode(), stored(pairs[key].value), b"" if ttl is None else b"%d" % (ttl * 1000))
            names = (*self.places.index(partition), *(self.places.key(partition, key) for key in keys))
            calls.append(self.write(part, partition, "syn_mset", names, arguments))
        await self.all(calls)
        return c.SuccessAnswer()

    async def mget(self, p: c.KvMGet, request: Request) -> c.MGetAnswer:
        """All values are read at once, but for those beyond `MOST_BYTES`, which follow, of few partitions at a time."""
        if self.link.recording:
            calls = [self._read(key) for key in p.keys]
            return c.MGetAnswer([self._found(answer) for answer in await self.all(calls)])
        for key in p.keys:
            check_key(key)
        found: Dict[str, c.GetAnswer] = {}
        size = 0
        whole = b"0"
        while left := [key for key in dict.fromkeys(p.keys) if key not in found]:
            parts = self._pieces(left)
            if whole == b"1":
                parts = parts[:FEW]
            most = b"%d" % max(MOST_BYTES // len(parts), LEAST_BYTES)
            reads = [
                self.read(partition, "syn_mget", [self.places.key(partition, key) for key in keys], (most, whole))
                for partition, _, keys in parts
            ]
            for (_, _, keys), answers in zip(parts, await self.all(reads)):
                for key, answer in zip(keys, answers):
                    found[key] = self._found(answer)
                    size += len(found[key].value or b"")
            whole = b"1"
            if self.most_bytes is not None and size > self.most_bytes:
                text = f"the values are more than {self.most_bytes:,} bytes together; ask for fewer at once"
                raise SynapError("PAYLOAD_TOO_LARGE", text, {"limit": self.most_bytes})
        return c.MGetAnswer([found[key] for key in p.keys])

    async def delete(self, p: c.KvDel, request: Request) -> c.DeletedAnswer:
        keys = list(dict.fromkeys(p.keys))
        for key in keys:
            check_key(key)
        if p.if_value is not UNSET:
            if len(keys) != 1:
                raise one_key(len(keys))
            partition = self.places.partition(keys[0])
            names = (*self.places.index(partition), self.places.key(partition, keys[0]))
            (done,) = await self.write(request, partition, "syn_del_if", names, (keys[0].encode(), *either(p.if_value)))
            return c.DeletedAnswer(done)
        return c.DeletedAnswer(await self._delete(keys, request))

    async def _delete(self, keys: Sequence[str], request: Request) -> int:
        calls = []
        for partition, part, some in self._parted(keys, request):
            names = (*self.places.index(partition), *(self.places.key(partition, key) for key in some))
            calls.append(self.write(part, partition, "syn_del", names, [key.encode() for key in some]))
        return sum(answer[0] for answer in await self.all(calls))

    def _parted(self, keys: Sequence[str], request: Request) -> List[Tuple[int, Request, List[str]]]:
        """Group keys by partition, in pieces that one call can change, each with a request of its own."""
        return [
            (partition, request if first == 0 else request.piece(first), names)
            for partition, first, names in self._pieces(keys)
        ]

    def _pieces(self, keys: Sequence[str]) -> List[Tuple[int, int, List[str]]]:
        """Group keys by partition, in pieces, each with the place of its first key in the group."""
        groups: Dict[int, List[str]] = {}
        for key in keys:
            groups.setdefault(self.places.partition(key), []).append(key)
        piece = len(keys) if self.link.recording else PIECE
        return [
            (partition, first, names[first : first + piece])
            for partition, names in groups.items()
            for first in range(0, len(names), piece)
        ]

    # ------------------------------------------------------------------------------------------ all keys

    async def scan(self, p: c.KvScan, request: Request) -> c.ScanAnswer:
        """Walk the partitions one after the other, the keys of each in order.

        Keys that the caller may not see don't count, not even for `has_more`.
        """
        self.alone("kv.scan")
        prefix, ranges = p.prefix or "", p.ranges()
        partition, after = 0, None
        if p.cursor is not None:
            text = read_cursor(self.secret, prefix, p.cursor)
            partition, after = int(text[:4], 16), text[4:]
        page: List[str] = []
        ended = ""
        looked = 0
        while partition < self.places.count:
            wide = TOGETHER if after is None else 1
            places = [
                (q, begin) for q in range(partition, min(partition + wide, self.places.count)) for begin in ranges
            ]
            pages = await self.all([self._page(q, begin, after, min(p.count + 1, PIECE)) for q, begin in places])
            for (q, begin), (keys, last) in zip(places, pages):
                while True:
                    for key in map(bytes.decode, keys):
                        if p.only is not None and not p.only.allows(key):
                            continue
                        if len(page) == p.count:
                            return c.ScanAnswer(page, write_cursor(self.secret, prefix, ended), True)
                        page.append(key)
                        ended = f"{q:04x}{key}"
                    looked += len(keys)
                    if looked >= HIDDEN + p.count:
                        ended = f"{q:04x}{keys[-1].decode()}"
                        return c.ScanAnswer(page, write_cursor(self.secret, prefix, ended, SEALED), True)
                    if not last:
                        break
                    keys, last = await self._page(q, begin, last.decode(), PIECE)
            partition, after = partition + wide, None
        return c.ScanAnswer(page, None, False)

    def _page(self, partition: int, prefix: str, after: Optional[str], count: int, end: bytes = b"") -> Any:
        low, high = _range(prefix)
        if after is not None and after >= prefix:
            low = b"(" + after.encode()
        if end:
            high = b"[" + end
        return self.read(partition, "syn_page", self.places.index(partition), (low, high, b"%d" % count))

    async def clear(self, p: c.KvClear, request: Request) -> c.DeletedAnswer:
        """Delete by prefix, partition by partition in pages, up to the last key that there is when a partition begins.

        A key that comes meanwhile goes too where that is still to be looked at.
        """
        deleted = await self._clear(p.prefix, request, "")
        if request.retried == b"1":  # what was remembered of a page by its number, an earlier try did to other keys
            deleted += await self._clear(p.prefix, request, secrets.token_hex(4))
        return c.DeletedAnswer(deleted)

    async def _clear(self, prefix: str, request: Request, mark: str) -> int:
        """Delete by prefix; each page is remembered by `mark` and its number."""
        deleted = 0
        for first in range(0, self.places.count, TOGETHER):
            some = range(first, min(first + TOGETHER, self.places.count))
            pages = await self.all([self._page(q, prefix, None, PIECE) for q in some])
            for which, (keys, last) in zip(some, pages):
                ends: List[bytes] = []
                if last:
                    low, high = _range(prefix)
                    index = self.places.index(which)[0]
                    ends = await self.link.command(which, "ZRANGE", index, high, low, "BYLEX", "REV", "LIMIT", 0, 1)
                for number in count(1):
                    names = [key.decode() for key in keys]
                    part = request.piece(f"{mark}{which}.{number}")
                    deleted += await self._delete(names, part) if names else 0
                    if not last:
                        break
                    keys, last = await self._page(which, prefix, last.decode(), PIECE, *ends)
        return deleted
