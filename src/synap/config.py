"""The configuration of a client: `ClientConfig`, URLs, `SYNAP_*` variables."""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import ssl as _ssl
import warnings
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Set, Union
from urllib.parse import unquote, urlsplit

from synap.errors import SynapError

DEFAULT_URL = "http://localhost:15500"
DEFAULT_PORT = 15500
CLUSTERS = ("valkey", "valkeys", "redis", "rediss")
SCHEMES = ("http", "https", "memory", "file", *CLUSTERS)
FORMATS = ("json", "msgpack")
TRANSPORTS = ("auto", "native", "websocket")
FSYNC = ("always", "everysec", "no")
MOST_SPIN = 0.01
"""Seconds that a call polls for its answer at most."""
_NUMBERS = {"timeout": "a number of seconds, more than 0", "retry_backoff": "a number, 0 or more"}


def invalid_option(option: str, rule: str, got: object) -> SynapError:
    """Build the error for an invalid option."""
    return SynapError("INVALID_REQUEST", f"{option} must be {rule}, got {got!r}", {"option": option})


@dataclass
class ClientConfig:
    """The options of a client. Raises `INVALID_REQUEST` for invalid ones.

    Connection:

    `url`: `http://host:port`, `https://…`, `memory://` (an engine of its own), `memory://name` (shared by the clients
    of this process), `file:///directory`, or a cluster's `valkey://host:port`, `valkeys://…`, `redis://…`, `rediss://…`;
    without one `SYNAP_URL`, then `http://localhost:15500`.
    `api_key`: sent with every connection; without one `SYNAP_API_KEY`. Shown in no error, log or `repr`.
    `ssl`: an `ssl.SSLContext` for `https://`, `valkeys://` and `rediss://`. Or, as paths of PEM files: `tls_ca`, the
    authorities to trust in place of the system's; `tls_cert` and `tls_key`, a certificate of the client's own
    (`tls_key`: where its key is in another file). A client with an `ssl` context can't be pickled, one with paths can.

    Timeouts and retries:

    `timeout`: seconds until a call without an answer fails with `TIMEOUT`, its retries, the look-up of the name and all
    addresses included; a waiting `consume` has its own time on top. `retries`: further attempts after connection
    failures, rate limits and an unavailable service, the first after `retry_delay` seconds, each later one
    `retry_backoff` times as long, none longer than `retry_max_delay` seconds, all shortened at random by up to half.
    The defaults add up to some 10 seconds, enough for a restart of the service. Where the service asks for a longer
    pause than `retry_max_delay` (`details['retry_after']`), there is no further attempt.

    Protocol and others:

    `transport`: 'auto' upgrades the connection to native frames, and opens a WebSocket where a proxy refuses that;
    'native' and 'websocket' insist. `format`: 'json' or 'msgpack', which also carries `bytes`.
    `pool_size`: connections of the sync client; the async client needs one. `keep_alive`: False closes a connection
    once nothing is in flight on it. `compression`: gzip for bodies of 1 KiB and more.
    `buffer`: undelivered items that a subscription may hold.
    `spin`: whether a call that is alone polls for its answer before the thread or the event loop sleeps, which costs
    CPU time and spares the waking, or for how many seconds at most, up to 0.01; True: some 50 microseconds. Given up
    for a while where answers take longer than that, or (on Linux) where more threads are runnable than there are CPUs.
    Never on a single CPU; in the sync client not with TLS or under gevent either.
    `fsync`: 'always', 'everysec' or 'no', for `file://`; the same for all clients that have a directory open.
    `clock`: a function that returns Unix seconds, for an engine in this process, for tests (`synap.testing.TestClock`).
    `engine`: options of a cluster, by the names that `synap serve` has for them, such as `{'durability': 'none'}`.
    """

    url: Optional[str] = None
    api_key: Optional[str] = None
    timeout: float = 30.0
    retries: int = 7
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
    spin: Union[bool, float] = True
    tls_ca: Optional[str] = None
    tls_cert: Optional[str] = None
    tls_key: Optional[str] = None

    def __post_init__(self) -> None:
        if self.url is not None:
            parse_url(self.url)
        if self.api_key is not None:
            _check_key(self.api_key)
        for name in ("timeout", "retry_delay", "retry_backoff", "retry_max_delay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise invalid_option(name, _NUMBERS.get(name, "a number of seconds, 0 or more"), value)
        if self.timeout == 0:
            raise invalid_option("timeout", _NUMBERS["timeout"], self.timeout)
        for name, least in (("retries", 0), ("pool_size", 1), ("buffer", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise invalid_option(name, f"a whole number, {least} or more", value)
        for name in ("keep_alive", "compression"):
            if not isinstance(getattr(self, name), bool):
                raise invalid_option(name, "True or False", getattr(self, name))
        if not isinstance(self.spin, bool) and not (isinstance(self.spin, float) and 0 < self.spin <= MOST_SPIN):
            raise invalid_option("spin", f"True, False, or a number of seconds up to {MOST_SPIN}", self.spin)
        if self.transport == "http":
            raise SynapError(
                "INVALID_REQUEST",
                "transport must be 'auto', 'native' or 'websocket'; 'http' is gone, 'websocket' passes where it did",
                {"option": "transport"},
            )
        for name, known in (("format", FORMATS), ("transport", TRANSPORTS), ("fsync", FSYNC)):
            if getattr(self, name) not in known:
                raise invalid_option(name, " or ".join(map(repr, known)), getattr(self, name))
        if self.engine is not None and not isinstance(self.engine, Mapping):
            raise invalid_option("engine", "a mapping of options, such as {'durability': 'none'}", self.engine)
        if self.ssl is not None and not isinstance(self.ssl, _ssl.SSLContext):
            raise invalid_option("ssl", "an ssl.SSLContext", self.ssl)
        if tls_files("tls", vars(self)):
            tls_context(self)  # unreadable files raise here

        if self.clock is not None and not callable(self.clock):
            raise invalid_option("clock", "a function that returns Unix seconds", self.clock)

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={_shown(field.name, value)}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"ClientConfig({', '.join(shown)})"


def _shown(name: str, value: Any) -> str:
    """Return the text of an option for `repr`, without secrets."""
    if name == "url":
        return repr(without_secret(value))
    if name == "engine":
        return repr({option: "***" if "password" in option else given for option, given in value.items()})
    return "***" if name == "api_key" else repr(value)


def tls_context(config: ClientConfig) -> _ssl.SSLContext:
    """Return the client's TLS context; raises `INVALID_REQUEST` for unusable files."""
    if config.ssl is None:
        return context_of("tls", vars(config))
    for name in tls_files("tls", vars(config)):
        raise invalid_option(name, "left out where ssl is given, which holds all of that", "both")
    return config.ssl


def context_of(prefix: str, given: Mapping[str, Any]) -> _ssl.SSLContext:
    """Return the TLS context of a client by the options `<prefix>_ca`, `_cert` and `_key`; raises as `tls_context`."""
    files = tls_files(prefix, given)
    for name, path in files.items():
        if not isinstance(path, (str, os.PathLike)):
            raise invalid_option(name, "the path of a PEM file", path)
    ca, cert, key = (files.get(f"{prefix}_{what}") for what in _TLS_FILES)
    if key is not None and cert is None:
        raise invalid_option(f"{prefix}_key", f"given together with {prefix}_cert", key)
    try:
        context = _ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = ", ".join(f"{name}={path!r}" for name, path in files.items())
        message = f"{named or 'the certificates of this system'} can't be used: {openssl_said(error)}"
        raise SynapError("INVALID_REQUEST", message, {"option": next(iter(files), "ssl")}) from None
    return context


_TLS_FILES = ("ca", "cert", "key")
_OPENSSL = {
    "PEM lib": "there is no certificate in the certificate's file, or no private key in the key's (PEM)",
    "KEY_VALUES_MISMATCH": "the key is another certificate's",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it (PEM)",
}


def tls_files(prefix: str, given: Mapping[str, Any]) -> Dict[str, Any]:
    """Return those of the three options that are given."""
    names = [f"{prefix}_{what}" for what in _TLS_FILES]
    return {name: given[name] for name in names if given.get(name) is not None}


def openssl_said(error: Exception) -> str:
    """Return why files of TLS can't be used, in words of our own where OpenSSL's don't say it."""
    said = str(getattr(error, "strerror", None) or error)
    return next((words for its, words in _OPENSSL.items() if its in said), said)


def _no_password() -> str:
    """Keep OpenSSL from asking for a password on the terminal."""
    raise ValueError("the key is encrypted; give one that isn't, or an ssl.SSLContext that has loaded it")


def _check_key(key: object) -> None:
    """Refuse a key that can't be sent as a header. No error message shows it."""
    rule = ""
    if not (isinstance(key, str) and key.isascii() and key.isprintable()):
        rule = "api_key must be printable ASCII, without line breaks"
    elif not key:
        rule = "api_key must not be empty; leave it out where there is none"
    elif key != key.strip():
        rule = "api_key must not begin or end with blanks"
    if rule:
        raise SynapError("INVALID_REQUEST", rule, {"option": "api_key"})


_warned: Set[str] = set()


def warn_of_plain_key(config: ClientConfig, target: Target) -> None:
    """Warn, once for each server, of a key that is sent unencrypted to another host."""
    if config.api_key is None or target.scheme != "http" or target.local or target.authority in _warned:
        return
    _warned.add(target.authority)
    warnings.warn(
        f"the API key travels unencrypted to {target.authority}: use https://, or a proxy that speaks TLS",
        UserWarning,
        stacklevel=4,
    )


class Target(NamedTuple):
    """A parsed URL. `path` is the name of a 'memory' engine, or the directory of a 'file' one."""

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
    def local(self) -> bool:
        """Whether the host is this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def in_process(self) -> bool:
        """Whether the engine, or the cluster's host, runs in this process, without a server."""
        return self.scheme in ("memory", "file", *CLUSTERS)


_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@,?#]+)(:\d{1,5})?")


def _cluster(scheme: str, url: str) -> Target:
    """Check the syntax of a cluster's URL, which `synap.cluster.options` parses."""
    nodes = url.partition("://")[2].rpartition("@")[2].rstrip("/")
    if not all(_NODE.fullmatch(node) for node in nodes.split(",")):
        raise invalid_option("url", f"{scheme}://[user:password@]host:port[,host:port...]", without_secret(url))
    return Target(scheme, path=url.partition("://")[2])


def local_path(path: str, *, windows: bool) -> str:
    """Return the directory of a file URL's path; on Windows without the slash before the drive."""
    found = unquote(path)
    return found[1:] if windows and found[2:3] == ":" else found


def parse_url(url: str) -> Target:
    """Parse a URL; raises `INVALID_REQUEST` that names the unsupported part."""
    if not isinstance(url, str):
        raise invalid_option("url", "a string such as 'http://localhost:15500'", url)
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
        rule = "without query and fragment (options are arguments of the client)"
        raise invalid_option("url", rule, without_secret(url))
    if scheme == "memory":
        return Target("memory", path=parts.netloc + parts.path)
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise invalid_option("url", "file:///directory with three slashes", without_secret(url))
        path = local_path(parts.path, windows=os.name == "nt")
        try:
            named = b"\0" not in os.fsencode(path)
        except UnicodeEncodeError:
            named = False
        if not named:
            raise invalid_option("url", "file:///directory with the name of a directory", url)
        return Target("file", path=path)
    if parts.username is not None or parts.password is not None:
        raise SynapError("INVALID_REQUEST", "url must not hold a user or password, use api_key", {"option": "url"})
    if not parts.hostname:
        raise invalid_option("url", f"{scheme}://host:port", url)
    if parts.path not in ("", "/"):
        raise invalid_option("url", "without a path", url)
    return Target(scheme, _ascii(parts.hostname), DEFAULT_PORT if port is None else port)


def _ascii(host: str) -> str:
    """Return a host name as it is looked up (IDNA)."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise invalid_option("url", "with the name of a host", host) from None


def without_secret(url: str) -> str:
    """Return a URL for errors and logs: user, password and query are replaced, since they may be secret."""
    head, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    if "@" in rest:
        rest = f"***@{rest.rpartition('@')[2]}"
    place = re.split("[?#]", rest, maxsplit=1)[0]
    return f"{head}{separator}{place}{'?***' if place != rest else ''}"


class Default:
    """Sentinel for an argument that isn't given: reads as its default in `help()`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


ungiven: Any = SimpleNamespace(**{field.name: Default(field.default) for field in fields(ClientConfig)})
"""The defaults of each option in a signature: sentinels, so that 'not given' differs from the default value."""


def resolve(config: Union[ClientConfig, str, None], options: Mapping[str, Any]) -> ClientConfig:
    """Make the configuration of a client from its arguments and the environment.

    Raises `INVALID_REQUEST` for an unknown option (with the nearest known one), or an invalid value.
    """
    known = {field.name for field in fields(ClientConfig)}
    given = {name: value for name, value in options.items() if not isinstance(value, Default)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise SynapError("INVALID_REQUEST", f"there is no option {name!r}{hint}", {"option": name})
    if isinstance(config, ClientConfig):
        if given:
            raise SynapError("INVALID_REQUEST", "give a ClientConfig or options, not both", {"option": min(given)})
        given = {field.name: getattr(config, field.name) for field in fields(config)}
    elif isinstance(config, str):
        if "url" in given:
            raise SynapError("INVALID_REQUEST", "the URL is given twice: first and as url=", {"option": "url"})
        given["url"] = config
    elif config is not None:
        raise invalid_option("config", "a ClientConfig or a URL", type(config).__name__)
    if given.get("url") is None:
        given["url"] = os.environ.get("SYNAP_URL") or DEFAULT_URL
    if given.get("api_key") is None:
        given["api_key"] = os.environ.get("SYNAP_API_KEY") or None
    return ClientConfig(**given)
