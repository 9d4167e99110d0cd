"""Django's cache in a Synap service.

CACHES = {
    "default": {
        "BACKEND": "synap.contrib.django.cache.SynapCache",
        "LOCATION": "http://localhost:15500",
        "OPTIONS": {"api_key": "…"},  # fields of ClientConfig, and `namespace`, `serializer`
    }
}
"""

from __future__ import annotations

import math
import pickle
from typing import Any, Dict, Iterable, List, Mapping, Optional

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.utils.module_loading import import_string

from synap import SynapClient
from synap.contrib.sharing import is_counter, shared_client, slices
from synap.errors import KeyNotFoundError, SynapError

__all__ = ["PickleSerializer", "SynapCache"]

OWN_OPTIONS = ("MAX_ENTRIES", "CULL_FREQUENCY", "namespace", "serializer")
"""Options that are not the client's. The first two are Django's and ignored: the service has its own limits."""


class PickleSerializer:
    """Serializes with pickle's newest protocol, so use a service you trust."""

    def dumps(self, value: Any) -> bytes:
        """Return the value as bytes."""
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        """Return the value of bytes from `dumps`."""
        return pickle.loads(data)


class SynapCache(BaseCache):
    """A cache backend. Timeouts are rounded up to whole seconds.

    `OPTIONS["namespace"]`: prefix of all keys at the service, by default 'django:'; `clear()` deletes nothing else.
    `OPTIONS["serializer"]`: an object, a class or its dotted name, with `dumps` and `loads`, by default pickle. Other
    options are fields of `ClientConfig`. The threads of the process share one client. Methods raise `SynapError`.
    """

    def __init__(self, location: str, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS", {}))
        self._namespace: str = options.get("namespace", "django:")
        serializer = options.get("serializer", PickleSerializer)
        if isinstance(serializer, str):
            serializer = import_string(serializer)
        self._serializer = serializer() if isinstance(serializer, type) else serializer
        self._url = location or None
        self._options = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        self._options["format"] = "msgpack"

    @property
    def client(self) -> SynapClient:
        """The client that the caches of this process share."""
        return shared_client(self._url, self._options)

    # ------------------------------------------------------------------------------------------ serialization

    def _key(self, key: str, version: Optional[int]) -> str:
        return self._namespace + str(self.make_and_validate_key(key, version=version))

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> Optional[int]:
        """Return a timeout in whole seconds: None for never, 0 for one in the past."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(0, math.ceil(timeout))

    def _pack(self, value: Any) -> Any:
        return value if is_counter(value) else self._serializer.dumps(value)

    def _unpack(self, value: Any) -> Any:
        return value if type(value) is int else self._serializer.loads(value)

    # ------------------------------------------------------------------------------------------ one key

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Optional[int] = None) -> bool:
        """Store a value unless the key exists; returns whether it was stored."""
        name, ttl, packed = self._key(key, version), self.get_backend_timeout(timeout), self._pack(value)
        if ttl == 0:
            return not self.client.kv.exists(name)
        return self.client.kv.set(name, packed, ttl=ttl, nx=True).success

    def get(self, key: str, default: Any = None, version: Optional[int] = None) -> Any:
        """Return a value, or `default`."""
        result = self.client.kv.get(self._key(key, version))
        return self._unpack(result.value) if result.found else default

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Optional[int] = None) -> None:
        """Store a value."""
        name, ttl, packed = self._key(key, version), self.get_backend_timeout(timeout), self._pack(value)
        if ttl == 0:
            self.client.kv.delete(name)
        else:
            self.client.kv.set(name, packed, ttl=ttl)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: Optional[int] = None) -> bool:
        """Set the timeout (seconds) of a key; returns whether it exists."""
        name, ttl = self._key(key, version), self.get_backend_timeout(timeout)
        try:
            if ttl == 0:
                return self.client.kv.delete(name) > 0
            if ttl is None:
                self.client.kv.persist(name)
            else:
                self.client.kv.expire(name, ttl)
        except KeyNotFoundError:
            return False
        return True

    def delete(self, key: str, version: Optional[int] = None) -> bool:
        """Delete a key; returns whether it existed."""
        return self.client.kv.delete(self._key(key, version)) > 0

    def has_key(self, key: str, version: Optional[int] = None) -> bool:
        """Return whether a key exists."""
        return self.client.kv.exists(self._key(key, version))

    def incr(self, key: str, delta: int = 1, version: Optional[int] = None) -> int:
        """Increment an integer atomically and return the new value; the timeout stays.

        Raises `ValueError` if the key doesn't exist, `TypeError` if its value is not an integer.
        """
        name = self._key(key, version)
        with self.client.pipeline(atomic=True) as step:  # else one that ends in between would begin anew, for ever
            there, counted = step.kv.ttl(name), step.kv.incr(name, delta)
        value = None
        for one in (there, counted):
            try:
                value = one.result()
            except KeyNotFoundError as error:
                raise ValueError(f"Key {key!r} not found") from error
            except SynapError as error:
                if error.code == "WRONG_TYPE":
                    raise TypeError(f"the value of {key!r} is not an integer") from error
                if error.code != "BATCH_ABORTED":  # the other one says why
                    raise
        assert value is not None
        return value

    # ------------------------------------------------------------------------------------------ many keys

    def get_many(self, keys: Iterable[str], version: Optional[int] = None) -> Dict[str, Any]:
        """Return the values of the keys that exist, 1,000 keys in one call."""
        values = {}
        for some in slices(keys):
            found = self.client.kv.mget(*(self._key(key, version) for key in some))
            values.update({key: self._unpack(result.value) for key, result in zip(some, found) if result.found})
        return values

    def set_many(
        self, data: Mapping[str, Any], timeout: Any = DEFAULT_TIMEOUT, version: Optional[int] = None
    ) -> List[str]:
        """Store several values, 1,000 in one call, all of these or none; returns an empty list: no key fails alone."""
        ttl = self.get_backend_timeout(timeout)
        pairs = {self._key(key, version): self._pack(value) for key, value in data.items()}
        for some in slices(pairs):
            if ttl == 0:
                self.client.kv.delete(*some)
            else:
                self.client.kv.mset({name: pairs[name] for name in some}, ttl=ttl)
        return []

    def delete_many(self, keys: Iterable[str], version: Optional[int] = None) -> None:
        """Delete several keys, 1,000 in one call."""
        for some in slices(self._key(key, version) for key in keys):
            self.client.kv.delete(*some)

    def clear(self) -> bool:
        """Delete every key of the namespace."""
        self.client.kv.clear(self._namespace)
        return True
