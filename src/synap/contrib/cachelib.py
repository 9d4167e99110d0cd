"""`SynapCache`, a cachelib cache, which Flask-Caching and Flask-Session use too."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Callable, Dict, List, Optional, Union

from cachelib.base import BaseCache
from cachelib.serializers import RedisSerializer

from synap import SynapClient
from synap.contrib.sharing import is_counter, shared_client, slices
from synap.errors import SynapError

__all__ = ["SynapCache", "flask_caching"]

Timeout = Union[int, timedelta, None]
"""Seconds, or a `timedelta`; None: the cache's own."""


class SynapCache(BaseCache):
    """A cache in a Synap service, shared by all processes that use it.

    `url`, `options` (fields of `ClientConfig`): of the client, which the caches of a process share; or `client`, your
    own with `format='msgpack'`. `default_timeout`: seconds until a value expires, 0 for never, by default 300.
    `key_prefix`: prefix of this cache's keys (or a function that returns it), by default 'cache:'; `clear()` deletes
    nothing else. `ignore_delete_many_errors` is cachelib's and ignored: deleting a missing key is no error, and any
    other is raised. Raises `INVALID_REQUEST` for a client of another format.

    Values are pickled by cachelib's serializer, so use a service you trust. Integers are stored as such. `timeout` of
    the methods is in seconds (or a `timedelta`), 0 for never, None for `default_timeout`. All raise `SynapError`.
    """

    serializer: Any = RedisSerializer()

    def __init__(
        self,
        url: Optional[str] = None,
        default_timeout: Union[int, timedelta] = 300,
        key_prefix: Union[str, Callable[[], str], None] = None,
        *,
        ignore_delete_many_errors: bool = True,
        client: Optional[SynapClient] = None,
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(default_timeout)
        if client is not None and client.config.format != "msgpack":
            raise SynapError("INVALID_REQUEST", "the cache needs a client with format='msgpack': pickles are bytes")
        self._client = client or shared_client(url, {**(options or {}), "format": "msgpack"})
        self.key_prefix = "cache:" if key_prefix is None else key_prefix

    def _key(self, key: str) -> str:
        prefix = self.key_prefix() if callable(self.key_prefix) else self.key_prefix
        return f"{prefix}{key}"

    def _ttl(self, timeout: Timeout) -> Optional[int]:
        """Return a timeout in whole seconds: None for never, 0 for one in the past."""
        if timeout is None:
            timeout = self.default_timeout
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if seconds == 0:
            return None
        return max(0, math.ceil(seconds))

    def _pack(self, value: Any) -> Any:
        return value if is_counter(value) else self.serializer.dumps(value)

    def _unpack(self, value: Any) -> Any:
        return self.serializer.loads(value) if isinstance(value, bytes) else value

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        return self._unpack(self._client.kv.get(self._key(key)).value)

    def get_many(self, *keys: str) -> List[Any]:
        """Return several values in the order of the keys, 1,000 in one call."""
        found = (one for some in slices(map(self._key, keys)) for one in self._client.kv.mget(*some))
        return [self._unpack(one.value) for one in found]

    def set(self, key: str, value: Any, timeout: Timeout = None) -> Optional[bool]:
        """Store a value; returns whether it was stored."""
        ttl = self._ttl(timeout)
        if ttl == 0:
            self._client.kv.delete(self._key(key))
            return True
        return self._client.kv.set(self._key(key), self._pack(value), ttl=ttl).success

    def add(self, key: str, value: Any, timeout: Timeout = None) -> bool:
        """Store a value unless the key exists; returns whether it was stored."""
        ttl = self._ttl(timeout)
        if ttl == 0:
            return not self.has(key)
        return self._client.kv.set(self._key(key), self._pack(value), ttl=ttl, nx=True).success

    def set_many(self, mapping: Dict[str, Any], timeout: Timeout = None) -> List[Any]:
        """Store several values, 1,000 in one call, all of these or none; returns the keys that were stored."""
        ttl = self._ttl(timeout)
        if ttl == 0:
            return self.delete_many(*mapping)
        pairs = {self._key(key): self._pack(value) for key, value in mapping.items()}
        for some in slices(pairs):
            self._client.kv.mset({name: pairs[name] for name in some}, ttl=ttl)
        return list(mapping)

    def delete(self, key: str) -> bool:
        """Delete a key; returns whether it existed."""
        return self._client.kv.delete(self._key(key)) > 0

    def delete_many(self, *keys: str) -> List[Any]:
        """Delete several keys, 1,000 in one call; returns `keys`."""
        for some in slices(map(self._key, keys)):
            self._client.kv.delete(*some)
        return list(keys)

    def delete_many_with_prefix(self, prefix: str) -> bool:
        """Delete all values whose keys begin with `prefix`."""
        self._client.kv.clear(self._key(prefix))
        return True

    def has(self, key: str) -> bool:
        """Return whether a key exists."""
        return self._client.kv.exists(self._key(key))

    def clear(self) -> bool:
        """Delete all values whose keys begin with `key_prefix`."""
        self._client.kv.clear(self._key(""))
        return True

    def inc(self, key: str, delta: int = 1) -> Optional[int]:
        """Increment an integer atomically, from 0 if the key doesn't exist; returns the new value.

        Raises `WRONG_TYPE` for a value that is not an integer.
        """
        return self._client.kv.incr(self._key(key), delta)

    def dec(self, key: str, delta: int = 1) -> Optional[int]:
        """Decrement an integer, as `inc` increments it."""
        return self._client.kv.decr(self._key(key), delta)


def flask_caching(
    url: Optional[str] = None,
    *,
    default_timeout: int = 300,
    key_prefix: str = "flask_cache:",
    ignore_delete_many_errors: bool = False,
    options: Optional[Dict[str, Any]] = None,
) -> SynapCache:
    """Create the cache for Flask-Caching: `CACHE_TYPE = 'synap.contrib.cachelib.flask_caching'`.

    `CACHE_ARGS` holds the URL, `CACHE_OPTIONS` may hold `key_prefix` and `options` (fields of `ClientConfig`).
    `ignore_delete_many_errors` is passed by Flask-Caching and ignored.
    """
    return SynapCache(url, default_timeout, key_prefix, options=options)
