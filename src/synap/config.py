"""What a client can be told: `ClientConfig`, the URLs, the `SYNAP_*` variables."""

from __future__ import annotations

import difflib
import math
import os
import re
import ssl as _ssl
from dataclasses import dataclass, field, fields
from typing import Any, Callable, Mapping, NamedTuple, Optional
from urllib.parse import unquote, urlsplit

from synap.errors import SynapError

__all__ = ["DEFAULT_URL", "ClientConfig", "Target", "parse_url", "resolve", "without_secret"]

DEFAULT_URL = "http://localhost:15500"
DEFAULT_PORT = 15500
CLUSTERS = ("valkey", "valkeys", "redis", "rediss")
SCHEMES = ("http", "https", "memory", "file", *CLUSTERS)
FORMATS = ("json", "msgpack")
TRANSPORTS = ("auto", "native", "http")
FSYNC = ("always", "everysec", "no")
_NUMBERS = {"timeout": "a number of seconds, more than 0", "retry_backoff": "a number, 0 or more"}


def bad(option: str, rule: str, got: object) -> SynapError:
    """Build the error for an option that can't be used."""
    return SynapError("INVALID_REQUEST", f"{option} must be {rule}, got {got!r}", {"option": option})


@dataclass
class ClientConfig:
    """Everything a client can be told.

    `url`: `http://host:port`, `https://…`, `memory://` (private), `memory://name` (shared in this process) or
    `file:///directory`; without one `SYNAP_URL`, then `http://localhost:15500`. `api_key`: without one `SYNAP_API_KEY`.

    `timeout`: seconds until a request without an answer fails (a waiting `consume` has its own on top).
    `retries`: further attempts after connection failures, rate limits and an unavailable service; the first after
    `retry_delay` seconds, each later one `retry_backoff` times as long, none longer than `retry_max_delay`, all
    shortened at random.

    `pool_size`: connections of the HTTP lane, and of the sync client; the async native lane needs one.
    `transport`: 'auto' takes the native lane where the server has it, 'native' and 'http' insist.
    `buffer`: items a subscription may hold that its callback has not taken yet.
    `ssl`: an `ssl.SSLContext` for `https://`. `fsync`: 'always', 'everysec' or 'no', for `file://`.
    `clock`: what tells an engine in this process the time (Unix seconds), for tests; see `synap.testing.TestClock`.
    `engine`: options of a cluster, by the names that `synap serve` has for them, such as `{'durability': 'none'}`.
    """

    url: Optional[str] = None
    api_key: Optional[str] = None
    timeout: float = 30.0
    retries: int = 3
    pool_size: int = 10
    keep_alive: bool = True
    compression: bool = False
    format: str = "json"
    retry_delay: float = 0.1
    retry_backoff: float = 2.0
    retry_max_delay: float = 30.0
    transport: str = "auto"
    ssl: Optional[_ssl.SSLContext] = None
    buffer: int = 10_000
    fsync: str = "always"
    clock: Optional[Callable[[], float]] = None
    engine: Optional[Mapping[str, Any]] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.url is not None:
            parse_url(self.url)
        key = self.api_key
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
            # A key travels as a header. The message doesn't show it.
            raise SynapError("INVALID_REQUEST", "api_key must be printable ASCII", {"option": "api_key"})
        for name in ("timeout", "retry_delay", "retry_backoff", "retry_max_delay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise bad(name, _NUMBERS.get(name, "a number of seconds, 0 or more"), value)
        if self.timeout == 0:
            raise bad("timeout", _NUMBERS["timeout"], self.timeout)
        for name, least in (("retries", 0), ("pool_size", 1), ("buffer", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise bad(name, f"a whole number, {least} or more", value)
        for name in ("keep_alive", "compression"):
            if not isinstance(getattr(self, name), bool):
                raise bad(name, "True or False", getattr(self, name))
        for name, known in (("format", FORMATS), ("transport", TRANSPORTS), ("fsync", FSYNC)):
            if getattr(self, name) not in known:
                raise bad(name, " or ".join(map(repr, known)), getattr(self, name))
        if self.engine is not None and not isinstance(self.engine, Mapping):
            raise bad("engine", "a mapping of options, such as {'durability': 'none'}", self.engine)
        if self.ssl is not None and not isinstance(self.ssl, _ssl.SSLContext):
            raise bad("ssl", "an ssl.SSLContext", self.ssl)

        if self.clock is not None and not callable(self.clock):
            raise bad("clock", "a function that returns Unix seconds", self.clock)

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={'***' if field.name == 'api_key' else repr(value)}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"ClientConfig({', '.join(shown)})"


class Target(NamedTuple):
    """A URL taken apart: where `scheme` is 'memory' the name is in `path`, for 'file' the directory."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def in_process(self) -> bool:
        """Whether the engine, or the cluster's host, is in this process: no server is between."""
        return self.scheme in ("memory", "file", *CLUSTERS)


_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@,?#]+)(:\d{1,5})?")


def _cluster(scheme: str, url: str) -> Target:
    """Check the shape of a cluster's URL; the cluster's own options read it (user, password and all)."""
    nodes = url.partition("://")[2].rpartition("@")[2].rstrip("/")
    if not all(_NODE.fullmatch(node) for node in nodes.split(",")):
        raise bad("url", f"{scheme}://[user:password@]host:port[,host:port...]", without_secret(url))
    return Target(scheme, path=url.partition("://")[2])


def parse_url(url: str) -> Target:
    """Take a URL apart; refuses by name what isn't understood."""
    if not isinstance(url, str):
        raise bad("url", "a string such as 'http://localhost:15500'", url)
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, 1)
        hint = f" (did you mean {near[0]}://?)" if near and separator else ""
        rule = "one of " + ", ".join(f"{known}://" for known in SCHEMES)
        raise SynapError(
            "INVALID_REQUEST", f"url must begin with {rule}, got {without_secret(url)!r}{hint}", {"option": "url"}
        )
    if scheme in CLUSTERS:
        return _cluster(scheme, url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SynapError("INVALID_REQUEST", f"url can't be read: {error}", {"option": "url"}) from None
    if parts.query or parts.fragment:
        raise bad("url", "without query and fragment (options are arguments of the client)", without_secret(url))
    if scheme == "memory":
        return Target("memory", path=parts.netloc + parts.path)
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise bad("url", "file:///directory with three slashes", url)
        return Target("file", path=unquote(parts.path))
    if parts.username is not None or parts.password is not None:
        raise SynapError("INVALID_REQUEST", "url must not hold a user or password, use api_key", {"option": "url"})
    if not parts.hostname:
        raise bad("url", f"{scheme}://host:port", url)
    if parts.path not in ("", "/"):
        raise bad("url", "without a path", url)
    return Target(scheme, parts.hostname, DEFAULT_PORT if port is None else port)


def without_secret(url: str) -> str:
    """Return a URL as errors and logs may show it: whatever stands before an @ may be a secret."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else url


def resolve(
    config: Optional[ClientConfig], options: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> ClientConfig:
    """Make the configuration of a client from its arguments and the environment.

    Raises `INVALID_REQUEST` for an option that doesn't exist (with the nearest that does) or can't be used.
    """
    known = {field.name for field in fields(ClientConfig)}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise SynapError("INVALID_REQUEST", f"there is no option {name!r}{hint}", {"option": name})
    if config is not None:
        if not isinstance(config, ClientConfig):
            raise bad("config", "a ClientConfig (a URL is given as url=...)", without_secret(str(config)))
        if options:
            raise SynapError("INVALID_REQUEST", "give a ClientConfig or options, not both")
        options = {field.name: getattr(config, field.name) for field in fields(config)}
    merged = dict(options)
    if merged.get("url") is None:
        merged["url"] = environ.get("SYNAP_URL") or DEFAULT_URL
    if merged.get("api_key") is None:
        merged["api_key"] = environ.get("SYNAP_API_KEY") or None
    return ClientConfig(**merged)
