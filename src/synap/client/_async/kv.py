"""Key-value: `client.kv`."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Type, TypeVar, overload

from msgspec import UNSET

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client.checks import as_dict, text
from synap.errors import KeyNotFoundError
from synap.results import GetResult, ScanResult, SetResult
from synap.wire.typed import as_type, check_type

T = TypeVar("T")


class AsyncKeyValue:
    """Values under keys. A key is 1 to 1,024 bytes of UTF-8, a value anything JSON can hold."""

    __slots__ = ("_call",)

    def __init__(self, calls: AsyncCalls) -> None:
        self._call = calls.call

    async def set(
        self,
        key: str,
        value: Any,
        ttl: Optional[int] = None,
        nx: bool = False,
        xx: bool = False,
        *,
        if_value: Any = UNSET,
        keep_ttl: bool = False,
    ) -> SetResult:
        """Store `value` under `key`.

        `ttl`: whole seconds until it expires, 1 to 10,000,000,000; None, the default, for never. An earlier `ttl` of
        the key is dropped unless `keep_ttl` is set. `nx` stores only where the key doesn't exist, `xx` only where it
        does, `if_value` only where it holds exactly this value. Where such a condition doesn't hold nothing changes,
        and the result is false. Raises `MEMORY_LIMIT` where the service is full, `INVALID_PAYLOAD` for conditions that
        exclude each other.
        """
        if type(key) is not str:
            key = text("key", key)
        result: SetResult = await self._call(c.KV_SET, c.KvSet(key, value, ttl, nx, xx, if_value, keep_ttl))
        return result

    @overload
    async def get(self, key: str, *, required: bool = ..., type: Type[T]) -> GetResult[T]: ...

    @overload
    async def get(self, key: str, *, required: bool = ..., type: object = ...) -> GetResult: ...

    async def get(self, key: str, *, required: bool = False, type: Any = None) -> GetResult:
        """Read the value under `key`; the result is false, with `found=False`, where there is none.

        `required`: raise `KeyNotFoundError` instead. With a `type` the value is checked and comes back as an object of
        it; one that doesn't fit is `WRONG_TYPE`.
        """
        if key.__class__ is not str:
            key = text("key", key)
        if type is not None:
            check_type(type)
        result: GetResult = await self._call(c.KV_GET, c.KvGet(key))
        if required and not result.found:
            raise KeyNotFoundError("KEY_NOT_FOUND", f"there is no key {key!r}", {"key": key})
        if type is not None and result.found:
            as_type(result, "value", type, key=key)
        return result

    async def delete(self, *keys: str, if_value: Any = UNSET) -> int:
        """Delete `keys`; returns how many of them there were.

        With `if_value`, which goes with one key, it is deleted only where it holds exactly this value.
        """
        answer: c.DeletedAnswer = await self._call(c.KV_DEL, c.KvDel([text("key", key) for key in keys], if_value))
        return answer.deleted

    async def clear(self, prefix: str) -> int:
        """Delete all keys that begin with `prefix` ('' is all keys); returns how many there were.

        Keys stored while it runs stay. It is executed in slices, with other callers' requests in between, so a call
        that is interrupted may have deleted some. One that is sent again, since its connection was lost, begins again:
        it takes what is stored by then, too, and doesn't count what the first one took.
        """
        answer: c.DeletedAnswer = await self._call(c.KV_CLEAR, c.KvClear(text("prefix", prefix)))
        return answer.deleted

    async def exists(self, key: str) -> bool:
        """Return whether `key` exists."""
        answer: c.ExistsAnswer = await self._call(c.KV_EXISTS, c.KvExists(text("key", key)))
        return answer.exists

    async def incr(self, key: str, amount: int = 1) -> int:
        """Add `amount` (default 1, may be negative) to the integer under `key`; returns the sum.

        A key that doesn't exist counts as 0. Raises `WRONG_TYPE` where the value is no integer, `INTEGER_OVERFLOW`
        where the sum doesn't fit 64 bits; nothing changes then.
        """
        if type(key) is not str:
            key = text("key", key)
        answer: c.NumberAnswer = await self._call(c.KV_INCR, c.KvIncr(key, amount))
        return answer.value

    async def decr(self, key: str, amount: int = 1) -> int:
        """Subtract `amount` (default 1) from the integer under `key`; returns the difference. Otherwise as `incr`.

        Raises `WRONG_TYPE`, `INTEGER_OVERFLOW`.
        """
        answer: c.NumberAnswer = await self._call(c.KV_DECR, c.KvDecr(text("key", key), amount))
        return answer.value

    async def expire(self, key: str, ttl: int, *, if_value: Any = UNSET) -> bool:
        """Let `key` expire `ttl` seconds from now (1 to 10,000,000,000); returns True.

        With `if_value`, only where it holds exactly this value; returns whether it did, False also for a missing key.
        Without it, raises `KeyNotFoundError` for a missing key.
        """
        answer: c.SuccessAnswer = await self._call(c.KV_EXPIRE, c.KvExpire(text("key", key), ttl, if_value))
        return answer.success

    async def persist(self, key: str) -> None:
        """Let `key` no longer expire. Raises `KeyNotFoundError`."""
        await self._call(c.KV_PERSIST, c.KvPersist(text("key", key)))

    async def ttl(self, key: str) -> Optional[int]:
        """Return the seconds `key` has left, rounded up; None where it doesn't expire.

        Raises `KeyNotFoundError`.
        """
        answer: c.TtlAnswer = await self._call(c.KV_TTL, c.KvTtl(text("key", key)))
        return answer.ttl

    async def scan(self, prefix: Optional[str] = None, cursor: Optional[str] = None, count: int = 100) -> ScanResult:
        """List keys page by page, those that begin with `prefix` (default: all), about `count` (1..10000) a page.

        Every key that is there from the first page to the last comes exactly once. Pass the `cursor` of a page to the
        next call while it `has_more`. Raises `INVALID_PAYLOAD` for a cursor that no page had.
        """
        if prefix is not None:
            prefix = text("prefix", prefix)
        if cursor is not None:
            cursor = text("cursor", cursor)
        result: ScanResult = await self._call(c.KV_SCAN, c.KvScan(prefix, cursor, count))
        return result

    async def mset(self, mapping: Mapping[str, Any], ttl: Optional[int] = None) -> None:
        """Store the values of `mapping` under its keys, 1 to 10,000, all of them or none.

        `ttl`: seconds until they expire, each of them; None, the default, for never. Raises `MEMORY_LIMIT`.
        """
        pairs = [c.Pair(text("key", key), value, ttl) for key, value in as_dict("mapping", mapping).items()]
        await self._call(c.KV_MSET, c.KvMSet(pairs))

    async def mget(self, *keys: str) -> List[GetResult]:
        """Read the values of `keys`; the results, one for each key, are in their order."""
        answer: c.MGetResult = await self._call(c.KV_MGET, c.KvMGet([text("key", key) for key in keys]))
        return answer.values
