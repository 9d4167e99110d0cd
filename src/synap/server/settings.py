"""The options of the service: on the command line, in the environment, in a file.

The command line takes precedence over the environment (`SYNAP_PORT`), that over the file (`--config`, TOML), that over
the defaults. `ServerConfig` is the one list; the command line and the reference page are generated from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import ipaddress
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from synap.config import without_secret
from synap.errors import SynapError
from synap.wire.frames import MAX_BODY

__all__ = ["ENGINE_OPTIONS", "OPTIONS", "Option", "ServerConfig", "load"]

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class Option(NamedTuple):
    """One option of the service.

    `kind`: 'text', 'path', 'file' (one that must exist), 'flag', 'int', 'rate', 'size' (bytes; `64MB`, `1GiB`),
    'seconds' (`90`, `15m`, `24h`), 'choice' or 'keys' (a list; on the command line given several times, in the
    environment with commas between). `engine`: whether it is passed to the engine that `engine` names.
    """

    name: str
    kind: str
    doc: str
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    flag: str = ""
    default: Any = None
    engine: bool = False

    @property
    def on_command_line(self) -> str:
        """The option as it is written on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def in_environment(self) -> str:
        """The variable that sets the option."""
        return "SYNAP_" + (self.flag.lstrip("-") or self.name).replace("-", "_").upper()


def _about(kind: str, doc: str, least: float = 0, most: float = math.inf, **more: Any) -> dict[str, Any]:
    return {"option": Option("", kind, doc, least, most, **more)}


def _option(default: Any, *about: Any, **more: Any) -> Any:
    return field(default=default, metadata=_about(*about, **more))


_engine_option = functools.partial(_option, engine=True)
_KB = 1024


@dataclass
class ServerConfig:
    """The configuration of the service.

    Raises `INVALID_REQUEST` with the option and the rule it breaks.
    """

    host: str = _option("127.0.0.1", "text", "Address to listen on; one that other machines can reach needs a key.")
    port: int = _option(15500, "int", "Port to listen on; 0 takes a free one.", 0, 65_535)
    engine: str | None = _option(
        None, "text", "URL of what keeps the data, such as valkey://host:port, in place of --data."
    )
    durability: str = _engine_option(
        "replicated",
        "choice",
        "On a cluster, who has a write before it is answered: the primary (none), replicas too (replicated), all on "
        "disk (synced).",
        choices=("none", "replicated", "synced"),
    )
    replicas: int = _engine_option(1, "int", "On a cluster, replicas that must have a write.", 1, 100)
    patience: float = _engine_option(
        10.0, "seconds", "On a cluster, how long a call is tried through failovers.", 0.1, 3600
    )
    space: str = _engine_option(
        "syn", "text", "On a cluster, what all keys begin with, so that several services can share it."
    )
    partitions: int | None = _engine_option(
        None, "int", "On a cluster, parts names are spread over; counts at the first start.", 1, 16_384
    )
    engine_user: str | None = _engine_option(None, "text", "On a cluster, the ACL user.")
    engine_password_file: str | None = _engine_option(None, "file", "On a cluster, the file with the password.")
    engine_ca: str | None = _engine_option(None, "file", "On a cluster with TLS, who signed its certificates (PEM).")
    engine_cert: str | None = _engine_option(None, "file", "On a cluster with TLS, this service's certificate (PEM).")
    engine_key: str | None = _engine_option(None, "file", "On a cluster with TLS, the key of that certificate (PEM).")
    allow_eviction: bool = _engine_option(
        False, "flag", "On a cluster, start even if its nodes evict keys when memory is short."
    )
    unchecked: bool = _engine_option(False, "flag", "On a cluster, don't look at its nodes' settings first.")
    memory: bool = _option(False, "flag", "Keep nothing on disk.")
    data: str = _option("./synap-data", "path", "Directory to keep the data in.")
    fsync: str = _option(
        "always",
        "choice",
        "When a write is on disk: before its answer (always), a second later (everysec), when the system likes (no).",
        choices=("always", "everysec", "no"),
    )
    api_keys: list[str] = field(
        default_factory=list,
        metadata=_about("keys", "Key that opens the service; may be given several times.", flag="--api-key"),
    )
    admin_keys: list[str] = field(
        default_factory=list,
        metadata=_about(
            "keys", "Key that also opens admin.* and backups; may be given several times.", flag="--admin-key"
        ),
    )
    api_key_file: str | None = _option(None, "path", "File with such keys, one a line; read again when it changes.")
    admin_key_file: str | None = _option(None, "path", "File with such admin keys.")
    keys_file: str | None = _option(None, "path", "File of named keys with grants and quotas, see `synap keys`.")
    audit_log: str | None = _option(
        None, "path", "File for the audit log: administration, creation, deletion, refusals; - is stderr."
    )
    insecure_no_auth: bool = _option(False, "flag", "Let everybody in on an address that other machines can reach.")
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata=_about(
            "keys",
            "Name the service answers to (Host) beside addresses and names without a dot; may be given several times.",
            flag="--allowed-host",
        ),
    )
    rate_limit: float | None = _option(None, "rate", "Requests a second for each key (without keys: for each address).")
    tls_cert: str | None = _option(None, "file", "Certificate chain (PEM): the service speaks TLS only.")
    tls_key: str | None = _option(None, "file", "Private key of the certificate (PEM).")
    tls_client_ca: str | None = _option(
        None, "file", "Certificates (PEM) that callers' certificates must be signed by."
    )
    tls_min_version: str = _option("1.2", "choice", "Oldest version of TLS that is spoken.", choices=("1.2", "1.3"))
    tls_ciphers: str | None = _option(
        None,
        "text",
        "Cipher suites of TLS 1.2, as OpenSSL writes them; by default those with AES-GCM or ChaCha20 and forward "
        "secrecy.",
    )
    memory_limit: int | None = _option(
        None,
        "size",
        "Bytes the service may hold in memory; writes beyond are refused. By default 80 % of what the machine, "
        "or its cgroup, has.",
        1024 * _KB,
    )
    evict: str = _option(
        "none",
        "choice",
        "What makes room at --memory-limit: nothing (none), or keys with a ttl, least recently used first (lru).",
        choices=("none", "lru"),
    )
    idle_queues: float = _option(
        86_400.0, "seconds", "How long queues and rooms that use alone made are kept empty.", 1, 10**9
    )
    room_events: int = _option(100_000, "int", "Events a room keeps.", 1, 100_000_000)
    room_age: float = _option(86_400.0, "seconds", "How long a room keeps an event.", 1, 10**9)
    max_body: int = _option(MAX_BODY, "size", "Bytes the body of a request may have.", _KB, MAX_BODY)
    max_connections: int = _option(20_000, "int", "Connections at a time.", 1, 1_000_000)
    transit_limit: int | None = _option(
        None,
        "size",
        "Bytes of unfinished bodies, of untaken answers and of those in the making of all peers; beyond, who has "
        "most is disconnected. By default a quarter of --memory-limit, at least 96 MiB.",
        1024 * _KB,
    )
    unread_timeout: float = _option(
        90.0, "seconds", "How long a peer may take nothing of what waits for it.", 1, 86_400
    )
    stream_buffer: int = _option(
        1024 * 1024, "size", "Bytes of events under way to one connection; further ones wait in their room.", 16 * _KB
    )
    pubsub_buffer: int = _option(
        8 * 1024 * 1024,
        "size",
        "Bytes of messages under way to one connection; beyond, a slow subscriber is dropped.",
        16 * _KB,
    )
    snapshot_size: int = _option(8 * 1024 * 1024, "size", "Bytes of log below which no snapshot is taken.", 64 * _KB)
    disk_reserve: int = _option(
        8 * 1024 * 1024,
        "size",
        "Bytes of a file beside the data that is removed on a full disk, so that a start and what makes room still "
        "work (at most an eighth of the file system); 0: none.",
    )
    handshake_timeout: float = _option(
        10.0,
        "seconds",
        "How long a client may take for a TLS handshake, the head of a request, or its first frame.",
        0.1,
        3600,
    )
    idle_timeout: float = _option(
        75.0, "seconds", "How long a plain HTTP connection is kept open without a request.", 0.1, 86_400
    )
    drain_timeout: float = _option(5.0, "seconds", "How long stopping waits for answers under way.", 0, 3600)
    metrics_queues: list[str] = field(
        default_factory=list,
        metadata=_about(
            "keys",
            "Pattern of queues that always have metrics of their own; beside them, the 1,000 used most have.",
            flag="--metrics-queue",
        ),
    )
    no_console: bool = _option(False, "flag", "Don't serve the console at /.")
    console_session: float = _option(
        900.0, "seconds", "How long the console stays signed in without anybody at it.", 1, 12 * 3600
    )
    log_level: str = _option("info", "choice", "How much is logged.", choices=("debug", "info", "warning", "error"))
    log_format: str = _option(
        "text", "choice", "How it is logged: lines of text, or of JSON.", choices=("text", "json")
    )
    access_log: bool = _option(
        False, "flag", "Log each HTTP request, and each connection of the other lanes when it ends."
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            setattr(self, option.name, _checked(option, getattr(self, option.name)))
        if self.engine is not None and self.memory:
            raise SynapError("INVALID_REQUEST", "engine and memory exclude each other", {"option": "engine"})
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _bad("tls_cert and tls_key", "given together", "one of them")
        if self.tls_client_ca and not self.tls_cert:
            raise _bad("tls_client_ca", "given with tls_cert and tls_key", "only tls_client_ca")
        for option in OPTIONS:
            path = getattr(self, option.name)
            if option.kind == "file" and path is not None and not os.path.isfile(path):
                raise _bad(option.name, "a file", path)
        if not self.loopback and not self.keys_on and not self.insecure_no_auth:
            raise SynapError(
                "INVALID_REQUEST",
                f"host {self.host!r} can be reached from other machines and no key is set: "
                "give --api-key, or say --insecure-no-auth if that is meant",
                {"option": "host"},
            )

    @property
    def keys_on(self) -> bool:
        """Whether callers need a key."""
        return bool(
            self.api_keys or self.admin_keys or self.api_key_file or self.admin_key_file or self.keys_file is not None
        )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __repr__(self) -> str:
        return f"ServerConfig({self.shown()})"

    def shown(self) -> dict[str, Any]:
        """All options without secrets: of keys only their number."""
        shown = dataclasses.asdict(self)
        for name in ("api_keys", "admin_keys"):
            shown[name] = len(shown[name])
        if self.engine is not None:
            shown["engine"] = without_secret(self.engine)
        return shown


OPTIONS: tuple[Option, ...] = tuple(
    one.metadata["option"]._replace(name=one.name, default=[] if one.default is dataclasses.MISSING else one.default)
    for one in dataclasses.fields(ServerConfig)
)
ENGINE_OPTIONS = tuple(option.name for option in OPTIONS if option.engine)
"""Options that are passed to the engine that `engine` names."""
_BY_NAME = {option.name: option for option in OPTIONS}
_CLIENTS = {"SYNAP_URL", "SYNAP_API_KEY", "SYNAP_CONFIG"}
"""Variables that are not options of the service."""


def load(
    overrides: Mapping[str, Any] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServerConfig:
    """Build the configuration from `overrides` (None: not given), the environment, the TOML file and the defaults.

    Without `config`, the file that `SYNAP_CONFIG` names. Raises `INVALID_REQUEST` for an unknown name, with the nearest
    known one, and for an invalid value.
    """
    values = _read_credentials(environ)
    path = config or environ.get("SYNAP_CONFIG")
    if path:
        values.update(_read_file(Path(path)))
    values.update(_read_environment(environ))
    for name, value in (overrides or {}).items():
        if name not in _BY_NAME:
            raise _unknown("option", name, _BY_NAME)
        if value is not None and value != () and value != []:
            values[name] = value
    return ServerConfig(**values)


_CREDENTIALS = {
    "synap-api-key": "api_key_file",
    "synap-admin-key": "admin_key_file",
    "synap-keys": "keys_file",
    "synap-tls-cert": "tls_cert",
    "synap-tls-key": "tls_key",
}
"""Credentials of systemd (`LoadCredential=`) that are used as defaults, and their options."""


def _read_credentials(environ: Mapping[str, str]) -> dict[str, Any]:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}
    found = {option: os.path.join(folder, name) for name, option in _CREDENTIALS.items()}
    return {option: path for option, path in found.items() if os.path.isfile(path)}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = _toml.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SynapError("INVALID_REQUEST", f"{path} can't be read: {error.strerror}", {"option": "config"}) from None
    except (_toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SynapError("INVALID_REQUEST", f"{path} is not TOML: {error}", {"option": "config"}) from None
    for name in table:
        if name not in _BY_NAME:
            raise _unknown(f"{path}: option", name, _BY_NAME)
    return table


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {option.in_environment: option for option in OPTIONS}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("SYNAP_"):
            continue
        option = known.get(variable)
        if option is None:
            # Other programs' variables may begin like ours; one that is close to ours is a typo.
            if variable not in _CLIENTS and difflib.get_close_matches(variable, known, 1, 0.9):
                raise _unknown("variable", variable, known)
        elif text and not (variable == "SYNAP_PORT" and "://" in text):
            # Kubernetes sets SYNAP_PORT=tcp://… for a service of that name; it means nothing to us.
            values[option.name] = text.split(",") if option.kind == "keys" else text
    return values


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> SynapError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "known are: " + ", ".join(known)
    return SynapError("INVALID_REQUEST", f"{what} {name!r} is not known; {hint}", {"option": name})


def _bad(name: str, rule: str, got: object) -> SynapError:
    return SynapError("INVALID_REQUEST", f"{name} must be {rule}, got {got!r}", {"option": name})


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SPAN = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _checked(option: Option, value: Any) -> Any:
    """Convert a given value (text, or a value of TOML), or raise `INVALID_REQUEST`."""
    if value is None:
        return None
    name, kind = option.name, option.kind
    if kind == "flag":
        return _flag(name, value)
    if kind == "keys":
        return _keys(name, value)
    if kind in ("text", "path", "file", "choice"):
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise _bad(name, "a text", value)
        text = os.fspath(value)
        if kind == "choice" and text not in option.choices:
            raise _bad(name, " or ".join(map(repr, option.choices)), value)
        return text
    number = _number(option, value)
    if not option.least <= number <= option.most:
        rule = f"{option.least:,}..{option.most:,}" if option.most != math.inf else f"{option.least:,} or more"
        raise _bad(name, rule, value)
    return number


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else None
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise _bad(name, "true or false", value)


def _keys(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise _bad(name, "a list of texts", type(value).__name__)
    for key in value:
        # The message doesn't show the value: it may be a mistyped key.
        if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise SynapError("INVALID_REQUEST", f"{name} must be printable ASCII, not empty", {"option": name})
    return list(value)


def _number(option: Option, value: Any) -> Any:
    name, kind = option.name, option.kind
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _bad(name, "a number", value)
    if kind == "int":
        if isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("-").isdecimal()):
            return int(value)
        raise _bad(name, "a whole number", value)
    if isinstance(value, str):
        text = value.strip()
        if kind == "size":
            match = _SIZE.fullmatch(text)
            if match is None:
                raise _bad(name, "bytes, such as 65536, 64KiB or 1GiB", value)
            base = 1024 if match[3] or not match[2] else 1000
            return int(float(match[1]) * base ** "_kmgt".index(match[2].lower() or "_"))
        if kind == "rate":
            text = text.removesuffix("/s")
        match = _SECONDS.fullmatch(text)
        if match is None or (kind == "rate" and match[2]):
            raise _bad(name, "seconds, such as 90, 15m or 24h" if kind == "seconds" else "requests a second", value)
        value = float(match[1]) * _SPAN[match[2]]
    if not math.isfinite(value):
        raise _bad(name, "a finite number", value)
    if kind == "size":
        return int(value)
    if kind == "rate" and value <= 0:
        raise _bad(name, "more than 0 requests a second", value)
    return float(value)
