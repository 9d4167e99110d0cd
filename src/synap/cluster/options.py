"""How a cluster is reached and how safe a write has to be before it is answered."""

from __future__ import annotations

import os
import ssl as _ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import unquote

from synap.config import context_of, invalid_option, tls_files
from synap.errors import SynapError

SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
"""URL schemes of clusters, and whether they mean TLS."""
DURABILITY = ("none", "replicated", "synced")
PORT = 6379
_NONE: Mapping[str, Any] = {}


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class EngineOptions:
    """Options of a cluster engine.

    `durability`: 'none' (an answer means that the primary did it), 'replicated' (and `replicas` replicas have it),
    'synced' (and all of them have it on disk). `patience`: seconds that a call is tried before it fails with
    `SERVICE_UNAVAILABLE`. `space` begins all keys, so that several services can share a cluster; `partitions` counts at
    the first start only.
    """

    seeds: Tuple[Address, ...]
    user: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)
    ssl: Optional[_ssl.SSLContext] = field(default=None, repr=False)
    durability: str = "replicated"
    replicas: int = 1
    patience: float = 10.0
    space: str = "syn"
    partitions: Optional[int] = None
    connect_timeout: float = 2.0
    allow_eviction: bool = False
    unchecked: bool = False

    def __post_init__(self) -> None:
        if self.durability not in DURABILITY:
            raise invalid_option("durability", " or ".join(map(repr, DURABILITY)), self.durability)
        if not 1 <= self.replicas <= 100:
            raise invalid_option("replicas", "1 to 100", self.replicas)
        if not 0 < self.patience <= 3600:
            raise invalid_option("patience", "seconds, more than 0 and at most 3600", self.patience)
        if not (self.space.isascii() and self.space.isalnum()):
            raise invalid_option("space", "letters and digits", self.space)
        if self.partitions is not None and self.partitions not in tuple(2**power for power in range(15)):
            raise invalid_option("partitions", "a power of two, 1 to 16384", self.partitions)

    @property
    def copies(self) -> int:
        """Replicas that must have a write before it is answered."""
        return 0 if self.durability == "none" else self.replicas

    @property
    def login(self) -> Optional[Tuple[str, ...]]:
        """The command that a connection begins with; None where there is no password."""
        return None if self.password is None else ("AUTH", *filter(None, (self.user,)), self.password)

    @classmethod
    def read(cls, url: str, given: Mapping[str, Any] = _NONE, environ: Mapping[str, str] = os.environ) -> EngineOptions:
        """Read `valkey://[user:password@]host[:port][,host[:port]...]`. Never echoes the password.

        Other options come from `given`, by the names that `synap serve` has for them, else from the environment
        (SYNAP_DURABILITY, SYNAP_REPLICAS, SYNAP_PATIENCE, SYNAP_SPACE, SYNAP_PARTITIONS). What isn't a cluster's option
        is left alone where it is another engine's (`fsync`), else refused.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES:
            raise invalid_option("engine", "valkey://host:port, valkeys://, redis:// or rediss://", scheme)
        login, at, places = rest.rpartition("@")
        user, _, password = login.partition(":")
        options: Dict[str, Any] = {}
        for name, (kind, rule) in _READ.items():
            value = given.get(name)
            text = environ.get(f"SYNAP_{name.upper()}")
            if value is None and text:
                try:
                    value = _FLAGS[text.lower()] if kind is bool else kind(text)
                except (KeyError, ValueError):
                    raise invalid_option(f"SYNAP_{name.upper()}", rule, text) from None
            if value is not None:
                options[name] = _checked(name, value)
        unknown = sorted(set(given) - set(_READ) - _ASIDE)
        if unknown:
            known = ", ".join(sorted({*_READ, *_ASIDE} - {"fsync"}))
            raise invalid_option("engine", f"made of {known}", unknown[0])
        if at:
            options.update(user=unquote(user) or None, password=unquote(password))
        if given.get("engine_user"):
            options["user"] = _checked("engine_user", given["engine_user"])
            options.setdefault("password", "")  # with none, the default user would be taken
        if given.get("engine_password_file"):
            options["password"] = _password(given["engine_password_file"])
        for name in tls_files("engine", given) if not SCHEMES[scheme] else ():
            raise invalid_option(name, f"left out with {scheme}://, which is no TLS: {scheme}s:// is", given[name])
        if SCHEMES[scheme]:
            options["ssl"] = given.get("ssl") or context_of("engine", given)
        return cls(tuple(_address(text) for text in places.rstrip("/").split(",")), **options)


_TEXT, _WHOLE, _NUMBER, _FLAG = (str, "text"), (int, "a whole number"), (float, "a number"), (bool, "true or false")
_READ: Dict[str, Any] = {
    "durability": _TEXT,
    "replicas": _WHOLE,
    "patience": _NUMBER,
    "space": _TEXT,
    "partitions": _WHOLE,
    "allow_eviction": _FLAG,
    "unchecked": _FLAG,
}
_FLAGS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_ASIDE = frozenset(("engine_user", "engine_password_file", "engine_ca", "engine_cert", "engine_key", "ssl", "fsync"))


def _checked(name: str, value: Any) -> Any:
    kind, rule = _READ.get(name, _TEXT)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise invalid_option(name, rule, value)
    return value


def _password(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, TypeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        text = f"engine_password_file={path!r} can't be read: {why}"
        raise SynapError("INVALID_REQUEST", text, {"option": "engine_password_file"}) from None


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(PORT)
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise invalid_option("url", "valkey://host:port[,host:port…]", text)
    return Address(host, int(port))
